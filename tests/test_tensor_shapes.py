"""Every public function of cache/ and student/ gives the shapes of the tensors that it takes and returns."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent

TENSORS = re.compile(r"\b(Tensor|ndarray)\b")
ANY_TENSORS = re.compile(r"(dict|Mapping)\[str, Tensor\]|(Iterable|Iterator)\[Tensor\]")
"""State dicts, and tensors of all kinds in a row."""
SHAPED = re.compile(r"\w+\[(np\.ndarray|Tensor), ")
SHAPE_IN_TEXT = re.compile(r"\([A-Z0-9][\w*]*(, [\w*]+)*,?\)|\b[A-Z]\w* x [A-Z]\w*|\b(scalar|shape)\b")


def public_functions(path: Path) -> Iterator[ast.FunctionDef]:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            yield node


def annotations(function: ast.FunctionDef) -> list[str]:
    """Of a function's arguments and of what it returns, as written."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [ast.unparse(given) for given in (*(each.annotation for each in arguments), function.returns) if given]


def test_tensors_have_shapes_in_their_types_or_in_the_docstring() -> None:
    shapeless = [
        f"{path.relative_to(ROOT)}: {function.name}: {annotation}"
        for folder in ("cache", "student")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for function in public_functions(path)
        if not SHAPE_IN_TEXT.search(ast.get_docstring(function) or "")
        for annotation in annotations(function)
        if TENSORS.search(ANY_TENSORS.sub("", annotation)) and not SHAPED.search(annotation)
    ]
    assert not shapeless, "\n".join(shapeless)

"""Every public name of cache/ and student/ says what it is, and the shapes of the tensors it takes and gives."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path for room in ("cache", "student") for path in (ROOT / room).rglob("*.py"))

TENSORS = re.compile(r"\b(Tensor|ndarray)\b")
ANY_TENSORS = re.compile(r"(dict|Mapping)\[str, Tensor\]|(Iterable|Iterator)\[Tensor\]")
"""State dicts, and tensors of all kinds in a row."""
SHAPED = re.compile(r"\w+\[(np\.ndarray|Tensor), ")
SHAPE_IN_TEXT = re.compile(r"\([A-Z0-9][\w*]*(, [\w*]+)*,?\)|\b[A-Z]\w* x [A-Z]\w*|\b(scalar|shape)\b")


def public(path: Path) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """The classes and functions that a module offers."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node


def annotations(function: ast.FunctionDef) -> list[str]:
    """Of a function's arguments and of what it returns, as written."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    return [ast.unparse(given) for given in (*(each.annotation for each in arguments), function.returns) if given]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_public_name_has_a_docstring(path: Path) -> None:
    module = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(module) or not module.body, "the module has none"
    silent = [node.name for node in public(path) if not ast.get_docstring(node)]
    assert not silent, f"without a docstring: {', '.join(silent)}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tensors_have_shapes(path: Path) -> None:
    shapeless = [
        f"{node.name}: {annotation}"
        for node in public(path)
        if isinstance(node, ast.FunctionDef) and not SHAPE_IN_TEXT.search(ast.get_docstring(node) or "")
        for annotation in annotations(node)
        if TENSORS.search(ANY_TENSORS.sub("", annotation)) and not SHAPED.search(annotation)
    ]
    assert not shapeless, f"tensors of unknown shape: {'; '.join(shapeless)}"

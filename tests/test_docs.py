"""The documentation holds: links lead somewhere, commands parse, quoted messages exist, code runs."""

import ast
import importlib
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.factories.command_line import COMMANDS, parse_cli

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ +(.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def blocks(page: Path, language: str) -> list[str]:
    return [code for found, code in FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def shell_commands(page: Path) -> Iterator[str]:
    """Commands of bash blocks, and of indented blocks that call the cli; a pipe's or a list's each by itself."""
    indented = re.findall(r"^    (cli .*)$", prose(page), re.MULTILINE)
    for text in (*blocks(page, "bash"), *indented):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.shlex(line, posix=True, punctuation_chars="|;&")
            words.whitespace_split, command = True, []
            for word in (*words, ";"):
                if set(word) <= set("|;&"):
                    yield shlex.join(command)
                    command = []
                else:
                    command.append(word)


def leads_somewhere(page: Path, target: str) -> bool:
    if re.match(r"[a-z]+:", target):
        return True
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page
    return file.exists() and (not anchor or anchor in anchors(file))


def test_links_lead_somewhere() -> None:
    links = [(page, target) for page in PAGES for target in LINK.findall(prose(page))]
    assert not [f"{named(page)}: {target}" for page, target in links if not leads_somewhere(page, target)]


def test_shell_commands_parse() -> None:
    for command in (command for page in PAGES for command in shell_commands(page)):
        if "cli" in shlex.split(command):
            parse_cli("cli" + command.partition("cli")[2])


def test_a_wrong_command_would_be_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```bash\ntorchrun -n 2 cli verify \\\n    store --no-such | jq .\n```\n")
    assert list(shell_commands(page)) == ["torchrun -n 2 cli verify store --no-such", "jq ."]
    with pytest.raises(Exception, match="--no-such"):
        parse_cli("cli verify store --no-such")


def test_code_parses() -> None:
    for page in PAGES:
        for code in blocks(page, "python"):
            compile(code, named(page), "exec")
        for code in blocks(page, "yaml"):
            assert yaml.safe_load(code), named(page)


def test_quoted_messages_exist() -> None:
    files = [*ROOT.glob("cache/**/*.py"), *ROOT.glob("student/**/*.py"), ROOT / "cli.py"]
    said = [
        node.value
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    quoted = re.findall(r"\*\*`(.+?)`\*\*", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))
    assert len(quoted) > 30
    assert not [message for message in quoted if not any(message in text for text in said)]


def test_your_own_student_learns_from_the_golden_store(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "\n".join(blocks(ROOT / "docs" / "your-student.md", "python"))
    found: dict = {}
    exec(
        compile(code.replace("teacher.zarr", str(ROOT / "tests" / "data" / "store-v1")), "your-student.md", "exec"),
        found,
    )
    assert found["terms"]
    assert found["features"].grad.abs().sum() > 0


PUBLIC = ("cache", "cache.visualization", "student.distill", "student.visualization")


def imported_modules(code: str) -> set[str]:
    """The modules of this project that a piece of code imports from; IPython's magics are left out."""
    tree = ast.parse("\n".join(line for line in code.splitlines() if not line.startswith("%")))
    found = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    found |= {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    return {module for module in found if module.split(".")[0] in ("cache", "student", "demo")}


def test_documentation_and_notebooks_import_the_public_packages_alone() -> None:
    codes = [(named(page), code) for page in PAGES for code in blocks(page, "python")]
    for path in ROOT.glob("notebooks/*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        codes += [(named(path), "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    imports = {(where, module) for where, code in codes for module in imported_modules(code)}
    assert {module for _, module in imports} == set(PUBLIC)
    assert imported_modules("import cache.store.reader\nfrom cache.spec import CacheSpec\nimport json") == {
        "cache.store.reader",
        "cache.spec",
    }


def test_the_reference_lists_the_public_names() -> None:
    listed = re.findall(r"^::: (\S+)$", (ROOT / "docs" / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    names = {package: importlib.import_module(package) for package in PUBLIC}
    public = {f"{package}.{name}" for package, module in names.items() for name in getattr(module, "__all__", ())}
    shown = set(listed) - set(PUBLIC)
    assert public - shown == {"cache.__version__"}
    assert all(hasattr(names[package], name) for package, _, name in (entry.rpartition(".") for entry in shown))


def test_every_page_has_its_place() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert not [page.name for page in ROOT.glob("docs/*.md") if f": {page.name}\n" not in navigation]


def test_every_command_is_listed() -> None:
    listed = re.findall(
        r"^\| `([\w-]+)`", (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert set(COMMANDS) <= {name for row in listed for name in row.split("`, `")}


def design_tree() -> dict[str, set[str]]:
    """The tree of docs/design.md: each folder, top layer first, with the stems of its files."""
    tree: dict[str, set[str]] = {}
    package = folder = ""
    for line in re.findall(r"^    (.+)$", (ROOT / "docs" / "design.md").read_text(encoding="utf-8"), re.MULTILINE):
        if found := re.match(r"(\w+)/ ", line):
            package = folder = found[1]
            tree[folder] = set()
        elif found := re.match(r"  (\w+)\.py ", line):
            tree[package].add(found[1])
            tree[f"{package}/{found[1]}"] = set()
        elif found := re.match(r"  ([\w/]+)/ ", line):
            folder = f"{package}/{found[1]}"
            tree[folder] = set()
        elif folder and line.startswith(" " * 19):
            tree[folder] |= set(line.split())
    return tree


def test_the_design_shows_every_file_in_its_folder() -> None:
    files = [path for package in ("cache", "student", "demo") for path in (ROOT / package).rglob("*.py")]
    expected: dict[str, set[str]] = {}
    for path in files:
        expected.setdefault(named(path.parent), set()).update({path.stem} - {"__init__"})
    assert {folder: names for folder, names in design_tree().items() if (ROOT / folder).is_dir()} == expected


def test_the_designs_layers_are_those_of_the_import_linter() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    layers = contracts["contracts"][0]["layers"]
    shown = [folder.replace("/", ".") for folder in design_tree()]
    assert [layer for layer in shown if layer in layers] == layers

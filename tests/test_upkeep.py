"""What keeps the project in order: packaging, citation, hooks."""

import importlib.util
import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from setuptools import find_packages

ROOT = Path(__file__).parent.parent
TOP = ("cache", "student", "demo")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_found_and_typed() -> None:
    folders = [path.parent for path in ROOT.glob("[!.]*/**/*.py") if path.relative_to(ROOT).parts[0] in TOP]
    found = find_packages(str(ROOT), include=PROJECT["tool"]["setuptools"]["packages"]["find"]["include"])
    assert sorted({".".join(folder.relative_to(ROOT).parts) for folder in folders}) == sorted(found)
    assert all((ROOT / name / "py.typed").is_file() for name in TOP)
    assert "py.typed" in PROJECT["tool"]["setuptools"]["package-data"]["*"]


def test_files_beside_the_code_are_packaged() -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for path in (path for name in TOP for path in (ROOT / name).rglob("*.*") if path.suffix not in (".py", ".pyc")):
        package = ".".join(path.parent.relative_to(ROOT).parts)
        assert any(path.match(pattern) for key in ("*", package) for pattern in data.get(key, ())), path


def test_licence_and_citation_agree_with_the_package() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    project = PROJECT["project"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    (paper,) = citation["references"]
    assert paper["title"].startswith("DistillBEV: ")
    assert [author["family-names"] for author in paper["authors"]] == ["Wang", "Li", "Luo", "Xie", "Yang"]


def test_hooks_put_a_commit_in_order(tmp_path: Path) -> None:
    if importlib.util.find_spec("pre_commit") is None:
        pytest.skip("pre-commit is not installed (make setup)")
    shutil.copy(ROOT / ".pre-commit-config.yaml", tmp_path)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "untidy.py").write_text("import os\nx = 'a'\n")
    cell = {"cell_type": "code", "metadata": {}, "source": ["1"], "execution_count": 1, "id": "a", "outputs": [
        {"output_type": "execute_result", "data": {"text/plain": ["1"]}, "metadata": {}, "execution_count": 1}
    ]}  # fmt: skip
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (tmp_path / "used.ipynb").write_text(json.dumps(notebook))
    for command in (("git", "init", "-q"), ("git", "add", "untidy.py", "used.ipynb", ".pre-commit-config.yaml")):
        subprocess.run(command, cwd=tmp_path, check=True)
    hooks = [sys.executable, "-m", "pre_commit", "run", "--all-files"]
    assert subprocess.run(hooks, cwd=tmp_path, capture_output=True).returncode == 1
    assert (tmp_path / "untidy.py").read_text() == 'x = "a"\n'
    assert json.loads((tmp_path / "used.ipynb").read_text())["cells"][0]["outputs"] == []
    again = subprocess.run(hooks, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stdout

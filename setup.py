"""The wheel: `cache`, `student`, `demo.world` and `cli` under the name offline_distillbev; its command is bev-distill.

Their own names are too common to install for others. A checkout, and an editable install of it, keeps them.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

NAME = "offline_distillbev"
LEFT_OUT = ("demo/pipeline.py", "demo/report.py")
"""The quick start, which reads the checkout's configs/."""

REWRITTEN = (
    (r"^(\s*)(from|import) (cache|student|demo|cli)(?=[.\s])", rf"\1\2 {NAME}.\3"),
    (r"%load_ext (?=cache|student)", f"%load_ext {NAME}."),
    (r'(?<=["`])cli (?=[a-z-])', "bev-distill "),
)
"""Patterns of a line, and what takes their place: imports, and commands in help and messages."""


class BuildUnderOneName(build_py):
    """Modules and files of packages, below offline_distillbev/ in a wheel."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.into = Path(self.build_lib)
        if not self.editable_mode:
            self.build_lib = str(self.into / NAME)

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        shutil.rmtree(self.into, ignore_errors=True)  # what an earlier build left would be packed, too
        super().run()
        top = Path(self.build_lib)
        for name in LEFT_OUT:
            (top / name).unlink()
        for path in top.rglob("*.py"):
            path.write_text(under_one_name(path.read_text(encoding="utf-8")), encoding="utf-8")
        (top / "__init__.py").write_text(f'"""{self.distribution.metadata.description}."""\n', encoding="utf-8")
        (top / "py.typed").touch()


class Wheel(bdist_wheel):
    """The wheel's metadata: the command and the name that it installs."""

    packing = False

    def run(self) -> None:
        self.packing = True  # an editable install calls write_wheelfile alone
        super().run()

    def write_wheelfile(self, wheelfile_base: str, *arguments: Any, **options: Any) -> None:
        super().write_wheelfile(wheelfile_base, *arguments, **options)
        if self.packing:
            commands = f"[console_scripts]\nbev-distill = {NAME}.cli:main\n"
            (Path(wheelfile_base) / "entry_points.txt").write_text(commands)
            (Path(wheelfile_base) / "top_level.txt").write_text(f"{NAME}\n")


def under_one_name(source: str) -> str:
    """A module of the checkout as it is in the wheel."""
    for pattern, replacement in REWRITTEN:
        source = re.sub(pattern, replacement, source, flags=re.MULTILINE)
    return source


setup(cmdclass={"build_py": BuildUnderOneName, "bdist_wheel": Wheel})

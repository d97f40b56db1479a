"""The set-up script, as far as it can be run without installing anything."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the set-up script reads, without a .venv."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def setup(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [folder / ".ci" / "setup"], env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


def test_a_missing_python_is_said_clearly(checkout: Path) -> None:
    run = setup(checkout, PYTHON="/bin/false")
    assert run.returncode == 1
    assert "Python 3.11 is needed and was not found (looked for: /bin/false)" in run.stderr
    assert "make setup PYTHON=" in run.stderr
    assert not (checkout / ".venv").exists()


def test_a_full_disk_is_said_before_anything_is_installed(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    df = tmp_path / "bin" / "df"
    df.write_text("#!/bin/sh\necho Filesystem\necho /dev/disk 9000000 6000000 3000000 67% /\n")
    df.chmod(0o755)
    run = setup(checkout, PYTHON="/bin/true", PATH=f"{df.parent}:{os.environ['PATH']}")
    assert run.returncode == 1
    assert f"8 GB of disk are needed in {checkout}, 7 of them for .venv; 2 GB are free" in run.stderr
    assert not (checkout / ".venv").exists()


def test_nothing_is_done_when_nothing_changed(checkout: Path) -> None:
    parts = [
        checkout / "pyproject.toml",
        *(checkout / ".ci" / name for name in ("constraints.txt", "setup", "build-mmcv")),
    ]
    content = b"".join(part.read_bytes() for part in parts)
    done = subprocess.run(["sha256sum"], input=content, capture_output=True, check=True).stdout
    (checkout / ".venv").mkdir()
    (checkout / ".venv" / ".setup-done").write_bytes(done)
    run = setup(checkout, PYTHON="/bin/false")
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_other_pythons_are_skipped_with_a_reason(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3.13").symlink_to("/bin/true")
    for tool in ("bash", "dirname"):
        (tmp_path / "bin" / tool).symlink_to(shutil.which(tool))
    only = os.environ | {"PATH": str(tmp_path / "bin")}
    script = checkout / ".ci" / "other-pythons"
    run = subprocess.run([script], env=only, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout.splitlines()) == (0, [
        "Python 3.12: skipped (no python3.12)",
        "Python 3.13: skipped (no .venv-3.13: .ci/other-pythons --install 3.13)",
    ]), run.stderr  # fmt: skip


def test_a_kept_wheel_is_reused(checkout: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho mmcv-key\n")
    python.chmod(0o755)
    wheel = tmp_path / "kept" / "offline-distillbev" / "mmcv-key" / "mmcv-2.1.0-cp311-cp311-linux_x86_64.whl"
    wheel.parent.mkdir(parents=True)
    wheel.touch()
    run = subprocess.run(
        [checkout / ".ci" / "build-mmcv", python],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "kept")},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.stdout.strip() == str(wheel)

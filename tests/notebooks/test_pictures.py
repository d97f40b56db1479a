import runpy
import shutil
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent.parent


def test_the_documentations_pictures_can_be_drawn(
    demo_output: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("chromium") is None:
        pytest.skip("no Chromium is installed")
    script = runpy.run_path(str(ROOT / "docs" / "draw_seeing.py"))
    monkeypatch.setitem(script["main"].__globals__, "IMAGES", tmp_path / "images")
    script["main"](demo_output)
    assert Image.open(tmp_path / "images" / "page.png").size == (1180, 860)
    assert (tmp_path / "images" / "scene.png").exists()


def test_the_documentations_pictures_are_light() -> None:
    for name in ("page", "scene"):
        assert (ROOT / "docs" / "images" / f"{name}.png").stat().st_size < 150_000

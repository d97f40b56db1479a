"""Draw the pictures of docs/seeing.md from the output of `make demo`: `python docs/draw_seeing.py demo-output`.

The page's picture is a screenshot by Chromium.
"""

import io
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from cache import Frames, TeacherCache
from cache.visualization import write_html
from student.visualization import plot_bev_and_cameras, read_results

IMAGES = Path(__file__).parent / "images"


def main(out: Path) -> None:
    """Write images/page.png and images/scene.png."""
    IMAGES.mkdir(exist_ok=True)
    cache = TeacherCache(out / "teacher.zarr")
    with tempfile.TemporaryDirectory() as folder:
        page, picture = Path(folder) / "report.html", Path(folder) / "page.png"
        write_html(cache, page)
        options = ("--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1180,860")
        profile = f"--user-data-dir={folder}/profile"
        command = ["chromium", *options, profile, f"--screenshot={picture}", page.as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        _keep(Image.open(picture), "page")
    frames = Frames(root=out / "world", version="v1.0-mini", splits=cache.spec.data.splits[-1:], max_sweeps=0)
    frame = max(frames, key=lambda frame: len(frame.boxes))
    teacher = read_results(out / "teacher" / "evaluation")
    drawn = io.BytesIO()
    plot_bev_and_cameras(frame, teacher.boxes(frame), teacher.name).savefig(drawn, dpi=80)
    _keep(Image.open(drawn), "scene")


def _keep(picture: Image.Image, name: str) -> None:
    few = picture.convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE)
    few.save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

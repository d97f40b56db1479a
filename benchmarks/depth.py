"""How to keep the depth in the cameras: images or lists, and what the steps cost: `python -m benchmarks.depth ROOT`.

ROOT holds v1.0-mini. Patches are those of the student's default input (256 x 704, stride 16), under ten draws of its
image augmentation; a bin is one of the student's depth bins.
"""

import timeit
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer
from jaxtyping import Float
from numcodecs import zstd

from benchmarks.tables import show
from cache.dumping.setup import depth_spec
from cache.geometry.camera_points import DepthSpec, decoded_points, depth_codes
from cache.nuscenes.frame import Frame
from cache.nuscenes.frames import Frames
from cache.nuscenes.points import camera_points
from cache.store.format import CHECKSUM_BYTES, pack_chunk
from student.config.student import StudentConfig
from student.data.depth_map import depth_map
from student.data.image_augment import image_matrix

Lists = list[Float[np.ndarray, "_ 3"]]
STUDENT = StudentConfig()
DRAWS = 10
REPEATS = 20


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Of two ways to the same depth maps, as fractions of the patches that have a depth."""

    patches: float
    """More than a step apart."""
    bins: float
    largest_m: float
    """Where only one of the ways has a depth, all of it."""


def main(data: Path, split: str = "mini_train") -> None:
    """Compare the ways on the first frame of a split."""
    frame = Frames(root=data, version="v1.0-mini", splits=(split,))[0]
    points, spec = camera_points(frame), depth_spec(frame)
    rows = [("LiDAR file, projected", "", f"{1e3 * _seconds(lambda: camera_points(frame)):.2f}", "", "", "")]
    rows.append(("uint16 images", *_stored(_images(frame, points, spec)), "", "", ""))
    for finer in (1, 2, 4):
        coarse = spec.model_copy(update={"pixel_step": spec.pixel_step * finer})
        codes = depth_codes(points, coarse)
        lost = difference(points, decoded_points(codes, coarse), frame)
        figures = f"{lost.patches:.2%}", f"{lost.bins:.2%}", f"{lost.largest_m:.1f}"
        rows.append((f"lists {str(coarse).partition(', ')[2]}", *_stored(codes), *figures))
    columns = ("", "bytes a sample", "read, ms", "patches that differ", "bins that differ", "largest, m")
    show(f"{sum(map(len, points)):,} points in {len(points)} images", columns, rows)


def difference(live: Lists, stored: Lists, frame: Frame) -> Difference:
    """Over the draws of the augmentation."""
    apart, known, bins = [], 0, 0
    nearest_m, _, bin_m = STUDENT.detector.depth_m
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        matrices = [image_matrix(STUDENT.image, camera.size, rng) for camera in frame.cameras]
        ours, theirs = (
            depth_map([p[p[:, 2] > nearest_m] for p in lists], matrices, STUDENT) for lists in (stored, live)
        )
        apart.append(np.abs(ours - theirs).ravel())
        known += int((theirs > 0).sum())
        bins += int((np.floor((ours - nearest_m) / bin_m) != np.floor((theirs - nearest_m) / bin_m)).sum())
    differences_m = np.concatenate(apart)
    return Difference(
        patches=float((differences_m > 0.005).sum() / known), bins=bins / known, largest_m=float(differences_m.max())
    )


def _images(frame: Frame, points: Lists, spec: DepthSpec) -> np.ndarray:
    """The nearest depth of each original pixel, in the lists' step."""
    images = np.zeros((len(points), *frame.cameras[0].size), np.uint16)
    for image, seen in zip(images, points, strict=True):
        far_first = seen[np.argsort(-seen[:, 2])]
        columns, rows = np.floor(far_first[:, :2] + 0.5).astype(int).T
        image[rows, columns] = np.round(far_first[:, 2] / spec.depth_step_m)
    return images


def _stored(values: np.ndarray) -> tuple[str, str]:
    """Bytes as a chunk, and milliseconds to decompress it."""
    packed, out = pack_chunk(values, 1), np.empty_like(values)
    seconds = _seconds(lambda: zstd.decompress(packed[:-CHECKSUM_BYTES], out))
    return f"{len(packed):,}", f"{1e3 * seconds:.2f}"


def _seconds(work: Callable[[], object]) -> float:
    """The median of some runs."""
    return float(np.median(timeit.repeat(work, number=1, repeat=REPEATS)))


if __name__ == "__main__":
    typer.run(main)

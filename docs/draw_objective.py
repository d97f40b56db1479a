"""Draw the pictures of docs/objective.md: `python docs/draw_objective.py`.

Without options, from made-up boxes; with --store and --data, from a teacher's cache and the boxes of one of its frames:

    python docs/draw_objective.py --store demo-output/teacher.zarr --data demo-output/world --out pictures
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from cache import BevGrid, Frames, TeacherCache
from student.distill import draw_heatmaps, pad_boxes
from student.distill.attention import joint_attention
from student.distill.cell_weights import CellWeightConfig, weigh_cells
from student.distill.regions import false_positives, max_over_classes, region_decomposition, resize_map
from student.visualization import plot_cells, plot_regions

IMAGES = Path(__file__).parent / "images"
GRID = BevGrid(x_range_m=(-25.6, 25.6), y_range_m=(-25.6, 25.6), cell_m=(0.8, 0.8))
# A street along y: x, y, length, width, yaw_rad. The last three are predicted by a network only.
OBJECTS = (
    (-3.2, -18.0, 4.6, 1.9, 1.57),
    (-3.4, -9.0, 4.4, 1.9, 1.60),
    (-3.0, 6.0, 11.2, 2.9, 1.55),
    (3.4, -12.0, 4.7, 2.0, -1.57),
    (3.2, 2.5, 6.9, 2.4, -1.50),
    (3.8, 16.5, 4.5, 1.9, -1.20),
    (12.0, 9.0, 4.6, 1.9, 0.30),
    (-10.5, 1.0, 0.8, 0.8, 0.0),
    (-10.2, 13.0, 0.7, 0.7, 0.0),
    (9.5, -4.0, 1.9, 0.8, 1.2),
    (-15.0, -14.0, 4.5, 1.9, 0.6),
    (15.5, -17.0, 4.4, 1.8, 1.0),
    (-17.0, 19.0, 9.0, 2.6, 0.2),
)
PREDICTED_ONLY = 3
MISSED = 2


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One frame: ground truth, and a network's predictions."""

    grid: BevGrid
    boxes: Float[Tensor, "M 9"]
    predicted: Float[Tensor, "1 H W"]
    occupied: Bool[Tensor, "1 H W"]
    energy: Float[Tensor, "1 H W"]
    """Mean over channels of the absolute features."""


def made_up() -> Scene:
    """The street above."""
    rows = [[x, y, 0.0, length, width, 1.6, yaw, 0.0, 0.0] for x, y, length, width, yaw in OBJECTS]
    everything = torch.tensor(rows, dtype=torch.float64)
    predicted = drawn(everything[MISSED:], GRID)
    torch.manual_seed(0)
    return Scene(
        grid=GRID,
        boxes=everything[:-PREDICTED_ONLY],
        predicted=predicted,
        occupied=(torch.rand(1, *GRID.shape) < 0.25) & (torch.from_numpy(GRID.centers_m()[..., 0]) > 10),
        energy=0.4 + 1.5 * predicted + 0.1 * torch.rand(1, *GRID.shape),
    )


def cached(store: Path, data: Path, token: str | None) -> Scene:
    """A frame of a cache; the first one unless a token is given."""
    cache = TeacherCache(store)
    sample, grid = cache[token or cache.tokens[0]], cache.spec.heatmap_grid
    frames = Frames(root=data, version=cache.spec.data.version, splits=cache.spec.data.splits, max_sweeps=0)
    return Scene(
        grid=grid,
        boxes=torch.from_numpy(frames[sample.token].boxes).double(),
        predicted=max_over_classes(sample.heatmap[:1]) / 255,
        occupied=resize_map(sample.canvas_mask[:1].float(), grid.shape) > 0,
        energy=resize_map(sample.features["head"].decode()[:1].abs().mean(dim=1), grid.shape),
    )


def drawn(boxes: Float[Tensor, "M 9"], grid: BevGrid) -> Float[Tensor, "1 H W"]:
    """The boxes' heatmap, all classes in one."""
    return draw_heatmaps(pad_boxes((boxes,)), torch.zeros(1, len(boxes), dtype=torch.long), 1, grid)[:, 0]


def draw(scene: Scene, out: Path) -> None:
    """Write regions.png and masks.png."""
    out.mkdir(parents=True, exist_ok=True)
    truth = drawn(scene.boxes, scene.grid)
    regions = region_decomposition(scene.predicted, truth, threshold=0.1)
    plot_regions(regions, scene.grid, scene.boxes).savefig(out / "regions.png", dpi=110)
    config = CellWeightConfig()
    mistakes = false_positives("teacher", scene.predicted, scene.predicted, truth, threshold=0.1)
    cells = weigh_cells(config, scene.boxes[None], scene.grid, false_positives=mistakes, occupied=scene.occupied)
    attention = joint_attention("teacher", scene.energy, scene.energy, temperature=0.5)
    plot_cells(cells, attention, scene.grid, scene.boxes).savefig(out / "masks.png", dpi=110)


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="a teacher's cache")
    parser.add_argument("--data", type=Path, help="the nuScenes root of its frames")
    parser.add_argument("--token", help="the frame; the store's first without it")
    parser.add_argument("--out", type=Path, default=IMAGES)
    options = parser.parse_args()
    if (options.store is None) != (options.data is None):
        parser.error("--store and --data go together")
    draw(made_up() if options.store is None else cached(options.store, options.data, options.token), options.out)


if __name__ == "__main__":
    main()

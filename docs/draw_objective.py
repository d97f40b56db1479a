"""Draws the pictures of docs/objective.md from made-up boxes: `python docs/draw_objective.py`."""

from pathlib import Path

import torch

from cache.grid import BevGrid
from student.distill.attention import joint_attention
from student.distill.boxes import draw_heatmaps, pad_boxes
from student.distill.fgd import weigh_cells
from student.distill.plots import plot_cells, plot_regions
from student.distill.regions import false_positives, region_decomposition
from student.distill.term_configs import FgdTerm

IMAGES = Path(__file__).parent / "images"
GRID = BevGrid(x_range_m=(-25.6, 25.6), y_range_m=(-25.6, 25.6), cell_m=(0.8, 0.8))
# A street along y: x, y, length, width, yaw_rad. The last three are seen by a network only.
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
SEEN_ONLY = 3
OVERLOOKED = 2


def main() -> None:
    """Write images/regions.png and images/masks.png."""
    rows = [[x, y, 0.0, length, width, 1.6, yaw, 0.0, 0.0] for x, y, length, width, yaw in OBJECTS]
    everything = torch.tensor(rows, dtype=torch.float64)
    boxes, seen = everything[:-SEEN_ONLY], everything[OVERLOOKED:]
    truth, predicted = (
        draw_heatmaps(pad_boxes((part,)), torch.zeros(1, len(part), dtype=torch.long), 1, GRID)[:, 0]
        for part in (boxes, seen)
    )
    IMAGES.mkdir(exist_ok=True)
    regions = region_decomposition(predicted, truth, threshold=0.1)
    plot_regions(regions, GRID, boxes).savefig(IMAGES / "regions.png", dpi=110)

    config = FgdTerm(kind="fgd", false_positives="teacher", fp_weight=0.06, non_empty_weight=0.02)
    torch.manual_seed(0)
    occupied = (torch.rand(1, *GRID.shape) < 0.25) & (torch.from_numpy(GRID.centers_m()[..., 0]) > 10)
    mistaken = false_positives("teacher", predicted, predicted, truth, threshold=0.1)
    cells = weigh_cells(config, boxes[None], GRID, answered=mistaken, occupied=occupied)
    energy = 0.4 + 1.5 * predicted + 0.1 * torch.rand(1, *GRID.shape)
    attention = joint_attention("teacher", energy, energy, temperature=0.5)
    plot_cells(cells, attention, GRID, boxes).savefig(IMAGES / "masks.png", dpi=110)


if __name__ == "__main__":
    main()

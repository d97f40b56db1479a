"""Cost of a warp: `python -m benchmarks.warp [--threads N] [--rounds N] [--device cuda]`.

Features of 8 x 384 x 128 x 128, each sample under a rotation, a scale and perhaps a flip of its own, all candidates
in turn in one run. The baseline is one bilinear `grid_sample` of the same features in float32 at given positions; the
others compute them. Then the height of peaks after a warp, one in each of 4,096 maps, under the public augmentation.

Times and memory as in benchmarks.objective.
"""

import argparse

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.objective import measure, report
from benchmarks.tables import show
from cache.geometry.grid import BevGrid
from cache.geometry.views import PUBLIC_AUGMENT, bev_matrix
from cache.spec import CodecSpec
from cache.store.codec import Encoded
from student.distill.warp import warp, warp_max

GRID = BevGrid(x_range_m=(-51.2, 51.2), y_range_m=(-51.2, 51.2), cell_m=(0.8, 0.8))
FINE = BevGrid(x_range_m=(-54.0, 54.0), y_range_m=(-54.0, 54.0), cell_m=(0.6, 0.6))
BATCH, CHANNELS, CLASSES = 8, 384, 10


def draw_matrices(count: int) -> Tensor:
    """(count, 4, 4): inverses of public draws."""
    draws = [bev_matrix(PUBLIC_AUGMENT, np.random.default_rng(seed)) for seed in range(count)]
    return torch.linalg.inv(torch.from_numpy(np.stack(draws)))


def positions(to_source: Tensor, grid: BevGrid) -> Tensor:
    """Sample positions for grid_sample, (B, H, W, 2)."""
    unit = torch.from_numpy(grid.centers_m() / grid.x_range_m[1])
    return (unit @ to_source[:, None, :2, :2].mT).float()


def stored(grid: BevGrid, device: str, **codec: object) -> Encoded:
    """Random features as stored."""
    values = torch.randint(0, 100, (BATCH, CHANNELS, *grid.shape), device=device)
    spec = CodecSpec(**codec)
    kept = values.to(torch.float16 if spec.kind == "float16" else torch.uint8)
    return Encoded(values=kept, scale=torch.rand(BATCH, CHANNELS, device=device) * 0.02, codec=spec)


def measure_peaks(count: int = 4096) -> None:
    """Print the largest value of warped maps that had a single 1."""
    rng, to_source = np.random.default_rng(0), draw_matrices(BATCH)
    maps = torch.zeros(BATCH, count // BATCH, *GRID.shape)
    cells = torch.from_numpy(rng.integers(24, 104, (2, BATCH, count // BATCH)))
    maps[torch.arange(BATCH)[:, None], torch.arange(count // BATCH), cells[0], cells[1]] = 1.0
    nearest = F.grid_sample(maps, positions(to_source, GRID), mode="nearest", align_corners=False)
    kinds = {
        "bilinear, as features": warp(maps, GRID, GRID, to_source).features,
        "the nearest cell": nearest,
        "the largest touched, warp_max": warp_max(maps, GRID, GRID, to_source).features,
    }
    rows = []
    for name, warped in kinds.items():
        heights, shown = warped.amax((2, 3)), (warped > 0).sum((2, 3)).float()
        rows.append((name, f"{heights.mean():.3f}", f"{heights.min():.3f}", f"{shown.mean():.2f}"))
    show("peaks of height 1", ("read", "mean height", "least", "cells above 0"), rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = options.device
    to_source, codes, half, fine = (
        draw_matrices(BATCH),
        stored(GRID, device),
        stored(GRID, device, kind="float16"),
        stored(FINE, device),
    )
    features = codes.decode()
    where = positions(to_source, GRID).to(device)
    heatmap = torch.randint(0, 255, (BATCH, CLASSES, *GRID.shape), dtype=torch.uint8, device=device)
    candidates = {
        "grid_sample, float32": lambda: F.grid_sample(features, where, align_corners=False),
        "warp, 8 bits": lambda: warp(codes, GRID, GRID, to_source),
        "warp, float16": lambda: warp(half, GRID, GRID, to_source),
        "warp, float32": lambda: warp(features, GRID, GRID, to_source),
        "warp, 8 bits, 180 x 180": lambda: warp(fine, FINE, GRID, to_source),
        "warp_max, 10 classes": lambda: warp_max(heatmap, GRID, GRID, to_source),
    }
    with torch.no_grad():
        title = f"{BATCH} x {CHANNELS} x 128 x 128, {options.threads} threads"
        report(title, measure(candidates, options.rounds, device), floor="grid_sample, float32")
        measure_peaks()


if __name__ == "__main__":
    main()

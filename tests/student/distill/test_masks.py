import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.errors import ConfigError
from cache.geometry.grid import BevGrid
from student.distill.boxes import pad_boxes
from student.distill.cell_weights import weigh_cells
from student.distill.gaussians import draw_heatmaps
from student.distill.masks import background, bg_scale, box_masks, extension, foreground, region_share, scales
from student.distill.regions import false_positives
from student.distill.terms.fgd import FgdTerm
from tests.factories.distill import make_box

GOLDENS = Path(__file__).parents[2] / "data" / "goldens"
GRID = BevGrid(x_range_m=(0.0, 8.0), y_range_m=(0.0, 6.0), cell_m=(1.0, 1.0))


@pytest.mark.parametrize("name", [case["name"] for case in json.loads((GOLDENS / "manifest.json").read_text())])
def test_masks_are_the_golden_ones(name: str) -> None:
    grid = BevGrid(x_range_m=(-12.8, 12.8), y_range_m=(-12.8, 12.8), cell_m=(0.8, 0.8))
    with np.load(GOLDENS / f"{name}.npz") as arrays:
        boxes = pad_boxes((torch.from_numpy(arrays["boxes0"]), torch.from_numpy(arrays["boxes1"])))
        masks = box_masks(boxes, grid)
        assert np.array_equal(masks.foreground.numpy(), arrays["foreground_mask"][:, 0])
        np.testing.assert_allclose(masks.fg_scale.numpy(), arrays["fg_scale_mask"][:, 0], rtol=1e-6)
        scale = bg_scale(masks.foreground.sum(dim=(1, 2)), 32 * 32).expand(2, 32, 32)
        np.testing.assert_allclose(scale.numpy(), arrays["bg_scale_mask"][:, 0], rtol=1e-6)


def test_scale_is_the_root_of_the_area_ratio_of_the_first_box() -> None:
    boxes = torch.cat([make_box(2.0, 3.0, 4.0, 2.2), make_box(4.0, 3.0, 4.0, 2.2), make_box(7.5, 5.5, 0.9, 0.9)])
    masks = box_masks(pad_boxes((boxes,)), GRID)
    large, small = math.sqrt(1 / 8.8), math.sqrt(1 / 0.81)
    row = torch.tensor([large] * 6 + [0.0, 0.0])
    assert torch.allclose(masks.fg_scale[0, 2], row)
    assert torch.allclose(masks.fg_scale[0, 3], row)
    assert masks.fg_scale[0, 5, 7].item() == pytest.approx(small)
    assert masks.foreground.sum() == 13


def test_context_ring() -> None:
    # 2.2 x 2.2 covers 2 x 2 centres; two cells longer and wider, 4 x 4.
    masks = box_masks(pad_boxes((make_box(4.0, 3.0, 2.2, 2.2),)), GRID, context_cells=2.0, context_weight=0.25)
    expected = torch.zeros(6, 8)
    expected[1:5, 2:6] = 0.25
    expected[2:4, 3:5] = 1.0
    assert torch.equal(masks.foreground[0], expected)
    # Ring and inside share the root of the box's own area ratio.
    scale = math.sqrt(1 / 2.2**2)
    assert torch.allclose(masks.fg_scale[0], (expected > 0) * torch.tensor(scale))


def test_context_does_not_take_cells_from_other_boxes() -> None:
    boxes = torch.cat([make_box(2.0, 3.0, 2.2, 2.2), make_box(4.0, 3.0, 2.2, 4.2)])
    masks = box_masks(pad_boxes((boxes,)), GRID, context_cells=2.0, context_weight=0.5)
    assert masks.foreground[0, 2, 3] == 1.0
    assert masks.fg_scale[0, 2, 3].item() == pytest.approx(math.sqrt(1 / (2.2 * 4.2)))


def test_context_grows_with_the_cells_of_each_axis() -> None:
    grid = BevGrid(x_range_m=(0.0, 8.0), y_range_m=(0.0, 6.0), cell_m=(1.0, 0.5))
    masks = box_masks(pad_boxes((make_box(4.0, 3.0, 2.2, 1.1),)), grid, context_cells=2.0, context_weight=0.5)
    ring = masks.foreground[0] == 0.5
    assert ring.any(dim=1).sum() == 4
    assert ring.any(dim=0).sum() == 4


def test_no_context_around_padding() -> None:
    boxes = pad_boxes((make_box(4.0, 3.0, 2.2, 2.2), torch.zeros(0, 9)))
    masks = box_masks(boxes, GRID, context_cells=4.0, context_weight=0.5)
    assert not masks.foreground[1].any()


def test_extension_by_hand() -> None:
    # maxwh: radius 3 around cell (row 3, column 4); sigma = 7/6; share 1 / ceil(3 * 2).
    wide = extension(pad_boxes((make_box(4.5, 3.5, 3.0, 2.0),)), GRID, "maxwh")
    assert wide.gaussian[0, 3, 4] == 1.0
    assert wide.gaussian[0, 2, 6].item() == pytest.approx(math.exp(-5 / (2 * (7 / 6) ** 2)), rel=1e-6)
    assert wide.gaussian[0, 3, 0] == 0.0
    assert torch.allclose(wide.scale[0, :, 1:8], torch.tensor(1 / 6))
    assert not wide.scale[0, :, 0].any()


def test_extension_takes_the_larger_scale_where_squares_overlap() -> None:
    boxes = torch.cat([make_box(2.5, 2.5, 4.0, 2.0), make_box(3.5, 2.5, 1.0, 1.0)])
    wide = extension(pad_boxes((boxes,)), GRID, "maxwh")
    assert wide.scale[0, 2, 3] == 1.0
    assert wide.scale[0, 2, 0].item() == pytest.approx(1 / 8)


def test_extension_of_small_boxes_has_radius_2_and_maxwh_can_be_scaled() -> None:
    small = extension(pad_boxes((make_box(4.5, 3.5, 0.5, 0.5),)), GRID, "centerpoint3")
    assert (small.gaussian[0] > 0).sum() == 25
    scaled = extension(pad_boxes((make_box(4.5, 3.5, 1.6, 1.0),)), GRID, "maxwh", scale=2.0)
    assert (scaled.gaussian[0, 3] > 0).sum() == 7


def test_every_foreground_by_hand() -> None:
    inside = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    spread = torch.tensor([[[1.0, 0.5, 0.25, 0.0]]])
    expected = {
        "gt": [1.0, 1.0, 0.0, 0.0],
        "gauss": [1.0, 0.5, 0.25, 0.0],
        "extended_binary": [1.0, 1.0, 1.0, 0.0],
        "gauss_plus_extended_binary": [2.0, 1.5, 1.25, 0.0],
        "gauss_plus_extended_binary_clamp": [1.0, 1.0, 1.0, 0.0],
        "gauss_plus_binary_clamp": [1.0, 1.0, 0.1, 0.0],
        "gauss_in_gt": [1.0, 0.5, 0.0, 0.0],
        "negative_linear_gauss_in_gt": [1.0, 0.5 + 8 * 0.5, 0.0, 0.0],
    }
    for kind, values in expected.items():
        found = foreground(kind, inside, spread, gauss_weight=0.4, bg_over_fg=8.0)
        assert torch.allclose(found, torch.tensor([[values]])), kind


def test_backgrounds() -> None:
    mask = torch.tensor([[[1.0, 0.25, 0.0]]])
    assert background("logical_not", mask).tolist() == [[[0.0, 0.0, 1.0]]]
    assert background("1minus", mask).tolist() == [[[0.0, 0.75, 1.0]]]


def test_every_scale_by_hand() -> None:
    of_boxes, extended = torch.tensor([[[0.5, 0.0]]]), torch.tensor([[[0.2, 0.05]]])
    rest = torch.full((1, 1, 2), 0.1)
    expected = {
        "combine_gt": ([0.5, 0.1], [0.5, 0.1]),
        "separate_gt": ([0.5, 0.0], [0.1, 0.1]),
        "combine_extend": ([0.2, 0.1], [0.2, 0.1]),
        "separate_extend": ([0.2, 0.05], [0.1, 0.1]),
        "bg_only": ([0.1, 0.1], [0.1, 0.1]),
        "none": ([1.0, 1.0], [1.0, 1.0]),
    }
    for kind, (fg, bg) in expected.items():
        found = scales(kind, of_boxes, extended, rest)
        assert torch.allclose(found[0], torch.tensor([[fg]])), kind
        assert torch.allclose(found[1], torch.tensor([[bg]])), kind


def test_masks_beyond_boxes_need_their_extension() -> None:
    inside = torch.ones(1, 2, 2)
    with pytest.raises(ConfigError, match=r"needs their extension .foreground mask 'gauss'.\. Pass a map"):
        foreground("gauss", inside)
    with pytest.raises(ConfigError, match=r"scale mask 'combine_extend'"):
        scales("combine_extend", inside, None, inside)


def test_bg_scale_is_0_where_nothing_is_left() -> None:
    assert bg_scale(torch.tensor([0.0, 9.0, 10.0, 11.0]), 10).flatten().tolist() == pytest.approx([0.1, 1.0, 0.0, 0.0])


def test_region_share_by_sample() -> None:
    region = torch.tensor([[[True, True, False]], [[False, False, False]]])
    assert region_share(region).tolist() == [[[0.5, 0.5, 0.0]], [[0.0, 0.0, 0.0]]]


def test_masks_never_wait_for_a_device() -> None:
    # Tensors on the meta device have no values, so looking at one raises.
    boxes = torch.empty(2, 70, 9, dtype=torch.float64, device="meta")
    region = torch.empty(2, 6, 8, dtype=torch.bool, device="meta")
    for kind in ("gt", "gauss"):
        scale = "combine_gt" if kind == "gt" else "combine_extend"
        config = FgdTerm(kind="fgd", foreground_mask=kind, scale_mask=scale, context_cells=2.0, context_weight=0.5)
        cells = weigh_cells(config, boxes, GRID, false_positives=region, occupied=region)
        assert cells.foreground.shape == cells.false_positive.shape == (2, 6, 8)
    channels = torch.empty(2, 70, dtype=torch.long, device="meta")
    assert draw_heatmaps(boxes, channels, 10, GRID).shape == (2, 10, 6, 8)
    heat = torch.empty(2, 6, 8, device="meta")
    assert false_positives("teacher+teacher_selected_student", heat, heat, heat, 0.1).shape == (2, 6, 8)

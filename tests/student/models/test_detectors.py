from dataclasses import replace

import pytest
import torch
from torch import Tensor

from cache.errors import ConfigError
from cache.geometry.grid import BevGrid
from student.config.student import DetectorConfig, HeadConfig
from student.data.batch import Batch
from student.distill.head_maps import HEAD_MAPS
from student.models.detectors import BevDetector, StudentOutput, build_detector
from tests.factories.detectors import NAMES, batch_of, small


def built(config: DetectorConfig, seed: int = 0) -> BevDetector:
    torch.manual_seed(seed)
    return build_detector(config)


@pytest.mark.parametrize(("name", "depth_net"), [*((name, "aspp") for name in NAMES), ("bevdepth4d", "dcn")])
def test_every_detector_trains_all_its_weights(name: str, depth_net: str) -> None:
    detector = built(small(name, depth_net=depth_net, depth_channels=8))
    batch = batch_of(detector.times)
    assert detector.times == (2 if name.endswith("4d") else 1)
    output = detector(batch)
    assert {layer: tuple(m.shape) for layer, m in output.features.items()} == {
        "backbone0": (2, 8, 16, 8),
        "backbone1": (2, 16, 8, 4),
        "backbone2": (2, 32, 4, 2),
        "head": (2, 16, 32, 16),
    }
    assert output.heatmap.shape == (2, 10, 32, 16)
    assert {n: tuple(m.shape) for n, m in output.head_maps.items()} == {
        n: (2, 6, w, 32, 16) for n, w in HEAD_MAPS.items()
    }
    losses = detector.losses(output, batch)
    supervised = name.startswith("bevdepth")
    assert (output.depth is not None) is supervised
    assert set(losses) == {"heatmap", "boxes"} | ({"depth"} if supervised else set())
    sum(losses.values()).backward()
    for parameter_name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    assert len(detector.eval().detect(detector(batch))) == 2


def test_terms_are_weighted_by_the_configuration() -> None:
    head = HeadConfig(shared_channels=16, heatmap_weight=2.0, boxes_weight=0.5)
    batch = batch_of()
    plain, heavy = built(small()), built(small(head=head, depth_weight=30.0))
    output = plain(batch)
    ours, theirs = plain.losses(output, batch), heavy.losses(output, batch)
    assert {name: round((theirs[name] / ours[name]).item(), 4) for name in ours} == {
        "heatmap": 2,
        "boxes": 2,
        "depth": 10,
    }


def test_a_student_learns_two_boxes() -> None:
    detector, batch = built(small()), batch_of(samples=1)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=3e-3)
    totals = []
    for _ in range(14):
        losses = detector.losses(detector(batch), batch)
        total = losses["heatmap"] + losses["boxes"]
        optimizer.zero_grad()
        (total + losses["depth"]).backward()
        torch.nn.utils.clip_grad_norm_(detector.parameters(), 5.0)
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.2 * totals[0]
    for found in detector.detect(detector(batch)):
        best = found.scores.argsort(descending=True)[:2]
        assert sorted(found.labels[best].tolist()) == [0, 8]


def test_detections_are_decoded_with_the_configured_rules() -> None:
    detector = built(small()).eval()
    batch = batch_of(samples=1)
    output = detector(batch)
    heatmap = torch.full_like(output.heatmap, -20.0)
    heatmap[0, 3, 10, 5] = 3.0  # a bus
    (found,) = detector.detect(replace(output, heatmap=heatmap))
    assert found.labels.tolist() == [3]
    assert found.scores.item() == pytest.approx(torch.tensor(3.0).sigmoid().item())
    reg = output.head_maps["reg"][0, 2, :, 10, 5]
    torch.testing.assert_close(found.boxes[0, 0], -6.4 + 0.8 * (5 + reg[0].detach()))


def bev_of_times(detector: BevDetector, batch: Batch) -> Tensor:
    """What the BEV encoder is given: the times' maps side by side."""
    inputs_of_backbone: list[Tensor] = []
    hook = detector.bev_backbone.register_forward_pre_hook(lambda _, inputs: inputs_of_backbone.append(inputs[0]))
    detector(batch)
    hook.remove()
    return inputs_of_backbone[0].detach()


def shifted(batch: Batch, metres: float) -> Batch:
    """The car drove so far ahead (+y) since the earlier time; what stood ahead has come nearer."""
    to_current = batch.to_current.clone()
    to_current[:, 1, 1, 3] = -metres
    return replace(batch, to_current=to_current)


@pytest.mark.parametrize("name", ["bevdet4d", "bevdepth4d"])
def test_a_standing_car_sees_the_same_twice(name: str) -> None:
    detector = built(small(name)).eval()
    batch = batch_of(times=2)
    batch = replace(batch, images=batch.images[:, :1].expand(-1, 2, -1, -1, -1, -1))
    now, before = bev_of_times(detector, batch).split(8, dim=1)
    assert now.abs().max() > 0
    torch.testing.assert_close(before, now, atol=1e-4, rtol=1e-4)


def test_the_earlier_map_moves_against_the_car() -> None:
    detector = built(small("bevdepth4d")).eval()
    batch = batch_of(times=2)
    standing = bev_of_times(detector, batch)[:, 8:]
    driven = bev_of_times(detector, shifted(batch, 1.6))[:, 8:]
    torch.testing.assert_close(driven[:, :, :-2], standing[:, :, 2:], atol=1e-4, rtol=1e-4)
    assert not driven[:, :, -2:].any()


def test_no_gradient_flows_into_the_past() -> None:
    detector = built(small("bevdepth4d"))
    batch = batch_of(times=2)
    inputs: list[Tensor] = []
    detector.bev_backbone.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    output = detector(batch)
    assert output.depth is not None and output.depth.shape == (2, 6, 11, 4, 6)
    graph = [edge for edge, _ in inputs[0].grad_fn.next_functions]  # type: ignore[union-attr]
    assert [edge is not None for edge in graph] == [True, False]


def test_more_history_means_more_maps() -> None:
    detector = built(small("bevdepth4d", history=3))
    assert detector.times == 4
    assert bev_of_times(detector, batch_of(times=4)).shape == (2, 32, 32, 16)


def test_flipping_the_bev_space_flips_the_map() -> None:
    detector = built(small("bevdet")).eval()
    batch = batch_of()
    mirror = torch.diag(torch.tensor([-1.0, 1, 1, 1])).repeat(2, 1, 1)
    straight = bev_of_times(detector, batch)
    mirrored = bev_of_times(detector, replace(batch, bev_matrix=mirror))
    assert straight.abs().max() > 0
    torch.testing.assert_close(mirrored, straight.flip(-1), atol=1e-4, rtol=1e-4)


def test_mixed_precision_trains_too() -> None:
    detector, batch = built(small("bevdepth4d")), batch_of(times=2)
    with torch.autocast("cpu", torch.bfloat16):
        losses = detector.losses(detector(batch), batch)
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()


def test_the_same_seed_gives_the_same_detector() -> None:
    batch = batch_of()
    first, second = (built(small(), seed=7).eval()(batch) for _ in range(2))
    assert isinstance(first, StudentOutput)
    assert torch.equal(first.heatmap, second.heatmap)


def test_a_grid_that_cannot_be_halved_three_times_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"got 20 x 20 cells; expected multiples of 8"):
        DetectorConfig(grid=BevGrid(x_range_m=(-8.0, 8.0), y_range_m=(-8.0, 8.0), cell_m=(0.8, 0.8)))


@pytest.mark.parametrize("depth_m", [(1.0, 60.0, 0.7), (1.0, 60.0, 0.0), (5.0, 5.0, 1.0), (0.0, 60.0, 1.0)])
def test_depth_bins_that_do_not_fill_their_range_are_refused(depth_m: tuple[float, float, float]) -> None:
    with pytest.raises(ConfigError, match=r"not a whole number of bins \(detector.depth_m\); got .* in bins of"):
        DetectorConfig(depth_m=depth_m)


def test_the_defaults_are_the_public_sizes() -> None:
    config = DetectorConfig()
    assert (config.grid.shape, config.depth_bins, config.times) == ((128, 128), 59, 1)
    assert config.bin_depths_m[:2] == (1.0, 2.0) and config.bin_depths_m[-1] == 59.0
    assert DetectorConfig(depth_m=(1.0, 60.0, 0.1)).depth_bins == 590


@pytest.mark.long
def test_a_full_size_step() -> None:
    """BEVDepth R50, 256 x 704, 128 x 128 cells, one sample: a step of about a minute on one core, 4 GB."""
    detector = built(DetectorConfig())
    batch = batch_of(samples=1)
    pixels = torch.randint(0, 256, (1, 1, 6, 3, 256, 704), dtype=torch.uint8)
    batch = replace(batch, images=pixels, depth_m=torch.rand(1, 6, 16, 44) * 60)
    output = detector(batch)
    sum(detector.losses(output, batch).values()).backward()
    assert output.features["head"].shape == (1, 256, 128, 128)
    assert all(parameter.grad is not None for parameter in detector.parameters())

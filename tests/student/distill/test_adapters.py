import numpy as np
import pytest
import torch
from torch import nn

from cache.errors import MismatchError
from cache.geometry.grid import BevGrid
from student.distill.adapters import AdapterConfig, adapted_grid, build_adapter, changes_channels

GRID = BevGrid(x_range_m=(-8.0, 8.0), y_range_m=(-4.0, 4.0), cell_m=(1.0, 1.0))
KINDS = {
    "identity": 1,
    "1x1conv": 1,
    "3x3conv": 1,
    "mlp": 1,
    "2layer": 1,
    "3layer": 1,
    "orthogonal": 1,
    "upsample": 2,
    "upsample_1x1conv": 2,
    "upsample_2layer": 2,
    "upsample_orthogonal": 2,
    "upsample_3layer": 4,
    "downsample_2layer": 2,
    "downsample_3layer": 4,
    "avgpool": 2,
    "avgpool_1x1conv": 2,
    "avgpool_3layer": 4,
    "maxpool": 2,
    "maxpool_1x1conv": 4,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_adapter_gives_the_channels_and_cells_that_it_promises(kind: str) -> None:
    config = AdapterConfig(kind=kind, factor=KINDS[kind])
    out = 5 if changes_channels(config) else 3
    adapted = build_adapter(config, 3, out)(torch.randn(2, 3, *GRID.shape))
    assert adapted.shape == (2, out, *adapted_grid(config, GRID, "here").shape)
    assert adapted_grid(config, GRID, "here").x_range_m == GRID.x_range_m


@pytest.mark.parametrize(("kind", "convolutions"), [("2layer", 2), ("3layer", 3), ("downsample_3layer", 3), ("mlp", 2)])
def test_layered_adapters_have_that_many_convolutions(kind: str, convolutions: int) -> None:
    config = AdapterConfig(kind=kind, factor=KINDS[kind])
    modules = list(build_adapter(config, 3, 5).modules())
    assert sum(isinstance(module, nn.Conv2d) for module in modules) == convolutions


def test_upsampling_keeps_every_cell_where_it_lies_in_metres() -> None:
    # A map whose value is its centre's x stays that, away from the border where there is nothing to interpolate.
    x = torch.from_numpy(GRID.centers_m()[..., 0]).float()[None, None]
    fine = build_adapter(AdapterConfig(kind="upsample", factor=4), 1, 1)(x)[0, 0]
    expected = GRID.resized((32, 64)).centers_m()[..., 0]
    np.testing.assert_allclose(fine[:, 2:-2].numpy(), expected[:, 2:-2], atol=1e-6)


def test_pools_by_hand() -> None:
    features = torch.arange(8.0).view(1, 1, 2, 4)
    assert build_adapter(AdapterConfig(kind="avgpool", factor=2), 1, 1)(features).tolist() == [[[[2.5, 4.5]]]]
    assert build_adapter(AdapterConfig(kind="maxpool", factor=2), 1, 1)(features).tolist() == [[[[5.0, 7.0]]]]


def test_cells_that_do_not_divide_are_refused() -> None:
    with pytest.raises(MismatchError, match=r"'avgpool' cannot merge the cells \(head\); got 8 x 16 cells"):
        adapted_grid(AdapterConfig(kind="avgpool", factor=3), GRID, "head")


def test_the_grid_before_an_adapter() -> None:
    for kind in ("upsample", "avgpool", "downsample_2layer"):
        adapter = AdapterConfig(kind=kind, factor=2)
        assert adapted_grid(adapter, adapted_grid(adapter, GRID, "head", inverse=True), "head").shape == GRID.shape
    assert adapted_grid(AdapterConfig(kind="1x1conv"), GRID, "head", inverse=True).shape == GRID.shape
    with pytest.raises(MismatchError, match=r"'upsample' cannot merge the cells \(head\); got 8 x 16 cells"):
        adapted_grid(AdapterConfig(kind="upsample", factor=3), GRID, "head", inverse=True)


@pytest.mark.parametrize(("channels", "out"), [(6, 4), (4, 6), (5, 5)])
def test_an_orthogonal_adapter_keeps_lengths_or_projects(channels: int, out: int) -> None:
    torch.manual_seed(0)
    adapter = build_adapter(AdapterConfig(kind="orthogonal"), channels, out)
    weight = adapter.projection.weight.detach()
    short = weight @ weight.T if out <= channels else weight.T @ weight
    torch.testing.assert_close(short, torch.eye(len(short)), atol=1e-5, rtol=0)
    maps = torch.randn(2, channels, 3, 5)
    torch.testing.assert_close(adapter(maps), torch.einsum("oc,bchw->bohw", weight, maps))
    torch.nn.init.constant_(adapter.scale, 2.0)
    torch.nn.init.constant_(adapter.bias, 1.0)
    torch.testing.assert_close(adapter(maps), 2 * torch.einsum("oc,bchw->bohw", weight, maps) + 1)


def test_an_orthogonal_adapter_stays_so_while_it_is_trained() -> None:
    torch.manual_seed(0)
    adapter = build_adapter(AdapterConfig(kind="upsample_orthogonal", factor=2), 4, 6)
    optimizer = torch.optim.SGD(adapter.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        adapter(torch.ones(1, 4, 2, 2)).square().sum().backward()
        optimizer.step()
    weight = adapter[1].projection.weight
    torch.testing.assert_close(weight.T @ weight, torch.eye(4), atol=1e-5, rtol=0)

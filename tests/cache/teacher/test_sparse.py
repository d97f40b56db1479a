"""Sparse convolutions: kernels of either layout load exactly, and the CPU's threads do not lose sums."""

import tomllib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cache.errors import TeacherError
from cache.teacher.base import TeacherInput
from cache.teacher.checkpoint import load_weights, weights_sha256
from cache.teacher.mmdet3d import Mmdet3dTeacher, load_teacher
from cache.teacher.sparse import (
    in_layout,
    one_thread,
    possible_layouts,
    run_in_one_thread,
    spconv_extra,
    training_on_cpu,
)
from cache.teacher.state_dict import load_state_dict

VOXEL = str(Path(__file__).parents[2] / "data" / "teachers" / "voxel.py")


class SparseConvolution(nn.Module):
    """As spconv 2's: a kernel of (out, k, k, k, in)."""

    def __init__(self, inputs: int, outputs: int, k: int = 3) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(float(inputs * outputs * k**3)).reshape(outputs, k, k, k, inputs))


def spconv1(kernel: Tensor) -> Tensor:
    """(out, k, k, k, in) -> (k, k, k, in, out), the axes written out."""
    return kernel.permute(1, 2, 3, 4, 0)


def test_layouts_are_told_by_their_shapes() -> None:
    own = SparseConvolution(4, 8)
    assert possible_layouts(own, {"weight": own.weight}) == {"spconv2"}
    assert possible_layouts(own, {"weight": spconv1(own.weight)}) == {"spconv1"}
    assert possible_layouts(own, {"weight": torch.zeros(8, 3, 3, 3, 5)}) == set()
    assert torch.equal(in_layout(spconv1(own.weight), "spconv1", "spconv2"), own.weight)
    assert torch.equal(in_layout(own.weight, "spconv2", "spconv1"), spconv1(own.weight))


@pytest.mark.parametrize("change", [spconv1, lambda kernel: kernel])
def test_kernels_of_either_layout_load_exactly(change) -> None:
    trained, fresh = SparseConvolution(4, 8), SparseConvolution(4, 8)
    nn.init.zeros_(fresh.weight)
    assert not load_state_dict(fresh, {"weight": change(trained.weight.detach())})
    assert torch.equal(fresh.weight, trained.weight)


def test_a_cube_of_equal_axes_needs_the_files_version() -> None:
    trained = SparseConvolution(3, 3)
    weights = {"weight": spconv1(trained.weight.detach())}
    undecided = load_state_dict(SparseConvolution(3, 3), weights)
    assert str(undecided) == "1 sparse kernels in the layout of spconv 1 or of spconv 2: weight"
    fresh = SparseConvolution(3, 3)
    assert not load_state_dict(fresh, weights, {"": {"version": 1}})
    assert torch.equal(fresh.weight, trained.weight)


class Forgetful(nn.Module):
    """A module whose own loading leaves its weight as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))

    def _load_from_state_dict(self, *_: object) -> None: ...


def test_values_that_did_not_arrive_are_reported() -> None:
    assert load_state_dict(Forgetful(), {"weight": torch.ones(2)}).unequal == ("weight",)


class Refusing(Forgetful):
    """A module that refuses what fits."""

    def _load_from_state_dict(self, state, prefix, meta, strict, missing, unexpected, errors) -> None:
        errors.append("no, thank you")


def test_an_error_without_another_shape_is_not_swallowed() -> None:
    assert "1 refused: " in str(load_state_dict(Refusing(), {"weight": torch.ones(2)}))
    assert "no, thank you" in str(load_state_dict(Refusing(), {"weight": torch.ones(2)}))


def test_one_thread_within_and_as_many_as_before_afterwards() -> None:
    class Encoder(nn.Module):
        def forward(self, features: Tensor) -> int:
            return torch.get_num_threads()

    encoder = Encoder()
    run_in_one_thread(encoder)
    torch.set_num_threads(2)
    try:
        assert encoder(torch.zeros(1)) == 1
        with pytest.raises(ZeroDivisionError), one_thread():
            1 / 0  # noqa: B018
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("cuda", "extra"), [(None, "voxel"), ("11.8", "voxel-cu118"), ("12.5", "voxel-cu124"), ("13.0", "voxel-cu126")]
)
def test_the_extra_that_fits_torch(cuda: str | None, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert spconv_extra() == extra
    extras = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert extra in extras["optional-dependencies"]


# With spconv itself


def test_spconv_computes_torchs_own_convolution_and_gradient() -> None:
    """All voxels of a block are set, so that the dense convolution is the same."""
    sparse = pytest.importorskip("spconv.pytorch", reason="spconv is not installed (make setup WITH=voxel)")
    from spconv.pytorch import ops

    torch.manual_seed(0)
    side = torch.arange(6)
    coors = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), side, side, side).int()
    features = torch.randn(len(coors), 4)
    layer = sparse.SparseConv3d(4, 8, 3, stride=2, padding=1, bias=False)
    weight = layer.weight.detach().permute(0, 4, 1, 2, 3).clone().requires_grad_()
    dense = torch.nn.functional.conv3d(features.reshape(1, 6, 6, 6, 4).movedim(-1, 1), weight, stride=2, padding=1)
    asked = ops.get_current_stream
    with training_on_cpu():
        ours = layer(sparse.SparseConvTensor(features.requires_grad_(), coors, [6, 6, 6], 1)).dense()
        ours.square().sum().backward()
    assert ops.get_current_stream is asked
    dense.square().sum().backward()
    torch.testing.assert_close(ours, dense)
    torch.testing.assert_close(layer.weight.grad, weight.grad.permute(0, 2, 3, 4, 1), rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def voxel_teacher() -> Mmdet3dTeacher:
    pytest.importorskip("spconv", reason="spconv is not installed (make setup WITH=voxel)")
    return load_teacher(VOXEL, None)


def test_the_sparse_encoders_own_output_is_a_layer(voxel_teacher: Mmdet3dTeacher) -> None:
    shapes = {name: grid.shape for name, grid in voxel_teacher.layer_grids.items()}
    assert shapes == {"head": (40, 40), "backbone0": (40, 40), "backbone1": (20, 20), "middle": (40, 40)}
    assert voxel_teacher.canvas_grid.shape == (320, 320)


def files(network: nn.Module) -> dict[str, dict]:
    """The kinds of checkpoints that one voxel detector's weights come in."""
    state = network.state_dict()
    sparse = {name for name, value in state.items() if value.dim() == 5}
    old = OrderedDict((name, spconv1(v).contiguous() if name in sparse else v) for name, v in state.items())
    return {
        "mmengine, spconv 2, with versions": {"state_dict": state, "meta": {}},
        "without versions": {"state_dict": dict(state), "meta": {}},
        "stripped of module.": {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        "spconv 1, without versions": {"state_dict": dict(old), "meta": {}},
        "a plain state dict": dict(state),
    }


@pytest.mark.parametrize("kind", list(files(nn.Module())))
def test_each_file_of_a_voxel_detector_loads_all_its_values(
    kind: str, voxel_teacher: Mmdet3dTeacher, tmp_path: Path
) -> None:
    torch.save(files(voxel_teacher.network)[kind], tmp_path / "w.pth")
    loaded = load_teacher(VOXEL, tmp_path / "w.pth", random_seed=5)
    assert loaded.identity.weights_sha256 == voxel_teacher.identity.weights_sha256 == weights_sha256(loaded.network)


def test_kernels_of_other_channels_are_refused(voxel_teacher: Mmdet3dTeacher, tmp_path: Path) -> None:
    state = dict(voxel_teacher.network.state_dict())
    name = "pts_middle_encoder.conv_input.0.weight"
    state[name] = torch.zeros(16, 3, 3, 3, 4)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(TeacherError, match=rf"another detector .*of another shape: {name} \(16, 3, 3, 3, 4\)"):
        load_weights(voxel_teacher.network, tmp_path / "w.pth")


def test_threads_do_not_change_a_voxel_teacher(voxel_teacher: Mmdet3dTeacher) -> None:
    """spconv alone differs between runs with two threads; see `one_thread`."""
    random = np.random.default_rng(0)
    points = random.uniform([-15, -15, -3, 0, 0], [15, 15, 1, 255, 0.5], (20_000, 5)).astype(np.float32)
    prepared = [voxel_teacher.prepare(TeacherInput.of_points(points))]
    expected = voxel_teacher(prepared).layers["middle"]
    torch.set_num_threads(2)
    try:
        for _ in range(5):
            assert torch.equal(voxel_teacher(prepared).layers["middle"], expected)
    finally:
        torch.set_num_threads(1)


def test_the_head_is_mmdet3ds_own(voxel_teacher: Mmdet3dTeacher) -> None:
    random = np.random.default_rng(1)
    points = random.uniform([-15, -15, -3, 0, 0], [15, 15, 1, 255, 0.5], (2000, 5)).astype(np.float32)
    network = voxel_teacher.network
    with torch.inference_mode():
        voxels = network.data_preprocessor.voxelize([torch.from_numpy(points)], None)
        _, (neck,) = network.extract_feat({"voxels": voxels}, [{}])
    ours = voxel_teacher([voxel_teacher.prepare(TeacherInput.of_points(points))]).layers["head"]
    assert torch.equal(ours, neck)

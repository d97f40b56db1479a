"""Full-size teachers on the real frame: their features are mmdet3d's own, and two dumps are equal to the byte."""

from pathlib import Path

import pytest
import torch

from benchmarks.crash import contents
from cache.config import load_yaml
from cache.dumping.config import DumpConfig
from cache.dumping.run import dump
from cache.nuscenes.frames import Frames
from cache.nuscenes.points import load_points
from cache.teacher.base import TeacherInput
from cache.teacher.mmdet3d import load_teacher
from cache.teacher.mmdet3d_config import mmdet3d_scope, read_config
from tests.factories.mmdet3d_inputs import mmdet3d_batch

pytest.importorskip("mmdet3d", reason="the teacher's libraries are not installed")
pytestmark = pytest.mark.long

CONFIGS = Path(__file__).parents[3] / "configs"
DCN = "centerpoint_pillar02_second_secfpn_head-dcn-circlenms_8xb4-cyclic-20e_nus-3d"
SHIPPED = {
    "pillar02": ("centerpoint_pillar02.yaml", []),
    "pillar02, DCN": ("centerpoint_pillar02.yaml", [f"teacher={DCN}"]),
    "voxel01": ("centerpoint_voxel01.yaml", []),
    "voxel0075": ("centerpoint_voxel0075.yaml", []),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_features_are_mmdet3ds_own_and_two_dumps_are_equal(name: str, real_frames: Frames, tmp_path: Path) -> None:
    if "voxel" in name:
        pytest.importorskip("spconv", reason="spconv is not installed (make setup WITH=voxel)")
    file, changes = SHIPPED[name]
    config = load_yaml(CONFIGS / file, DumpConfig, ["version=v1.0-mini", "splits=[mini_train]", "workers=0", *changes])
    teacher = load_teacher(config.teacher, None)
    prepared = teacher.prepare(TeacherInput.of_points(load_points(real_frames[0], teacher.points)))
    expected = own_features(config.teacher, teacher.network.state_dict(), real_frames)
    assert (teacher([prepared]).layers["head"] - expected).abs().max() == 0
    for store in "ab":
        dump(config, real_frames, teacher, tmp_path / f"{store}.zarr")
    assert contents(tmp_path / "a.zarr") == contents(tmp_path / "b.zarr")


def own_features(config: str, weights: dict[str, torch.Tensor], frames: Frames) -> torch.Tensor:
    """mmdet3d's `extract_feat` of a detector that it builds itself, after its own pipeline and preprocessor.

    With the one thread that tests have: spconv's sums on the CPU need it.
    """
    from mmdet3d.registry import MODELS

    with mmdet3d_scope():
        network = MODELS.build(read_config(config).model)
    network.load_state_dict(weights)
    network.eval()
    with torch.inference_mode():
        inputs = network.data_preprocessor(mmdet3d_batch(frames, config), False)["inputs"]
        _, (neck,) = network.extract_feat(inputs, [{}])
    return neck

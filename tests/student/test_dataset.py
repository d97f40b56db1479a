import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.errors import DataError
from cache.frames import Camera, Frames
from cache.points import load_points
from student.config import StudentConfig
from student.dataset import KEY_SWEEP_ONLY, Draw, StudentDataset, collate, project_depth, read_image

CONFIG = StudentConfig.model_validate({"image": {"size": (128, 352)}, "detector": {"image_stride": 16}})


@pytest.fixture
def camera(made_frames: Frames) -> Camera:
    return made_frames[0].cameras[1]


def test_a_batch_has_the_promised_shapes(made_frames: Frames) -> None:
    dataset = StudentDataset(made_frames, CONFIG, times=2)
    batch = collate([dataset[0], dataset[Draw(index=1, seed=(1, 2, 3))]])
    assert batch.images.shape == (2, 2, 6, 3, 128, 352)
    assert batch.images.dtype == torch.uint8
    assert batch.depth_m.shape == (2, 6, 8, 22)
    assert batch.tokens == made_frames.tokens
    assert batch.boxes[0].shape == (len(made_frames[0].boxes), 9)


def test_history_moves_with_the_ego(made_frames: Frames) -> None:
    first, second = (StudentDataset(made_frames, CONFIG, times=2)[index].to_current[0] for index in (0, 1))
    # The scene's first frame is its own history.
    torch.testing.assert_close(first, torch.eye(4).expand(2, 4, 4), atol=1e-4, rtol=0)
    moved = np.linalg.inv(made_frames[1].lidar_to_global) @ made_frames[0].lidar_to_global
    torch.testing.assert_close(second[1], torch.from_numpy(moved).float(), atol=1e-4, rtol=1e-4)
    assert second[1, :2, 3].norm() > 0.5


def test_a_seed_decides_every_draw(made_frames: Frames) -> None:
    dataset = StudentDataset(made_frames, CONFIG)
    same, again, other = (dataset[Draw(index=0, seed=(0, 0, seed))] for seed in (5, 5, 6))
    assert torch.equal(same.images, again.images)
    assert torch.equal(same.image_matrix, again.image_matrix)
    assert not torch.equal(same.image_matrix, other.image_matrix)


def test_depth_is_the_nearest_point_of_a_patch(made_frames: Frames) -> None:
    frame, camera_index = made_frames[0], 1
    sample = StudentDataset(made_frames, CONFIG)[0]
    matrices = [matrix.double().numpy() for matrix in sample.image_matrix[0, 0]]
    depth = project_depth(frame, matrices, CONFIG)[camera_index]
    camera = frame.cameras[camera_index]
    expected: dict[tuple[int, int], float] = {}
    for point in load_points(frame, KEY_SWEEP_ONLY)[:, :3].astype(np.float64):
        x, y, z = np.linalg.solve(camera.to_lidar, [*point, 1])[:3]
        if z <= 1:
            continue
        u, v, _ = matrices[camera_index] @ camera.intrinsics @ (x / z, y / z, 1)
        row, column = int((v + 0.5) // 16), int((u + 0.5) // 16)
        if 0 <= row < 8 and 0 <= column < 22:
            expected[row, column] = min(z, expected.get((row, column), np.inf))
    assert len(expected) > 50
    assert (depth > 0).sum() == len(expected)
    for place, z in expected.items():
        assert depth[place] == pytest.approx(z, rel=1e-5)


def test_a_reduced_image_keeps_its_geometry(camera: Camera) -> None:
    full, identity = read_image(camera, scale=1.0)
    half, to_original = read_image(camera, scale=0.5)
    np.testing.assert_allclose(identity, np.eye(3))
    assert half.shape == (72, 128, 3)
    np.testing.assert_allclose(to_original @ (0, 0, 1), (0.5, 0.5, 1))
    blocks = full.reshape(72, 2, 128, 2, 3).mean(axis=(1, 3))
    assert np.abs(blocks - half).mean() < 2


def broken(camera: Camera, tmp_path: Path, content: bytes) -> Camera:
    path = tmp_path / "image.jpg"
    path.write_bytes(content)
    return replace(camera, path=path)


def test_a_truncated_image_is_refused(camera: Camera, tmp_path: Path) -> None:
    whole = camera.path.read_bytes()
    with pytest.raises(DataError, match=r"a camera image is corrupt \(.*image.jpg\); got .*truncated"):
        read_image(broken(camera, tmp_path, whole[: len(whole) // 2]), 0.5)


def test_a_file_that_is_no_image_is_refused(camera: Camera, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a camera image is corrupt"):
        read_image(broken(camera, tmp_path, b"not a picture"), 0.5)


def test_a_missing_image_is_named(camera: Camera, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a camera image is missing \(.*gone.jpg\)"):
        read_image(replace(camera, path=tmp_path / "gone.jpg"), 0.5)


def test_an_image_of_another_size_is_refused(camera: Camera, tmp_path: Path) -> None:
    shutil.copy(camera.path, tmp_path / "image.jpg")
    with pytest.raises(DataError, match=r"got 256 x 144; expected 128 x 72"):
        read_image(replace(camera, path=tmp_path / "image.jpg", size=(72, 128)), 0.5)

import numpy as np
import pytest

from cache.geometry.views import BevAugmentConfig, bev_matrix
from student.fidelity.view_sets import BevTransform


@pytest.mark.parametrize("seed", range(6))
def test_a_motion_is_what_was_drawn(seed: int) -> None:
    config = BevAugmentConfig(rotation_deg=(-44, 44), scale=(0.5, 2.0), flip_x=True, flip_y=True)
    matrix = bev_matrix(config, np.random.default_rng(seed))
    rng = np.random.default_rng(seed)
    rotation_deg, scale = rng.uniform(-44, 44), rng.uniform(0.5, 2.0)
    flip = {(0, 0): "canonical", (1, 0): "flip_x", (0, 1): "flip_y", (1, 1): "flip_xy"}
    transform = BevTransform.from_matrix(matrix)
    assert transform.rotation_deg == pytest.approx(rotation_deg, abs=1e-4)
    assert transform.scale == pytest.approx(scale)
    assert transform.flip == flip[int(rng.integers(2)), int(rng.integers(2))]

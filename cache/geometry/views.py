"""Views: passes of the teacher over moved points, and the BEV matrices that move points and boxes.

A view's matrix maps the canonical LiDAR frame to the view's BEV frame. It is stored as float32, and points are
transformed by the stored numbers, so that a student that replays a view has exactly the teacher's matrix.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from jaxtyping import Float, Int
from pydantic import Field, NonNegativeInt, model_validator

from cache.config import Strict
from cache.errors import ConfigError

Matrix = Float[np.ndarray, "4 4"]

REFLECTIONS = {
    "canonical": (1.0, 1.0),
    "flip_x": (-1.0, 1.0),
    "flip_y": (1.0, -1.0),
    "flip_xy": (-1.0, -1.0),
}
"""The signs of x and y in each view that is the same for all samples, in their order."""

ViewName = Annotated[str, Field(pattern=r"^(canonical|flip_x|flip_y|flip_xy|drawn\d+)$")]
"""A reflection's name, or "drawn" and its number."""


class BevAugmentConfig(Strict):
    """Augmentation of the BEV space as in mmdet3d (GlobalRotScaleTrans, then RandomFlip3D); off by default."""

    rotation_deg: tuple[float, float] = (0.0, 0.0)
    """Counter-clockwise about z."""
    scale: tuple[float, float] = (1.0, 1.0)
    translation_std_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Standard deviations of a normal distribution about 0, along x, y and z."""
    flip_x: bool = False
    """Negate x with probability 0.5: mmdet3d's vertical flip."""
    flip_y: bool = False
    """Negate y with probability 0.5: mmdet3d's horizontal flip."""

    @model_validator(mode="after")
    def _possible_ranges(self) -> "BevAugmentConfig":
        (least_deg, most_deg), (smallest, largest) = self.rotation_deg, self.scale
        if least_deg > most_deg or not 0 < smallest <= largest or min(self.translation_std_m) < 0:
            raise ConfigError(
                "a range of the BEV augmentation is impossible",
                got=f"rotation_deg {self.rotation_deg}, scale {self.scale}, translation_std_m {self.translation_std_m}",
                expected="ranges from low to high, scales above 0, deviations of at least 0",
                cure="Correct the range",
            )
        return self


PUBLIC_AUGMENT = BevAugmentConfig(rotation_deg=(-22.5, 22.5), scale=(0.95, 1.05), flip_x=True, flip_y=True)
"""The augmentation of the public BEVDet, BEVDepth and DistillBEV recipes."""


class DrawnViews(Strict):
    """How the drawn views of a store were drawn; part of its identity."""

    seed: NonNegativeInt = 0
    augment: BevAugmentConfig = PUBLIC_AUGMENT


class ViewsConfig(Strict):
    """Which views the teacher is run on; each costs a teacher pass and a sample's bytes."""

    canonical: bool = True
    reflections: Literal[0, 2, 4] = 0
    """2: canonical, and y negated, the flip that all of mmdet3d's nuScenes teachers were trained with. 4: x negated,
    and both, as well."""
    drawn: NonNegativeInt = 0
    """Number of views whose matrices are drawn from `augment`, for each sample separately."""
    seed: NonNegativeInt = 0
    augment: BevAugmentConfig = PUBLIC_AUGMENT

    @model_validator(mode="after")
    def _some_view(self) -> "ViewsConfig":
        if not self.names:
            raise ConfigError(
                "the dump has no view",
                where="views",
                cure="Set views.canonical to true, views.reflections to 2 or 4, or views.drawn",
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The views in their order: reflections, then drawn ones."""
        reflections = {0: ("canonical",) * self.canonical, 2: ("canonical", "flip_y"), 4: tuple(REFLECTIONS)}
        return reflections[self.reflections] + tuple(f"drawn{k}" for k in range(self.drawn))

    @property
    def drawn_views(self) -> DrawnViews | None:
        """How views are drawn; None where none is."""
        return DrawnViews(seed=self.seed, augment=self.augment) if self.drawn else None


CANONICAL = ViewsConfig()


def require_views(names: Sequence[str], drawn: DrawnViews | None) -> None:
    """Raise ConfigError unless there is a view, each once and in order, and `drawn` if and only if some are drawn."""
    fixed = [name for name in REFLECTIONS if name in names]
    ordered = fixed + [f"drawn{k}" for k in range(len(names) - len(fixed))]
    if not names or list(names) != ordered or (len(fixed) < len(names)) != (drawn is not None):
        raise ConfigError(
            "the views of a store are out of order",
            got=f"{', '.join(names) or 'none'}; drawn: {drawn}",
            expected=f"some of {', '.join(REFLECTIONS)}, then drawn0, drawn1, ... with how they were drawn",
        )


def describe_views(names: Sequence[str], drawn: DrawnViews | None) -> str:
    """The views of a store as text."""
    if drawn is None:
        return ", ".join(names)
    ranges = ", ".join(f"{name} {value}" for name, value in drawn.augment.model_dump(exclude_defaults=True).items())
    return f"{', '.join(names)}; drawn with seed {drawn.seed}: {ranges}"


def view_matrices(names: Sequence[str], drawn: DrawnViews | None, token: str) -> Float[np.ndarray, "V 4 4"]:
    """float32 (V, 4, 4), canonical LiDAR -> BEV, of a sample's views. They depend on seed, token and name alone."""
    matrices = np.empty((len(names), 4, 4), np.float32)
    for row, name in enumerate(names):
        number = re.fullmatch(r"drawn(\d+)", name)
        if number is None or drawn is None:
            matrices[row] = np.diag([*REFLECTIONS[name], 1.0, 1.0])
        else:
            key = int.from_bytes(hashlib.sha256(token.encode()).digest(), "big")
            matrices[row] = bev_matrix(drawn.augment, np.random.default_rng((drawn.seed, int(number[1]), key)))
    return matrices


def sample_label(token: str, name: str) -> str:
    """A token and its view unless canonical, for messages."""
    return token if name == "canonical" else f"{token}, view {name}"


def bev_matrix(config: BevAugmentConfig, rng: np.random.Generator | None) -> Matrix:
    """Random LiDAR -> augmented BEV: rotate, scale, translate, then negate x and y, in the public code's order.

    Args:
        rng: None for evaluation (the identity).
    """
    matrix = np.eye(4)
    if rng is None:
        return matrix
    angle_rad = np.deg2rad(rng.uniform(*config.rotation_deg))
    cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
    matrix[:2, :2] = [[cosine, -sine], [sine, cosine]]
    matrix[:3] *= rng.uniform(*config.scale)
    if any(config.translation_std_m):
        matrix[:3, 3] = rng.normal(scale=config.translation_std_m)
    if config.flip_x and rng.integers(2):
        matrix[0] *= -1
    if config.flip_y and rng.integers(2):
        matrix[1] *= -1
    return matrix


def transform_points(points: Float[np.ndarray, "N D"], matrix: Matrix) -> Float[np.ndarray, "N D"]:
    """Points (x, y, z, ...) under a view's matrix; columns after z are unchanged."""
    linear, offset_m = matrix[:3, :3].astype(np.float32), matrix[:3, 3].astype(np.float32)
    return np.concatenate([points[:, :3] @ linear.T + offset_m, points[:, 3:]], axis=1)


def transform_boxes(boxes: Float[np.ndarray, "M 9"], matrix: Matrix) -> Float[np.ndarray, "M 9"]:
    """Boxes (x, y, z, dx, dy, dz, yaw_rad, vx, vy) under a similarity of the BEV space: a `bev_matrix`."""
    linear = matrix[:3, :3]
    scale = np.cbrt(abs(np.linalg.det(linear)))
    heading = np.stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])], axis=-1) @ linear[:2, :2].T
    return np.concatenate(
        [
            boxes[:, :3] @ linear.T + matrix[:3, 3],
            boxes[:, 3:6] * scale,
            np.arctan2(heading[:, 1], heading[:, 0])[:, None],
            boxes[:, 7:9] @ linear[:2, :2].T,
        ],
        axis=1,
    ).astype(np.float32)


def nearest_view(
    realised: Float[np.ndarray, "B 4 4"], stored: Float[np.ndarray, "B V 4 4"], radius_m: float = 30.0
) -> Int[np.ndarray, "B"]:
    """The stored view of each sample with the least `residual_displacement_m` of R = realised @ inv(stored).

    One reflection is nearer than half a turn, which reflects both axes.

    Args:
        realised: each sample's BEV matrix in training.
        stored: its views' matrices: `TeacherCache.view_matrices`.
    """
    remaining = realised[:, None].astype(np.float64) @ np.linalg.inv(stored.astype(np.float64))
    return residual_displacement_m(remaining, radius_m).argmin(axis=-1)


def residual_displacement_m(matrices: Float[np.ndarray, "B V 4 4"], radius_m: float = 30.0) -> Float[np.ndarray, "B V"]:
    """Root mean square displacement of the points at `radius_m` from the origin under each matrix; 0 for the identity.

    With A and t its linear part and offset in the plane: sqrt(radius^2 ||A - I||^2 / 2 + |t|^2), Frobenius norm.
    """
    linear, offset_m = matrices[..., :2, :2] - np.eye(2), matrices[..., :2, 3]
    return np.sqrt(radius_m**2 * np.square(linear).sum(axis=(-2, -1)) / 2 + np.square(offset_m).sum(axis=-1))

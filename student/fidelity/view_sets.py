"""The views that are compared, and the BEV matrices that they are compared under."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from cache.errors import NotCachedError
from cache.geometry.views import REFLECTIONS, BevAugmentConfig, bev_matrix
from cache.spec import CacheSpec

Matrix = Float[np.ndarray, "4 4"]
MatrixSource = Literal["still", "moved", "drawn", "replayed"]
"""BEV matrices: the identity, a shift by SHIFT_M, drawn ones, or those of the store's drawn views."""
SHIFT_M = 0.05
"""A shift that changes only how points fall into the teacher's cells; a warp cannot be closer than its error."""


@dataclass(frozen=True, kw_only=True)
class ViewSet:
    """A set of views that a store could hold, as indices into the views of this one."""

    name: str
    views: tuple[int, ...]
    source: MatrixSource


def comparable_view_sets(spec: CacheSpec) -> tuple[ViewSet, ...]:
    """The view sets that a store's views allow to compare.

    Raises:
        NotCachedError: it holds neither the canonical view nor drawn ones.
    """
    index = {name: place for place, name in enumerate(spec.views)}
    drawn = tuple(place for name, place in index.items() if name not in REFLECTIONS)
    candidates: tuple[tuple[str, tuple[str, ...], MatrixSource], ...] = (
        ("no augmentation", ("canonical",), "still"),
        (f"moved by {SHIFT_M} m", ("canonical",), "moved"),
        ("canonical", ("canonical",), "drawn"),
        ("2 reflections", ("canonical", "flip_y"), "drawn"),
        ("4 reflections", tuple(REFLECTIONS), "drawn"),
    )
    sets = [
        ViewSet(name=name, views=tuple(index[view] for view in views), source=source)
        for name, views, source in candidates
        if all(view in index for view in views)
    ]
    sets += [ViewSet(name="drawn views, replayed", views=drawn, source="replayed")] if drawn else []
    if not sets:
        raise NotCachedError(
            "the store's views cannot be compared",
            got=", ".join(spec.views),
            expected="canonical or drawn views",
            cure="Dump the teacher with views.canonical",
        )
    return tuple(sets)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A BEV matrix, its number within its source, and the view sets that are compared under it."""

    matrix: Matrix
    number: int
    source: MatrixSource
    view_sets: tuple[ViewSet, ...]


def make_trials(
    sets: Sequence[ViewSet],
    views: Mapping[str, Matrix],
    augment: BevAugmentConfig,
    rngs: Sequence[np.random.Generator],
) -> Iterator[Trial]:
    """The trials of one frame, for each matrix source that a view set needs.

    Args:
        views: the frame's stored views, by name.
        augment: of the drawn matrices.
        rngs: one for each drawn matrix; as many drawn views are replayed.
    """
    identity = np.eye(4, dtype=np.float32)
    shift = identity.copy()
    shift[:2, 3] = SHIFT_M
    matrices: dict[MatrixSource, Sequence[Matrix]] = {
        "still": [identity],
        "moved": [shift],
        "drawn": [bev_matrix(augment, rng).astype(np.float32) for rng in rngs],
        "replayed": [matrix for name, matrix in views.items() if name not in REFLECTIONS][: len(rngs)],
    }
    for source, found in matrices.items():
        of_source = tuple(each for each in sets if each.source == source)
        for number, matrix in enumerate(found if of_source else ()):
            yield Trial(matrix=matrix, number=number, source=source, view_sets=of_source)


@dataclass(frozen=True, kw_only=True)
class BevTransform:
    """A BEV matrix as rotation (counter-clockwise), scale, then reflection; `flip` is a name of REFLECTIONS."""

    rotation_deg: float
    scale: float
    flip: str

    @classmethod
    def from_matrix(cls, matrix: Matrix) -> "BevTransform":
        """Decompose a matrix, with the reflection that leaves the smallest rotation."""
        linear = matrix[:2, :2].astype(np.float64)
        scale = float(np.sqrt(abs(np.linalg.det(linear))))
        found = []
        for name, signs in REFLECTIONS.items():
            turned = np.diag(signs) @ linear / scale
            if np.linalg.det(turned) > 0:
                degrees = float(np.rad2deg(np.arctan2(turned[1, 0], turned[0, 0])))
                found.append(cls(rotation_deg=degrees, scale=scale, flip=name))
        return min(found, key=lambda transform: abs(transform.rotation_deg))

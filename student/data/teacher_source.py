"""TeacherSource: what a training reads of one teacher's cache."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

from cache.geometry.views import nearest_view
from cache.store.batch import TeacherBatch
from cache.store.reader import TeacherCache
from student.config.student import DataConfig, StudentConfig


@dataclass(frozen=True, kw_only=True)
class TeacherSource:
    """A teacher's cache, and the layers that the objective compares; with the head's maps where it reads boxes."""

    cache: TeacherCache
    layers: tuple[str, ...]
    head_maps: bool = False

    @classmethod
    def open(cls, path: str | Path, config: StudentConfig, index: int = 0) -> "TeacherSource":
        """The cache with that index in `config.distill`.

        Raises:
            StoreError: the store cannot be opened.
            ConfigError: it is at a URL, and the configuration names no local cache.
        """
        boxed = config.distill is not None and index in config.distill.boxed_caches
        layers = config.teacher_layers(index)
        return cls(cache=open_cache(path, config.data), layers=layers, head_maps=boxed)

    def read(self, tokens: Sequence[str], bev_matrix: Float[Tensor, "B 4 4"]) -> TeacherBatch:
        """The samples of these tokens, still encoded, each in the view nearest to its realised BEV augmentation."""
        views = nearest_view(bev_matrix.numpy(), self.cache.view_matrices(tokens))
        return self.cache.read(tokens, layers=self.layers, views=views.tolist(), head_maps=self.head_maps)

    def fetch_ahead(self, tokens: Sequence[str], depth: bool) -> None:
        """Fetch the shards of these tokens in the background; nothing is done for a local store.

        Args:
            depth: the points in the cameras will be read as well.
        """
        self.cache.fetch_ahead(tokens, self.layers, head_maps=self.head_maps, depth=depth)

    def drawn_matrices(self, token: str) -> Float[np.ndarray, "K 4 4"]:
        """LiDAR -> BEV of the K drawn views of a sample, to be replayed as its augmentation."""
        (matrices,) = self.cache.view_matrices((token,))
        return matrices[[name.startswith("drawn") for name in self.cache.spec.views]]

    def camera_points(self, token: str, nearest_m: float) -> list[Float[np.ndarray, "_ 3"]]:
        """u, v (original pixels) and depth (metres) of the points in each camera; needs a store with depth."""
        return self.cache.camera_points(token, nearest_m)


def open_cache(path: str | Path, data: DataConfig) -> TeacherCache:
    """A store; at a URL, through the local cache that the configuration names.

    Raises:
        StoreError: the store cannot be opened.
        ConfigError: it is at a URL, and there is no local cache.
    """
    return TeacherCache(path, local_cache=data.local_cache, limit_gb=data.local_cache_gb)

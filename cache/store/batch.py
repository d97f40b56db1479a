"""What a store holds of a sample, and of a batch of them, still encoded."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.utils.data import get_worker_info

from cache.geometry.views import sample_label
from cache.spec import CacheSpec, LayerSpec
from cache.store.codec import Encoded, describe
from cache.store.layout import sample_arrays
from cache.visualization.pictures import Map, draw_maps, maps_of, thumbnails
from cache.visualization.tables import Table, card

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class TeacherSample:
    """All that the store holds of one sample: V views, as in `TeacherBatch` otherwise."""

    token: str
    views: tuple[str, ...]
    features: dict[str, Encoded]
    heatmap: UInt8[Tensor, "V K H W"]
    canvas_mask: Bool[Tensor, "V h w"]
    head_maps: dict[str, Tensor]
    view_matrix: Float[Tensor, "V 4 4"]

    def maps(self, view: int = 0) -> dict[str, Map]:
        """What there is to see, (H, W) each: each layer's energy (mean over channels of |value|), heatmap, canvas."""
        return maps_of(self.features, self.heatmap, self.canvas_mask, view)

    def plot(self, view: int = 0) -> "Figure":
        """The maps side by side; row 0 (lowest y) is at the bottom."""
        return draw_maps(self.maps(view), f"token {sample_label(self.token, self.views[view])}")

    def __repr__(self) -> str:
        return f"TeacherSample({self.token!r}: {_said(_tensors(self))})"

    def _repr_html_(self) -> str:
        table = Table(title="arrays", rows=tuple(_tensors(self).items()))
        return card(f"TeacherSample {self.token}", thumbnails(self.maps()), table.html())


@dataclass(frozen=True, kw_only=True)
class TeacherBatch:
    """The cached teacher's view of B samples, one view of each.

    features: by layer name, encoded (B, C, H, W).
    heatmap: probability * 255, all classes, (B, K, H, W).
    canvas_mask: (B, H, W).
    head_maps: the head's other maps by name, (B, T, D, H, W) float16; empty where they were not asked for.
    view_matrix: canonical LiDAR -> the BEV frame of the view, (B, 4, 4).
    """

    tokens: tuple[str, ...]
    features: dict[str, Encoded]
    heatmap: UInt8[Tensor, "B K H W"]
    canvas_mask: Bool[Tensor, "B h w"]
    head_maps: dict[str, Tensor]
    view_matrix: Float[Tensor, "B 4 4"]

    def __repr__(self) -> str:
        return f"TeacherBatch({len(self.tokens)} tokens: {_said(_tensors(self))})"

    def _repr_html_(self) -> str:
        arrays = Table(title="arrays", rows=tuple(_tensors(self).items()))
        return card(f"TeacherBatch of {len(self.tokens)} tokens", arrays.html())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "TeacherBatch":
        """The same batch on another device, still encoded."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "TeacherBatch":
        """The same batch in page-locked memory, from which a copy to a GPU does not block; DataLoader calls it."""
        return self._each(Tensor.pin_memory)

    def first(self, samples: int) -> "TeacherBatch":
        """The first samples, in the same memory."""
        return replace(self._each(lambda tensor: tensor[:samples]), tokens=self.tokens[:samples])

    def _each(self, change: Callable[[Tensor], Tensor]) -> "TeacherBatch":
        features = {
            name: replace(layer, values=change(layer.values), scale=change(layer.scale))
            for name, layer in self.features.items()
        }
        return replace(
            self,
            features=features,
            heatmap=change(self.heatmap),
            canvas_mask=change(self.canvas_mask),
            head_maps={name: change(maps) for name, maps in self.head_maps.items()},
            view_matrix=change(self.view_matrix),
        )


def empty_batch(
    spec: CacheSpec, layers: Sequence[LayerSpec], samples: int, head_maps: bool = False, pin: bool = False
) -> TeacherBatch:
    """Memory for a batch, without tokens and with values that mean nothing yet.

    Args:
        pin: Page-locked memory, from which a copy to a GPU does not block.
    """
    empty, arrays = partial(_empty, pin=pin), sample_arrays(spec)
    maps = {name: arrays[f"boxes_{name}"].shape for name in spec.head_maps} if head_maps else {}
    return TeacherBatch(
        tokens=(),
        features={
            layer.name: Encoded(
                values=empty(samples, layer.channels, *layer.grid.shape, dtype=getattr(torch, layer.codec.dtype)),
                scale=empty(samples, layer.channels).fill_(1),
                codec=layer.codec,
            )
            for layer in layers
        },
        heatmap=empty(samples, *arrays["heatmap"].shape, dtype=torch.uint8),
        canvas_mask=empty(samples, *spec.canvas_grid.shape, dtype=torch.bool),
        head_maps={name: empty(samples, *shape, dtype=torch.float16) for name, shape in maps.items()},
        view_matrix=empty(samples, 4, 4),
    )


def _tensors(held: TeacherSample | TeacherBatch) -> dict[str, str]:
    """Type and shape of each array, by name."""
    arrays = {name: layer.values for name, layer in held.features.items()} | {"heatmap": held.heatmap}
    arrays |= {"canvas mask": held.canvas_mask} | held.head_maps
    return {name: describe(tensor) for name, tensor in arrays.items()}


def _said(arrays: dict[str, str]) -> str:
    return ", ".join(f"{name} {what}" for name, what in arrays.items())


def _empty(*shape: int, dtype: torch.dtype = torch.float32, pin: bool) -> Tensor:
    """Memory for a tensor; in a DataLoader's worker the parent's from the start, as default_collate does: no copy."""
    if pin or get_worker_info() is None:
        return torch.empty(shape, dtype=dtype, pin_memory=pin)
    storage = torch.UntypedStorage._new_shared(max(1, math.prod(shape) * dtype.itemsize), device="cpu")
    return torch.empty(0, dtype=dtype).set_(storage)[: math.prod(shape)].view(shape)

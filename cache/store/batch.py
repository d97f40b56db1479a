"""One sample of a store, and a batch of them, with features still encoded."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from torch.utils.data import get_worker_info

from cache.spec import CacheSpec, LayerSpec
from cache.store.codec import Encoded, describe
from cache.store.layout import HEATMAP, feature_array, head_map_array, sample_arrays, scale_array


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

    def __repr__(self) -> str:
        return f"TeacherSample({self.token!r}: {_list(describe_arrays(self))})"


@dataclass(frozen=True, kw_only=True)
class TeacherBatch:
    """The cached maps of B samples, one view of each.

    features: by layer name, encoded (B, C, H, W).
    heatmap: probability * 255, all classes, (B, K, H, W).
    canvas_mask: (B, H, W).
    head_maps: the head's other maps by name, (B, T, D, H, W) float16; empty unless requested.
    view_matrix: canonical LiDAR -> the BEV frame of the view, (B, 4, 4).
    """

    tokens: tuple[str, ...]
    features: dict[str, Encoded]
    heatmap: UInt8[Tensor, "B K H W"]
    canvas_mask: Bool[Tensor, "B h w"]
    head_maps: dict[str, Tensor]
    view_matrix: Float[Tensor, "B 4 4"]

    def __repr__(self) -> str:
        return f"TeacherBatch({len(self.tokens)} tokens: {_list(describe_arrays(self))})"

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "TeacherBatch":
        """The same batch on another device, still encoded."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "TeacherBatch":
        """The same batch in page-locked memory, from which a copy to a GPU does not block; DataLoader calls it."""
        return self._each(Tensor.pin_memory)

    def first(self, samples: int) -> "TeacherBatch":
        """The first samples, in the same memory."""
        return replace(self._each(lambda tensor: tensor[:samples]), tokens=self.tokens[:samples])

    def row(self, row: int) -> dict[str, np.ndarray]:
        """The memory of one sample (batch on the CPU), by stored array; not the canvas mask, which is stored packed."""
        buffers = {HEATMAP: self.heatmap}
        for name, layer in self.features.items():
            buffers[feature_array(name)] = layer.values
            if layer.codec.kind != "float16":
                buffers[scale_array(name)] = layer.scale
        buffers |= {head_map_array(name): maps for name, maps in self.head_maps.items()}
        return {name: tensor[row].numpy() for name, tensor in buffers.items()}

    def _each(self, change: Callable[[Tensor], Tensor]) -> "TeacherBatch":
        return replace(
            self,
            features={name: layer.apply(change) for name, layer in self.features.items()},
            heatmap=change(self.heatmap),
            canvas_mask=change(self.canvas_mask),
            head_maps={name: change(maps) for name, maps in self.head_maps.items()},
            view_matrix=change(self.view_matrix),
        )


def empty_batch(
    spec: CacheSpec, layers: Sequence[LayerSpec], samples: int, head_maps: bool = False, pin: bool = False
) -> TeacherBatch:
    """Memory for a batch: no tokens, and uninitialised values.

    Args:
        pin: Page-locked memory, from which a copy to a GPU does not block.
    """
    arrays = sample_arrays(spec)

    def empty(name: str) -> Tensor:
        return _empty(samples, *arrays[name].shape, dtype=getattr(torch, arrays[name].dtype), pin=pin)

    return TeacherBatch(
        tokens=(),
        features={
            layer.name: Encoded(
                values=empty(feature_array(layer.name)),
                scale=_empty(samples, layer.channels, pin=pin).fill_(1),
                codec=layer.codec,
            )
            for layer in layers
        },
        heatmap=empty(HEATMAP),
        canvas_mask=_empty(samples, *spec.canvas_grid.shape, dtype=torch.bool, pin=pin),
        head_maps={name: empty(head_map_array(name)) for name in spec.head_maps} if head_maps else {},
        view_matrix=_empty(samples, 4, 4, pin=pin),
    )


def describe_arrays(stored: TeacherSample | TeacherBatch) -> dict[str, str]:
    """Type and shape of each array, by name."""
    arrays = {name: layer.values for name, layer in stored.features.items()}
    arrays |= {"heatmap": stored.heatmap, "canvas mask": stored.canvas_mask} | stored.head_maps
    return {name: describe(tensor) for name, tensor in arrays.items()}


def _list(arrays: dict[str, str]) -> str:
    return ", ".join(f"{name} {description}" for name, description in arrays.items())


def _empty(*shape: int, dtype: torch.dtype = torch.float32, pin: bool) -> Tensor:
    """Memory for a tensor; in a DataLoader's worker it is shared with the parent, as in default_collate: no copy."""
    if pin or get_worker_info() is None:
        return torch.empty(shape, dtype=dtype, pin_memory=pin)
    storage = torch.UntypedStorage._new_shared(max(1, math.prod(shape) * dtype.itemsize), device="cpu")
    return torch.empty(0, dtype=dtype).set_(storage)[: math.prod(shape)].view(shape)

"""token -> TeacherSample; safe after fork; fast."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from cache.codec import Encoded


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

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "TeacherBatch":
        """The same batch on another device, still encoded."""
        raise RuntimeError("written next, by the store")

"""float32 features <-> what is stored, with a measured error."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from cache.spec import CodecSpec


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Features as they are stored: 8 bits wide until they are on the device that trains.

    values: uint8 (unsigned), int8 (signed) or float16, (..., C, H, W).
    scale: float, (..., C); a value's meaning is `codec`'s.
    """

    values: Tensor
    scale: Float[Tensor, "..."]
    codec: CodecSpec

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Encoded":
        """The same features on another device, still encoded."""
        return replace(
            self,
            values=self.values.to(device, non_blocking=non_blocking),
            scale=self.scale.to(device, non_blocking=non_blocking),
        )

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The features, (..., C, H, W), on the device where the values are."""
        raise RuntimeError("written next, by the store")

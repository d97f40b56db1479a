"""Work on a device that Python does not wait for."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def on_device(values: Any, like: Tensor) -> Tensor:
    """Numbers as a tensor on device and in type of `like` (any shape), without waiting for the device."""
    return torch.as_tensor(values, dtype=like.dtype).to(like.device, non_blocking=True)


def inverse(matrices: Float[Tensor, "*n d d"]) -> Float[Tensor, "*n d d"]:
    """Inverses of matrices that have one: `torch.linalg.inv` waits for a device to learn whether they have."""
    return torch.linalg.inv_ex(matrices).inverse

"""Element-wise criteria of the difference student - teacher, and their derivatives."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Criterion = Literal["mse", "l1", "smooth_l1"]

CRITERIA: dict[Criterion, Callable[[Tensor], Tensor]] = {
    "mse": torch.square,
    "l1": torch.abs,
    "smooth_l1": lambda d: F.smooth_l1_loss(d, torch.zeros_like(d), reduction="none"),
}

IN_PLACE: dict[Criterion, Callable[[Tensor], Tensor]] = {
    "mse": lambda d: d.square_(),
    "l1": lambda d: d.abs_(),
    "smooth_l1": CRITERIA["smooth_l1"],
}
"""The same, but may overwrite the difference: a new block of memory would cost more than the arithmetic on it."""

SLOPES: dict[Criterion, tuple[float, Callable[[Tensor], Tensor]]] = {
    "mse": (2.0, lambda d: d),
    "l1": (1.0, lambda d: d.sign_()),
    "smooth_l1": (1.0, lambda d: d.clamp_(-1, 1)),
}
"""Derivatives: a factor, and a function that may overwrite the difference."""

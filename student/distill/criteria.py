"""How the difference of two values counts: squared, absolute, or both in turn; and the slopes."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from student.distill.term_configs import Criterion

CRITERIA: dict[Criterion, Callable[[Tensor], Tensor]] = {
    "mse": torch.square,
    "l1": torch.abs,
    "smooth_l1": lambda d: F.smooth_l1_loss(d, torch.zeros_like(d), reduction="none"),
}
"""Element by element, of the difference student - teacher."""

VALUES: dict[Criterion, Callable[[Tensor], Tensor]] = {
    "mse": lambda d: d.square_(),
    "l1": lambda d: d.abs_(),
    "smooth_l1": CRITERIA["smooth_l1"],
}
"""The same, which may write over the difference: a fresh block would cost more than the arithmetic on it."""

SLOPES: dict[Criterion, tuple[float, Callable[[Tensor], Tensor]]] = {
    "mse": (2.0, lambda d: d),
    "l1": (1.0, lambda d: d.sign_()),
    "smooth_l1": (1.0, lambda d: d.clamp_(-1, 1)),
}
"""Derivatives, each a number times a function that may write over the difference."""

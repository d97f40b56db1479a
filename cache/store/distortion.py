"""Error of a codec: measured while writing, and expected from what is stored."""

import math
from functools import partial

import torch
from jaxtyping import Float
from pydantic import ConfigDict
from torch import Tensor

from cache.config import Strict
from cache.errors import ConfigError
from cache.spec import CodecSpec
from cache.store.codec import FLOAT16_MAX, Encoded


class Distortion(Strict):
    """A codec's error over some values, as sums: those of two samples add up."""

    model_config = ConfigDict(allow_inf_nan=True)

    signal: float = 0.0
    """Sum of squares of the values."""
    noise: float = 0.0
    """Sum of squares of the errors."""
    largest: float = 0.0
    """Largest absolute error."""
    saturated: int = 0
    """Values beyond the code's range (float16: 65504; the other kinds scale to the largest value and have none)."""
    values: int = 0

    def __add__(self, other: "Distortion") -> "Distortion":
        return Distortion(
            signal=self.signal + other.signal,
            noise=self.noise + other.noise,
            largest=max(self.largest, other.largest),
            saturated=self.saturated + other.saturated,
            values=self.values + other.values,
        )

    @property
    def sqnr_db(self) -> float:
        """Signal-to-quantisation-noise ratio, 10 log10(signal / noise); infinite where nothing was lost."""
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


def measure(features: Float[Tensor, "B C H W"], encoded: Encoded) -> list[Distortion]:
    """The error of each of B encoded samples (in float64, where no square of a float32 overflows)."""
    values = features.float()
    error = values - encoded.decode()
    norm = partial(torch.linalg.vector_norm, dim=(-3, -2, -1))
    signal, noise = (norm(x, dtype=torch.float64).square().tolist() for x in (values, error))
    largest = error.abs().amax((-3, -2, -1)).tolist()
    saturated = [0] * len(values)
    if encoded.codec.kind == "float16":
        saturated = (values.abs() > FLOAT16_MAX).sum((-3, -2, -1)).tolist()
    return [
        Distortion(signal=s, noise=n, largest=most, saturated=beyond, values=values[0].numel())
        for s, n, most, beyond in zip(signal, noise, largest, saturated, strict=True)
    ]


def expected_sqnr_db(encoded: Encoded) -> Float[Tensor, "*n"]:
    """The SQNR to be expected from rounding, from what is stored alone: (...) for features (..., C, H, W).

    Rounding to steps of size s adds s^2 / 12 to each value that is not 0 (Bennett 1948). At a code q the step is
    s / g (|q| / L)^(1/g - 1) with companding g; that of a float16 is its last bit. Values that became 0 are counted as
    exact, as they are after a ReLU. Infinite where nothing is stored but zeros.
    """
    values, codec = encoded.decode(), encoded.codec
    if codec.kind == "float16":
        steps = torch.ldexp(torch.ones_like(values), (torch.frexp(values).exponent - 11).clamp_min(-24))
    else:
        steps = encoded.scale[..., None, None]
        if codec.companding != 1:
            part = (encoded.values.float().abs() / codec.levels).clamp_min(1 / codec.levels)
            steps = steps / codec.companding * part ** (1 / codec.companding - 1)
    total = partial(torch.linalg.vector_norm, dim=(-3, -2, -1), dtype=torch.float64)
    signal, noise = total(values), total((values != 0) * steps)
    return torch.where(signal == 0, torch.inf, 20 * torch.log10(signal / noise) + 10 * math.log10(12)).float()


def require_budget(distortion: Distortion, codec: CodecSpec, where: str) -> None:
    """Raise ConfigError if the measured ratio is below `codec.min_sqnr_db`."""
    if distortion.sqnr_db < codec.min_sqnr_db:
        raise ConfigError(
            "the codec loses more of a layer than its budget allows",
            where=where,
            got=f"an SQNR of {distortion.sqnr_db:.1f} dB with {codec.kind}, {codec.bits} bits",
            expected=f"at least {codec.min_sqnr_db:g} dB (min_sqnr_db)",
            cure="Give the layer more bits, codec kind float16, or a lower min_sqnr_db",
        )

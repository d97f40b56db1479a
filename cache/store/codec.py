"""float32 features <-> what is stored, with a measured error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from cache.config import Strict
from cache.errors import ConfigError, TeacherError
from cache.spec import CodecSpec

FLOAT16_MAX = 65504.0


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Features as they are stored: 8 bits wide until they are on the device that trains.

    values: uint8 (unsigned), int8 (signed) or float16, (..., C, H, W).
    scale: size of the largest code's step, (..., C); 1 for float16.
    """

    values: Tensor
    scale: Float[Tensor, "..."]
    codec: CodecSpec

    def __repr__(self) -> str:
        return f"Encoded({describe(self.values)}; {self.codec})"

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Encoded":
        """The same features on another device, still encoded."""
        return replace(
            self,
            values=self.values.to(device, non_blocking=non_blocking),
            scale=self.scale.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "Encoded":
        """The same features in page-locked memory, from which a copy to a GPU does not block."""
        return replace(self, values=self.values.pin_memory(), scale=self.scale.pin_memory())

    def decode(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The features, (..., C, H, W), on the device where the values are.

        With code q, levels L, scale s and companding g: sign(q) (|q| / L)^(1/g) L s, which is q s where g = 1.
        """
        if self.codec.kind == "float16":
            return self.values.to(dtype)
        scale = self.scale[..., None, None]
        if self.codec.companding == 1:
            return self.values.to(scale.dtype).mul_(scale).to(dtype)
        levels = self.codec.levels
        part = self.values.to(scale.dtype) / levels
        return (part.sign() * part.abs() ** (1 / self.codec.companding) * (levels * scale)).to(dtype)


def describe(tensor: Tensor) -> str:
    """Type and shape, as a person reads them."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {' x '.join(map(str, tensor.shape))}"


class Distortion(Strict):
    """What a codec did to some values; sums, so that those of two samples add up to that of both."""

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


def encode(
    features: Float[Tensor, "*n C H W"], codec: CodecSpec, *, layer: str = "features", tokens: Sequence[str] = ()
) -> Encoded:
    """Encode on the device where the features are; zeros stay exactly 0.

    Args:
        layer: named in errors.
        tokens: of the first dimension's samples, named in errors.

    Raises:
        TeacherError: a value is NaN or infinite.
        ConfigError: a value is negative and the codec is unsigned.
    """
    values = features.float()
    low, high = values.amin((-2, -1)), values.amax((-2, -1))
    peak = torch.maximum(high, -low)
    _require_finite(peak, layer, tokens)
    if codec.kind == "float16":
        stored = values.clamp(-FLOAT16_MAX, FLOAT16_MAX).half()
        return Encoded(values=stored, scale=torch.ones_like(peak), codec=codec)
    if codec.kind == "unsigned":
        _require_positive(low, layer, tokens)
    # |value| / peak <= 1; the smallest normal number stands in for the peak of an empty channel.
    tiny = torch.finfo(peak.dtype).tiny
    part = values / peak.clamp_min(tiny)[..., None, None]
    if codec.companding != 1:
        part = part.sign() * part.abs() ** codec.companding
    scale, largest_code = peak / codec.levels, torch.full_like(peak, codec.levels)
    if codec.target_sqnr_db is not None:
        scale = torch.maximum(scale, shared_step(part, peak, codec.levels, codec.target_sqnr_db))
        largest_code = peak / scale.clamp_min(tiny)
    codes = part.mul_(largest_code[..., None, None]).round_().to(getattr(torch, codec.dtype))
    return Encoded(values=codes, scale=scale, codec=codec)


def shared_step(
    part: Float[Tensor, "*n C H W"], peak: Float[Tensor, "*n C"], levels: int, sqnr_db: float
) -> Float[Tensor, "*n 1"]:
    """The step that leaves a sample's signal `sqnr_db` above its rounding noise, the same for all channels.

    One step for all is what costs the fewest bits for a given error (reverse water-filling; Cover and Thomas, Elements
    of Information Theory, 10.3). A channel whose largest value needs a coarser one, peak / levels, has that. With step
    s_c and n_c values that are not 0 (zeros are exact), the noise is sum n_c s_c^2 / 12. Counting the k channels of the
    largest peaks as the coarse ones bounds it from below, and for the true k exactly: the step is the least over k.

    Args:
        part: values / peak.
        peak: the largest |value| of each channel.
        levels: the largest code.

    Returns:
        0 where even the coarse steps alone leave more noise: every channel then has its own.
    """
    coarse, order = (peak.double() / levels).sort(descending=True)
    counts = torch.linalg.vector_norm(part, 0, dim=(-2, -1)).gather(-1, order).double()
    energy = (torch.linalg.vector_norm(part, dim=(-2, -1)).double() * peak).square()
    noise = counts * coarse.square()
    before = noise.cumsum(-1) - noise
    free = counts.flip(-1).cumsum(-1).flip(-1)
    allowed = 12 * energy.sum(-1, keepdim=True) / 10 ** (sqnr_db / 10) - before
    steps = (allowed.clamp_min(0) / free.clamp_min(1)).sqrt()
    return steps.amin(-1, keepdim=True).to(peak.dtype)


def measure(features: Float[Tensor, "B C H W"], encoded: Encoded) -> list[Distortion]:
    """What encoding did to each of B samples (in float64, where no square of a float32 overflows)."""
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
    """The ratio that rounding leaves, from what is stored alone: for each of (..., C, H, W) all features of a sample.

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
    """Insist on the codec's declared fidelity.

    Raises:
        ConfigError: the measured ratio is below `codec.min_sqnr_db`.
    """
    if distortion.sqnr_db < codec.min_sqnr_db:
        raise ConfigError(
            "the codec loses more of a layer than its budget allows",
            where=where,
            got=f"an SQNR of {distortion.sqnr_db:.1f} dB with {codec.kind}, {codec.bits} bits",
            expected=f"at least {codec.min_sqnr_db:g} dB (min_sqnr_db)",
            cure="Give the layer more bits, codec kind float16, or a lower min_sqnr_db",
        )


def _require_finite(peak: Float[Tensor, "*n C"], layer: str, tokens: Sequence[str]) -> None:
    finite = peak.isfinite()
    if not finite.all():
        raise TeacherError(
            "the teacher's features are not finite",
            where=_place(layer, tokens, ~finite),
            got="NaN or infinity",
            cure="Run the teacher in float32, and check its checkpoint and this frame's points",
        )


def _require_positive(low: Float[Tensor, "*n C"], layer: str, tokens: Sequence[str]) -> None:
    negative = low < 0
    if negative.any():
        raise ConfigError(
            "a layer with codec kind unsigned has a negative value",
            where=_place(layer, tokens, negative),
            got=f"{low.min().item():.4g}",
            expected="0 or more, as after a ReLU",
            cure="Set this layer's codec kind to signed (or float16)",
        )


def _place(layer: str, tokens: Sequence[str], bad: Tensor) -> str:
    """The layer, token and channel of the first bad channel."""
    first = bad.nonzero()[0].tolist()
    token = f", token {tokens[first[0]]}" if tokens else ""
    return f"layer {layer}{token}, channel {first[-1]}"

"""Quantisation of float32 features, and back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from cache.errors import ConfigError, TeacherError
from cache.spec import CodecSpec

FLOAT16_MAX = 65504.0


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Features as they are stored, to be decoded on the device that trains.

    values: uint8 (unsigned), int8 (signed) or float16, (..., C, H, W).
    scale: size of the largest code's step, (..., C); 1 for float16.
    """

    values: Tensor
    scale: Float[Tensor, "..."]
    codec: CodecSpec

    def __repr__(self) -> str:
        return f"Encoded({describe(self.values)}; {self.codec})"

    def apply(self, change: Callable[[Tensor], Tensor]) -> "Encoded":
        """The same features, with a function applied to values and scale."""
        return replace(self, values=change(self.values), scale=change(self.scale))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Encoded":
        """The same features on another device, still encoded."""
        return self.apply(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Encoded":
        """The same features in page-locked memory, from which a copy to a GPU does not block."""
        return self.apply(Tensor.pin_memory)

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
    """Type and shape, as in "uint8 384 x 128 x 128"."""
    return f"{str(tensor.dtype).removeprefix('torch.')} {' x '.join(map(str, tensor.shape))}"


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


def _require_finite(peak: Float[Tensor, "*n C"], layer: str, tokens: Sequence[str]) -> None:
    finite = peak.isfinite()
    if not finite.all():
        raise TeacherError(
            "the teacher's features are not finite",
            where=_place(layer, tokens, ~finite),
            got="NaN or infinity",
            cure="Leave the frame out with exclude; where it is every frame, run the teacher in float32",
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

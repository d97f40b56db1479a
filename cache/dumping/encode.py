"""Encode a teacher's output as samples of a store."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8, UInt16
from torch import Tensor

from cache.errors import TeacherError
from cache.spec import CacheSpec
from cache.store.codec import encode
from cache.store.distortion import Distortion, measure
from cache.store.layout import (
    CANVAS_MASK,
    DEPTH_POINTS,
    HEATMAP,
    StoredSample,
    feature_array,
    head_map_array,
    scale_array,
)
from cache.teacher.base import TeacherOutput


def encode_samples(output: TeacherOutput, tokens: tuple[str, ...], spec: CacheSpec) -> list[StoredSample]:
    """Encode the teacher's output of one view on its device, and copy it to the CPU.

    Args:
        tokens: names of the samples, for messages.

    Raises:
        TeacherError, ConfigError: see `cache.store.codec.encode`; the heatmap is no probability, or a map of the head
            does not fit float16.
    """
    maps: dict[str, Tensor] = {}
    distortions = {}
    for layer in spec.layers:
        features = output.layers[layer.name]
        encoded = encode(features, layer.codec, layer=layer.name, tokens=tokens)
        distortions[layer.name] = measure(features, encoded)
        maps[feature_array(layer.name)] = encoded.values
        if layer.codec.kind != "float16":
            maps[scale_array(layer.name)] = encoded.scale
    if output.heatmap is not None:
        maps[HEATMAP] = _probabilities(output.heatmap, tokens)
    for name in spec.head_maps:
        maps[head_map_array(name)] = _half(output.head_maps[name], name, tokens)
    arrays = {name: values.cpu().numpy() for name, values in maps.items()}
    arrays[CANVAS_MASK] = np.packbits(output.canvas_mask.cpu().numpy(), axis=-1)
    return [
        StoredSample(
            arrays={name: values[row][None] for name, values in arrays.items()},
            distortion={name: samples[row] for name, samples in distortions.items()},
        )
        for row in range(len(tokens))
    ]


def join_views(
    views: Sequence[list[StoredSample]], depth: Sequence[UInt16[Tensor, "N 3 P"] | None]
) -> list[StoredSample]:
    """Join the views of each sample into one sample; the codec's errors add up.

    Args:
        depth: the codes of each sample's points in the cameras, or None.
    """
    return [
        StoredSample(
            arrays={name: np.concatenate([one.arrays[name] for one in sample]) for name in sample[0].arrays}
            | ({} if codes is None else {DEPTH_POINTS: codes.numpy()}),
            distortion={
                name: sum((one.distortion[name] for one in sample), start=Distortion()) for name in sample[0].distortion
            },
        )
        for *sample, codes in zip(*views, depth, strict=True)
    ]


def _probabilities(heatmap: Float[Tensor, "B K H W"], tokens: tuple[str, ...]) -> UInt8[Tensor, "B K H W"]:
    _require_valid(
        (heatmap >= 0) & (heatmap <= 1),  # NaN fails both
        heatmap,
        [f"token {token}" for token in tokens],
        "the teacher's heatmap is no probability",
        expected="0 .. 1",
        cure="Leave the frame out with exclude; where it is every frame, give the checkpoint of this configuration",
    )
    return (heatmap.float() * 255).round().to(torch.uint8)


def _half(maps: Float[Tensor, "B T D H W"], name: str, tokens: tuple[str, ...]) -> Float[Tensor, "B T D H W"]:
    half = maps.half()
    _require_valid(
        half.isfinite(),
        maps,
        [f"head map {name}, token {token}" for token in tokens],
        "a map of the teacher's head does not fit float16",
        expected="finite values within 65504",
        cure="Check the teacher's checkpoint, or leave these maps out with head_maps: false",
    )
    return half


def _require_valid(valid: Tensor, maps: Tensor, places: list[str], what: str, expected: str, cure: str) -> None:
    for row, where in enumerate(places):
        if not valid[row].all():
            got = f"{maps[row].min().item():.4g} .. {maps[row].max().item():.4g}"
            raise TeacherError(what, where=where, got=got, expected=expected, cure=cure)

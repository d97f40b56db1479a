"""A committee: the mean of several teachers' stores, and how far the teachers disagree in each cell.

Teachers that were trained from other seeds name their channels otherwise. Before the mean, the features of each are
therefore rotated to those of the first (orthogonal Procrustes, fitted over some samples); heatmaps and head maps need
no alignment. A training reads one store and steps as fast as with one teacher.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cache.config import differing
from cache.errors import ConfigError, MismatchError
from cache.spec import CacheSpec, CodecSpec, LayerSpec, Lineage, variance_layer
from cache.store.codec import encode
from cache.store.derive import decoded, encoded_arrays, lineage_source, stored_arrays, write_derived
from cache.store.distortion import Distortion, measure
from cache.store.layout import HEATMAP, StoredSample, head_map_array, scale_array
from cache.store.reader import TeacherCache
from cache.store.reencode import ReencodeReport

FIT_SAMPLES = 64
"""That alignments are fitted over, spread evenly over the store."""

ALIKE = ("data", "points", "heatmap", "heatmap_grid", "canvas_grid", "head_maps", "views", "drawn", "depth")
"""What the members of a committee have in common, beside layers and tasks."""

VARIANCE = CodecSpec(kind="float16")

Rotations = Mapping[str, Sequence[Float[Tensor, "C C"]]]
"""By layer: of each member, to the first."""


def average(
    stores: Sequence[str | Path],
    out: str | Path,
    align: bool = True,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> ReencodeReport:
    """Write the mean of several teachers' stores of the same samples, with a layer `<layer>_variance` for each layer.

    Features, heatmaps and the head's maps are means; the canvas mask, depth and the head's weights are the first's. The
    variance of a cell is that of the members' features, mean over channels, over the sample's mean squared feature.

    Args:
        stores: two or more; the first gives the channels and the head.
        out: the store to create, or to resume.
        align: rotate each member's features to the first's.
        progress: called with (done, total) shards.

    Raises:
        ConfigError: fewer than two stores, or one twice.
        MismatchError: the stores are not of the same samples, grids, layers and tasks; or another store is at `out`.
        UnsealedError, CorruptStoreError, StoreError: as for `reencode`.
    """
    began, members = time.monotonic(), [TeacherCache(path) for path in stores]
    require_alike(members)
    rotations = fit(members) if align else {}
    spec, layout = committee_spec(members, align), members[0].attributes.layout
    samples = partial(mean_samples, members, spec, rotations)
    written = write_derived(members[0], spec, layout, Path(out), samples, progress)
    made = TeacherCache(out)
    return ReencodeReport(
        path=Path(out),
        samples=len(made),
        written=written,
        bytes=sum(made.bytes_per_sample().values()),
        source_bytes=sum(members[0].bytes_per_sample().values()),
        sqnr_db={name: lost.sqnr_db for name, lost in made.attributes.codec_report.items()},
        seconds=time.monotonic() - began,
    )


def require_alike(members: Sequence[TeacherCache]) -> None:
    """Raise unless the stores are of different teachers, and of the same samples, grids, layers and tasks.

    Raises:
        ConfigError: fewer than two, or one twice.
        MismatchError: they differ.
    """
    prints = [member.spec.fingerprint for member in members]
    if len(set(prints)) < max(2, len(prints)):
        raise ConfigError(
            "a committee has two or more different teachers",
            where="--mean",
            got=", ".join(str(member.path) for member in members) or "no store",
            cure="Name each teacher's store once",
        )
    first = members[0]
    for member in members[1:]:
        ours, theirs = (_common(each.spec) for each in (first, member))
        lines = [f"{path}: {one!r}, here {other!r}" for path, one, other in differing(ours, theirs)]
        if lines:
            raise MismatchError(
                "the stores of a committee are not alike:\n  " + "\n  ".join(lines) + "\n",
                where=member.path,
                expected=f"as {first.path}",
                cure="Dump the teachers with the same frames, layers and views",
            )
        if not np.array_equal(first.stored_matrices, member.stored_matrices):
            raise MismatchError(
                "the drawn views of a committee are not the same",
                where=member.path,
                expected=f"those of {first.path}",
                cure="Dump the teachers with the same seed of views.drawn",
            )


def _common(spec: CacheSpec) -> dict:
    layers = {layer.name: layer.model_dump(mode="json", exclude={"codec"}) for layer in spec.layers}
    return spec.model_dump(mode="json", include=set(ALIKE)) | {"layers": layers, "tasks": spec.teacher.tasks}


def committee_spec(members: Sequence[TeacherCache], align: bool) -> CacheSpec:
    """The spec of the mean; its teacher's name and hashes are made of the members'."""
    first, teachers = members[0].spec, [member.spec.teacher for member in members]
    names = list(dict.fromkeys(teacher.name for teacher in teachers))

    def joined(field: str) -> str:
        return hashlib.sha256("\n".join(getattr(teacher, field) for teacher in teachers).encode()).hexdigest()

    teacher = first.teacher.model_copy(
        update={
            "name": f"mean of {len(members)}: {', '.join(names)}",
            "weights_sha256": joined("weights_sha256"),
            "config_sha256": joined("config_sha256"),
        }
    )
    variances = [
        LayerSpec(name=variance_layer(layer.name), channels=1, grid=layer.grid, codec=VARIANCE)
        for layer in first.layers
    ]
    sources = tuple(lineage_source(member) for member in members)
    operation = "aligned mean" if align else "mean"
    return CacheSpec.model_validate(
        first.model_copy(
            update={
                "teacher": teacher,
                "layers": (*first.layers, *variances),
                "lineage": Lineage(operation=operation, sources=sources),
            }
        ).model_dump()
    )


def fit(members: Sequence[TeacherCache]) -> Rotations:
    """The rotation of each member's channels that brings its features nearest to the first's: U V^T of their products.

    Schönemann 1966: min |F_1 - R F_m| over orthogonal R is U V^T, with U S V^T the singular value decomposition of
    F_1 F_m^T.
    """
    first = members[0]
    tokens = first.tokens[:: math.ceil(len(first) / FIT_SAMPLES)]
    rotations: dict[str, list[Tensor]] = {}
    for layer in first.spec.layers:
        products = [torch.zeros(layer.channels, layer.channels, dtype=torch.float64) for _ in members[1:]]
        for token in tokens:
            ours, *others = (
                member.read((token,), layers=(layer.name,)).features[layer.name].decode().flatten(2)[0]
                for member in members
            )
            for product, theirs in zip(products, others, strict=True):
                product += ours.double() @ theirs.double().T
        rotations[layer.name] = [torch.eye(layer.channels), *map(_nearest_rotation, products)]
    return rotations


def _nearest_rotation(product: Float[Tensor, "C C"]) -> Float[Tensor, "C C"]:
    left, _, right = torch.linalg.svd(product)
    return (left @ right).float()


def mean_samples(
    members: Sequence[TeacherCache], spec: CacheSpec, rotations: Rotations, shard: int
) -> Iterator[StoredSample]:
    """The samples of a shard."""
    maps = [HEATMAP, *(head_map_array(name) for name in spec.head_maps)]
    start = members[0].attributes.layout.positions(shard, len(members[0])).start
    for row, token in enumerate(members[0].tokens_of(shard)):
        stored = [_stored(member, start + row) for member in members]
        arrays, distortion = dict(stored[0]), {}
        for name in maps:
            if name in arrays:
                arrays[name] = _mean([each[name] for each in stored])
        for layer in members[0].spec.layers:
            codecs = [member.spec.layer(layer.name).codec for member in members]
            features = [decoded(each, layer.name, codec) for each, codec in zip(stored, codecs, strict=True)]
            mean, variance = mean_and_variance(features, rotations.get(layer.name), layer.codec.kind == "unsigned")
            arrays.pop(scale_array(layer.name), None)
            for name, values in ((layer.name, mean), (variance_layer(layer.name), variance)):
                codec = spec.layer(name).codec
                encoded = encode(values, codec, layer=name, tokens=(token,) * len(values))
                arrays |= encoded_arrays(name, encoded)
                distortion[name] = sum(measure(values, encoded), start=Distortion())
        yield StoredSample(arrays=arrays, distortion=distortion)


def _stored(member: TeacherCache, position: int) -> dict[str, np.ndarray]:
    """A sample's arrays by its position in dump order, which is the same in all members."""
    return stored_arrays(member, *divmod(position, member.attributes.layout.samples_per_shard))


def _mean(values: Sequence[np.ndarray]) -> np.ndarray:
    """In float32, rounded where the arrays hold codes."""
    mean = np.mean([each.astype(np.float32) for each in values], axis=0)
    return (np.round(mean) if values[0].dtype == np.uint8 else mean).astype(values[0].dtype)


def mean_and_variance(
    features: Sequence[Float[Tensor, "V C H W"]], rotations: Sequence[Float[Tensor, "C C"]] | None, positive: bool
) -> tuple[Float[Tensor, "V C H W"], Float[Tensor, "V 1 H W"]]:
    """The members' mean, and their variance in each cell: mean over channels, over the view's mean squared feature.

    Args:
        positive: features of after a ReLU: a rotation's negative values become 0.
    """
    turned = list(features)
    if rotations is not None:
        turned = [torch.einsum("dc,vchw->vdhw", r, f) for r, f in zip(rotations, features, strict=True)]
    members = torch.stack([each.clamp(min=0) for each in turned] if positive else turned)
    mean = members.mean(dim=0)
    energy = members.square().mean(dim=(0, 2, 3, 4)).clamp(min=torch.finfo(mean.dtype).tiny)
    variance = members.var(dim=0, unbiased=False).mean(dim=1, keepdim=True) / energy[:, None, None, None]
    return mean, variance

"""What each codec costs and keeps: bytes, error, and the mAP of the teacher's own head on what is read back."""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Float
from numcodecs import zstd
from torch import Tensor

from cache.dumping.prepared import PreparedFrames
from cache.nuscenes.frames import Frames
from cache.spec import CodecSpec
from cache.store.codec import Encoded, encode
from cache.store.distortion import Distortion, measure
from cache.store.format import CHECKSUM_BYTES, pack_chunk
from cache.teacher.mmdet3d import Mmdet3dTeacher
from student.evaluation.evaluate import Metrics, evaluate
from student.models.decoding import Detections, decode

ANY = 0.1
"""A budget that stops nothing."""
CODECS = (
    CodecSpec(kind="float16"),
    *(CodecSpec(bits=bits, min_sqnr_db=ANY) for bits in (8, 7, 6, 5, 4)),
    *(CodecSpec(bits=bits, companding=0.7, min_sqnr_db=ANY) for bits in (6, 5, 4)),
    *(CodecSpec(target_sqnr_db=target, min_sqnr_db=ANY) for target in (38, 34, 30, 26, 24, 22, 21, 20)),
)


@dataclass(frozen=True, kw_only=True)
class Rung:
    """A codec on some samples; sizes are means, with scales, checksums and places in the index; times are medians."""

    codec: CodecSpec
    bytes: float
    float32_bytes: int
    distortion: Distortion
    encode_ms: float
    decompress_ms: float

    @property
    def smaller(self) -> float:
        """float32's bytes / these."""
        return self.float32_bytes / self.bytes

    @property
    def name(self) -> str:
        """The codec, in a few words."""
        return codec_name(self.codec)


def codec_name(codec: CodecSpec) -> str:
    """A codec in a few words."""
    if codec.kind == "float16":
        return "float16"
    if codec.target_sqnr_db is not None:
        return f"one step for {codec.target_sqnr_db:g} dB"
    return f"{codec.bits} bits" + ("" if codec.companding == 1 else f", companding {codec.companding:g}")


def layer_of(teacher: Mmdet3dTeacher, frames: Frames, positions: range, layer: str) -> Float[Tensor, "B C H W"]:
    """The live teacher's features of some frames."""
    prepared = PreparedFrames.of(frames, teacher)
    with torch.inference_mode():
        return torch.cat([teacher(prepared[position].views).layers[layer] for position in positions])


def climb(features: Float[Tensor, "B C H W"], level: int = 1) -> Iterator[Rung]:
    """Try codecs, each sample as the store would hold it."""
    for codec in CODECS:
        sizes, encoding, decompressing, total = [], [], [], Distortion()
        for sample in features.split(1):
            began = time.perf_counter()
            encoded = encode(sample, codec)
            encoding.append(time.perf_counter() - began)
            total += measure(sample, encoded)[0]
            values = encoded.values[0].numpy()
            packed = pack_chunk(values, level)
            sizes.append(stored_bytes(encoded, level))
            out = np.empty_like(values)
            began = time.perf_counter()
            zstd.decompress(packed[:-CHECKSUM_BYTES], out)
            decompressing.append(time.perf_counter() - began)
        yield Rung(
            codec=codec,
            bytes=float(np.mean(sizes)),
            float32_bytes=4 * features[0].numel(),
            distortion=total,
            encode_ms=1e3 * float(np.median(encoding)),
            decompress_ms=1e3 * float(np.median(decompressing)),
        )


def stored_bytes(encoded: Encoded, level: int = 1) -> int:
    """Of a sample's codes and scales in a store, with their checksums and places in the index."""
    scales = 0 if encoded.codec.kind == "float16" else len(pack_chunk(encoded.scale.numpy(), level)) + 16
    return len(pack_chunk(encoded.values[0].numpy(), level)) + 16 + scales


def read_back(features: Float[Tensor, "B C H W"], codec: CodecSpec) -> Float[Tensor, "B C H W"]:
    """The features as a reader of the store would see them."""
    return torch.cat([encode(sample, codec).decode() for sample in features.split(1)])


def head_metrics(teacher: Mmdet3dTeacher, features: Float[Tensor, "B C H W"], frames: Frames) -> Metrics:
    """The official metrics of the teacher's own head on these features of all frames of a split."""
    found = list(head_detections(teacher, features))
    with tempfile.TemporaryDirectory() as folder:
        return evaluate(zip(frames.tokens, found, strict=True), frames, Path(folder), "lidar")


@torch.inference_mode()
def head_detections(teacher: Mmdet3dTeacher, features: Float[Tensor, "B C H W"]) -> Iterator[Detections]:
    """What the teacher's own head finds in features."""
    identity = teacher.identity
    for sample in features.split(1):
        yield from decode(*head_maps(teacher, sample), teacher.heatmap_grid, identity.tasks, identity.decoding)


def head_maps(
    teacher: Mmdet3dTeacher, sample: Float[Tensor, "1 C H W"]
) -> tuple[Float[Tensor, "1 K H W"], dict[str, Float[Tensor, "1 T _ H W"]]]:
    """The heatmap, as probabilities, and the maps of T tasks that the teacher's own head computes from features."""
    tasks = [levels[0] for levels in teacher.network.pts_bbox_head([sample])]
    heatmap = torch.cat([task["heatmap"] for task in tasks], dim=1).sigmoid()
    return heatmap, {name: torch.stack([task[name] for task in tasks], dim=1) for name in tasks[0] if name != "heatmap"}


def plot(rungs: list[Rung], title: str, path: Path) -> None:
    """Draw error against size, one curve for each way to choose the steps."""
    figure, axis = plt.subplots(figsize=(5.5, 4), layout="constrained")
    for label, chosen in _families(rungs).items():
        points = sorted((rung.smaller, rung.distortion.sqnr_db) for rung in chosen)
        axis.plot(*zip(*points, strict=True), "o-", label=label)
    axis.set(title=title, xlabel="times smaller than float32", ylabel="SQNR, dB")
    axis.grid(alpha=0.3)
    axis.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _families(rungs: list[Rung]) -> dict[str, list[Rung]]:
    coded = [rung for rung in rungs if rung.codec.kind != "float16"]
    own = [rung for rung in coded if rung.codec.target_sqnr_db is None]
    return {
        "a step for each channel": [rung for rung in own if rung.codec.companding == 1],
        "the same, companded": [rung for rung in own if rung.codec.companding != 1],
        "one step for all channels": [rung for rung in coded if rung.codec.target_sqnr_db is not None],
    }

"""mAP of the teacher's own head on features read back from each codec, and the error of its difference to live ones.

    python -m benchmarks.codec_map OUT

OUT is the folder of `benchmarks.worth`, with its world and its teacher. The features of all frames of made_val go
through each codec as a store would keep them. The difference is paired, and its standard error that of a bootstrap over
scenes, since frames of one scene resemble each other.

Last come codes of 8 bits that are rounded to multiples of 4 to 32 in all cells that are not within one cell of a
heatmap above 0.1, as the cells that carry the objective's foreground are. Any reader of a store decodes these.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from benchmarks import ladder
from benchmarks.average_precision import Evaluated, Matches, mean_average_precision, paired_bootstrap
from benchmarks.tables import show
from cache.nuscenes.frames import Frames
from cache.spec import CodecSpec
from cache.store.codec import Encoded, encode
from cache.store.distortion import Distortion, measure
from cache.teacher.mmdet3d import Mmdet3dTeacher, load_teacher
from student.evaluation.evaluate import evaluate

OBJECT = 0.1
Coding = Callable[[Float[Tensor, "1 C H W"], Bool[Tensor, "1 H W"]], Encoded]
"""A sample and the cells near objects -> what a store holds."""
TEACHER = Path(__file__).parent.parent / "configs" / "study" / "teacher_model.py"


def plain(codec: CodecSpec) -> Coding:
    """The codec, the same in all cells."""
    return lambda sample, near: encode(sample, codec)


def coarse_elsewhere(factor: int) -> Coding:
    """8 bits; codes away from objects are multiples of `factor`."""

    def coding(sample: Float[Tensor, "1 C H W"], near: Bool[Tensor, "1 H W"]) -> Encoded:
        encoded = encode(sample, CodecSpec(min_sqnr_db=ladder.ANY))
        multiples = (encoded.values / factor).round().mul(factor).clamp(max=encoded.codec.levels)
        return replace(encoded, values=torch.where(near, encoded.values, multiples.to(encoded.values.dtype)))

    return coding


CODINGS = {ladder.codec_name(codec): plain(codec) for codec in ladder.CODECS} | {
    f"8 bits, multiples of {factor} away from objects": coarse_elsewhere(factor) for factor in (4, 8, 16, 32)
}


def main(
    out: Path,
    splits: Annotated[str, typer.Option(help="Or scenes, with commas between.")] = "made_val",
    only: Annotated[str, typer.Option(help="Names of codecs, with ; between.")] = "",
    draws: Annotated[int, typer.Option(help="Of the bootstrap.")] = 500,
    layer: str = "head",
) -> None:
    """Measure and print."""
    chosen = Frames(root=out / "world", version="v1.0-mini", splits=tuple(splits.split(",")))
    teacher = load_teacher(str(TEACHER), out / "teacher" / "teacher.pth")
    features = ladder.layer_of(teacher, chosen, range(len(chosen)), layer)
    live = matches_of(teacher, features, chosen)
    wanted = [name.strip() for name in only.split(";") if name.strip()]
    if unknown := set(wanted) - set(CODINGS):
        raise typer.BadParameter(f"unknown: {', '.join(unknown)}; known: {'; '.join(CODINGS)}")
    near = near_objects(teacher, features)
    rows = []
    for name in wanted or CODINGS:
        restored, sizes = through(CODINGS[name], features, near)
        difference, error = paired_bootstrap(matches_of(teacher, restored, chosen), live, draws)
        rows.append((name, *sizes, f"{100 * difference:+.2f} ± {100 * error:.2f}"))
    scenes = len(next(iter(live.values())).objects)
    title = f"live mAP {100 * mean_average_precision(live):.2f} on {len(chosen)} frames of {scenes} scenes"
    show(title, ("codec", "bytes a sample", "smaller than float32", "SQNR, dB", "mAP - live, points"), rows)


def through(
    coding: Coding, features: Float[Tensor, "B C H W"], near: Bool[Tensor, "B 1 H W"]
) -> tuple[Float[Tensor, "B C H W"], tuple[str, ...]]:
    """The features as a reader of the store sees them, and bytes a sample, times smaller than float32, SQNR in dB."""
    restored, size, distortion = torch.empty_like(features), 0, Distortion()
    for number, sample in enumerate(features.split(1)):
        encoded = coding(sample, near[number])
        size += ladder.stored_bytes(encoded)
        distortion += measure(sample, encoded)[0]
        restored[number] = encoded.decode()[0]
    sizes = f"{size / len(features):,.0f}", f"{4 * features.numel() / size:.1f} x", f"{distortion.sqnr_db:.1f}"
    return restored, sizes


@torch.inference_mode()
def near_objects(teacher: Mmdet3dTeacher, features: Float[Tensor, "B C H W"]) -> Bool[Tensor, "B 1 H W"]:
    """The cells within one cell of a heatmap above OBJECT."""
    heatmaps = [ladder.head_maps(teacher, sample)[0] for sample in features.split(1)]
    return F.max_pool2d(torch.cat(heatmaps).amax(1, keepdim=True), 3, 1, 1) > OBJECT


def matches_of(teacher: Mmdet3dTeacher, features: Float[Tensor, "B C H W"], frames: Frames) -> Mapping[str, Matches]:
    """What the teacher's head finds in features, matched to the boxes."""
    with TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        found = ladder.head_detections(teacher, features)
        evaluate(zip(frames.tokens, found, strict=True), frames, folder, "lidar")
        return Evaluated.of(folder, frames).matches()


if __name__ == "__main__":
    typer.run(main)

"""mAP of the teacher's own head on features read back from each codec, and the error of its difference to live ones.

    python -m benchmarks.codec_map OUT

OUT is the folder of `benchmarks.worth`, with its world and its teacher. The features of all frames of made_val go
through each codec as a store would keep them. The difference is paired, and its standard error that of a bootstrap over
scenes, since frames of one scene resemble each other.
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from jaxtyping import Float
from torch import Tensor

from benchmarks import ladder
from benchmarks.average_precision import Evaluated, Matches, mean_average_precision, paired_bootstrap
from benchmarks.tables import show
from cache.nuscenes.frames import Frames
from cache.teacher.mmdet3d import Mmdet3dTeacher, load_teacher
from student.evaluation.evaluate import evaluate

TEACHER = Path(__file__).parent.parent / "configs" / "study" / "teacher_model.py"


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
    rows, wanted = [], [name.strip() for name in only.split(";") if name.strip()]
    codecs = [codec for codec in ladder.CODECS if not wanted or ladder.codec_name(codec) in wanted]
    if len(codecs) < len(wanted):
        raise typer.BadParameter(f"unknown codec; known: {'; '.join(map(ladder.codec_name, ladder.CODECS))}")
    for rung in ladder.climb(features, codecs=codecs):
        found = matches_of(teacher, ladder.read_back(features, rung.codec), chosen)
        difference, error = paired_bootstrap(found, live, draws)
        size = f"{rung.bytes:,.0f}", f"{rung.smaller:.1f} x", f"{rung.distortion.sqnr_db:.1f}"
        rows.append((rung.name, *size, f"{100 * difference:+.2f} ± {100 * error:.2f}"))
    scenes = len(next(iter(live.values())).objects)
    title = f"live mAP {100 * mean_average_precision(live):.2f} on {len(chosen)} frames of {scenes} scenes"
    show(title, ("codec", "bytes a sample", "smaller than float32", "SQNR, dB", "mAP - live, points"), rows)


def matches_of(teacher: Mmdet3dTeacher, features: Float[Tensor, "B C H W"], frames: Frames) -> Mapping[str, Matches]:
    """What the teacher's head finds in features, matched to the boxes."""
    with TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        found = ladder.head_detections(teacher, features)
        evaluate(zip(frames.tokens, found, strict=True), frames, folder, "lidar")
        return Evaluated.of(folder, frames).matches()


if __name__ == "__main__":
    typer.run(main)

"""Worth of frames without labels: a student whose labels are those of a quarter of the frames.

    python -m benchmarks.labels OUT --jobs 2

makes the world, teacher and store of `benchmarks.worth` in OUT, divides the training scenes into a quarter with labels
and the rest, trains and evaluates the arms below, and prints their table. results.jsonl has a line for each training
that is done: the same command goes on where an earlier one stopped. All arms take the same number of steps, so that
those of a quarter of the frames have four times as many epochs. The teacher learns from the labels of all frames: the
study is about a teacher that is already there, and a camera set without labels.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import typer

from benchmarks.tables import show
from benchmarks.worth import CURVE_POINTS, Arm, Study, prepare, train
from benchmarks.worth_results import Result, results
from benchmarks.worth_tables import mean, mean_ap, nds

SHARE = 4
"""One scene of so many has labels."""
QUARTER, REST = "data.train_split=made_labelled", "data.unlabelled_split=made_rest"
FOREGROUND = "distill.foreground=boxes_or_teacher"
CACHED = Arm(name="cached", teacher="cached")
ALONE = Arm(name="alone", teacher="none")

ARMS: dict[str, tuple[Arm, int, tuple[str, ...]]] = {
    "a quarter's labels": (ALONE, SHARE, (QUARTER,)),
    "a quarter's labels, cache on the same frames": (CACHED, SHARE, (QUARTER,)),
    "a quarter's labels, cache on all frames": (CACHED, 1, (QUARTER, REST, FOREGROUND)),
    "all labels": (ALONE, 1, ()),
    "all labels, cache on all frames": (CACHED, 1, ()),
}
"""Name -> the teacher, the epochs' factor, and the changes of the configuration."""


def main(out: Path, seeds: int = 3, epochs: int = 24, jobs: int = 2, detector: str = "bevdepth") -> None:
    """Make what is not there yet, train what is not done yet, and print the table of all results."""
    if epochs % CURVE_POINTS:
        raise typer.BadParameter(f"--epochs must be a multiple of {CURVE_POINTS}")
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // jobs))
    prepare(out, [CACHED], ())
    divide(out / "world" / "v1.0-mini" / "splits.json")
    studies = [
        Study(out=out, arm=arm, detector=detector, epochs=epochs * factor, seed=seed, changes=changes, variant=name)
        for seed in range(seeds)
        for name, (arm, factor, changes) in ARMS.items()
    ]
    done = {result.key for result in results(out)}
    train(out, [study for study in studies if study.key not in done], jobs)
    print_table(list(results(out)))


def print_table(found: Sequence[Result]) -> None:
    """Mean and standard error of each arm over its seeds."""
    groups = {name: [result for result in found if result.variant == name] for name in ARMS}
    rows = [(name, len(group), mean(group, mean_ap), mean(group, nds)) for name, group in groups.items() if group]
    show("labels", ("", "seeds", "mAP", "NDS"), rows)


def divide(path: Path) -> None:
    """Add two splits to those of the world: every fourth training scene, and the others."""
    splits = json.loads(path.read_text(encoding="utf-8"))
    scenes = splits["made_train"]
    splits |= {"made_labelled": scenes[::SHARE], "made_rest": [s for i, s in enumerate(scenes) if i % SHARE]}
    path.write_text(json.dumps(splits), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)

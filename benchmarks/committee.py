"""Go or no-go of a committee: does the teachers' variance say where they are wrong?

    python -m benchmarks.committee OUT

makes the study's world, trains its teacher from three seeds, dumps each, averages the stores with `cli derive --mean`,
and prints the correlation of the committee's variance with its error on frames that no teacher was trained on, and the
mAP of each teacher and of the mean, from the stores. What is done is kept in OUT: the same command goes on where an
earlier one stopped. `--set` changes the world, `--epochs` the teachers' training.

The error of a cell is |p - y|: p the mean heatmap's maximum over classes, y that of the labels' Gaussians. Over all
cells any map that is high near objects correlates with it, so cells with an object are looked at: where p or y is above
0.1. A committee goes on to students where the rank correlation over these is at least 0.3 (set before measuring).
"""

import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from scipy.stats import spearmanr

from benchmarks.augmentation import cli, sets
from benchmarks.tables import show
from benchmarks.worth import DUMP, TEACHER, WORLD
from cache.nuscenes.frames import Frames
from cache.spec import variance_layer
from cache.store.reader import TeacherCache
from cache.teacher.training import train_teacher
from student.distill.gaussians import draw_heatmaps

VERSION, TRAIN, VAL = "v1.0-mini", "made_train", "made_val"
OBJECT, GO = 0.1, 0.3


def main(
    out: Path,
    teachers: int = 3,
    epochs: int = 8,
    changes: Annotated[list[str] | None, typer.Option("--set", help="Of the world, when it is made.")] = None,
) -> None:
    """Make what is not there yet, and print the tables."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    root, committee = out / "world", out / "committee.zarr"
    if not root.exists():
        cli("make-world", root, "--config", WORLD, *sets(*(changes or ())))
    model = out / "teacher_model.py"
    model.write_text(shortened(epochs), encoding="utf-8")
    stores = [teacher_store(out, root, model, seed) for seed in range(teachers)]
    cli("derive", *stores, committee, "--mean")
    names = {f"teacher, seed {seed}": store for seed, store in enumerate(stores)} | {"mean": committee}
    show("mAP from the stores", ("", "mAP", "NDS"), [(name, *metrics(store, root)) for name, store in names.items()])
    found = np.concatenate(list(cells(stores, committee, Frames(root=root, version=VERSION, splits=(VAL,)))))
    print_correlations(found)


def shortened(epochs: int) -> str:
    """The study's teacher with another number of epochs."""
    linear = 'dict(type="LinearLR", start_factor=0.1, begin=0, end=1, by_epoch=True, convert_to_iter_based=True)'
    cosine = f'dict(type="CosineAnnealingLR", eta_min=2e-5, begin=1, end={epochs}, by_epoch=True'
    schedule = f"param_scheduler = [{linear}, {cosine}, convert_to_iter_based=True)]"
    return "\n".join((f"_base_ = ['{TEACHER}']", f"train_cfg = dict(max_epochs={epochs})", schedule, ""))


def teacher_store(out: Path, root: Path, model: Path, seed: int) -> Path:
    """The store of a teacher from a seed: trained, in a process of its own, and dumped."""
    folder, store = out / f"teacher{seed}", out / f"teacher{seed}.zarr"
    if not (folder / "done").exists():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(_train, str(model), root, folder, seed).result()
        (folder / "done").touch()
    weights = ("--teacher", model, "--checkpoint", folder / "teacher.pth")
    changes = sets(f"splits=[{TRAIN}, {VAL}]", "layers={head: {}}")
    cli("dump-teacher", DUMP, "--data", root, *weights, "--out", store, *changes)
    return store


def _train(model: str, root: Path, folder: Path, seed: int) -> None:
    train_teacher(model, Frames(root=root, version=VERSION, splits=(TRAIN,)), folder, seed)


def metrics(store: Path, root: Path) -> tuple[str, str]:
    """mAP and NDS of a store on the frames that were not trained on."""
    report = cli("evaluate", "--data", root, "--cache", store, "--split", VAL, "--out", store.with_suffix(""), "--json")
    found = json.loads(report)
    return f"{found['mean_ap']:.3f}", f"{found['nds']:.3f}"


def cells(stores: list[Path], committee: Path, frames: Frames) -> Iterator[np.ndarray]:
    """Of each frame, cell by cell: error, mean and label's heatmap, variances of heatmap and features; (cells, 5)."""
    members, mean = [TeacherCache(store) for store in stores], TeacherCache(committee)
    spec, name = mean.spec, variance_layer("head")
    for frame in frames:
        of_members = torch.stack([member.read((frame.token,), layers=()).heatmap[0] for member in members])
        largest = of_members.float().div(255).amax(dim=1)
        p = of_members.float().div(255).mean(dim=0).amax(dim=0)
        y = draw_heatmaps(
            torch.from_numpy(frame.boxes)[None],
            torch.zeros(1, len(frame.boxes), dtype=torch.long),
            1,
            spec.heatmap_grid,
        )[0, 0]
        features = mean.read((frame.token,), layers=(name,)).features[name].decode()[0, 0]
        maps = ((p - y).abs(), p, y, largest.var(dim=0, unbiased=False), features)
        yield torch.stack([part.flatten() for part in maps], dim=1).numpy()


def print_correlations(found: np.ndarray) -> None:
    """Rank correlation of each variance with the error, and the mean error by quarter of the variance."""
    error, p, y = found[:, 0], found[:, 1], found[:, 2]
    objects = (p > OBJECT) | (y > OBJECT)
    rows = []
    for name, column in (("heatmap", 3), ("features", 4)):
        for where, chosen in (("all cells", np.ones_like(objects)), ("cells with an object", objects)):
            variance, wrong = found[chosen, column], error[chosen]
            quarters = np.array_split(wrong[np.argsort(variance, kind="stable")], 4)
            rank = spearmanr(variance, wrong).statistic
            rows.append((f"{name}, {where}", f"{rank:+.2f}", *(f"{part.mean():.3f}" for part in quarters)))
            if chosen is objects:
                print(f"{name}: {'go' if rank >= GO else 'no-go'} ({rank:+.2f} against {GO:+.1f})")
    title = f"variance and error over {len(error):,} cells, {int(objects.sum()):,} with an object"
    show(title, ("variance of", "rank correlation", "error, lowest quarter", "2nd", "3rd", "highest"), rows)


if __name__ == "__main__":
    typer.run(main)

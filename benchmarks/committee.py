"""Go or no-go of a committee: does the teachers' variance say where they are wrong, and is their mean better?

    python -m benchmarks.committee OUT

makes the study's world, trains its teacher from three seeds, dumps each, averages the stores with `cli derive --mean`,
and prints two tables over frames that no teacher was trained on: the mAP of each teacher and of the mean, from the
stores, and the rank correlation of variance and error. What is done is kept in OUT: the same command goes on where an
earlier one stopped. OUT/world and OUT/teacher0 may be links to the world and the teacher of `benchmarks.worth`.

Errors are those of the mean and of the best single teacher: of a cell |p - y|, p the heatmap's maximum over classes, y
that of the labels' Gaussians; of a box, the distance from its centre to the nearest object of its class, 2 m at most.
Over all cells any map that is high near objects correlates with |p - y|, so cells with an object are looked at: where
the mean's p or y is above 0.1. Boxes are those that the terms read, at the peaks of the heatmap. A committee goes on to
students where the features' variance, which `weight_by` reads, and the mean's error of cells have a rank correlation of
at least 0.3 (set before measuring).
"""

import json
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import typer
from jaxtyping import Float, Int
from scipy.spatial.distance import cdist
from scipy.stats import spearmanr
from torch import Tensor

from benchmarks.augmentation import cli
from benchmarks.average_precision import Evaluated, mean_average_precision, paired_bootstrap
from benchmarks.tables import show
from benchmarks.worth import DUMP, TEACHER, TEACHERS, WORLD
from cache.nuscenes.frame import Frame
from cache.nuscenes.frames import Frames
from cache.spec import CLASSES, variance_layer
from cache.store.reader import TeacherCache
from cache.teacher.training import train_teacher
from demo.pipeline import sets
from student.distill.gaussians import draw_heatmaps
from student.distill.head_maps import Cells, TeacherBoxes

VERSION, VAL = "v1.0-mini", "made_val"
OBJECT, PEAK, FAR_M, GO, DRAWS = 0.1, 0.1, 2.0, 0.3, 200


def main(out: Path, teachers: int = 3) -> None:
    """Make what is not there yet, and print the tables."""
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    root, committee = out / "world", out / "committee.zarr"
    if not root.exists():
        cli("make-world", root, "--config", WORLD)
    stores = [teacher_store(out, root, seed) for seed in range(teachers)]
    cli("derive", *stores, committee, "--mean")
    frames = Frames(root=root, version=VERSION, splits=(VAL,), max_sweeps=0)
    best = compare_means(stores, committee, frames)
    judge([TeacherCache(store) for store in stores], TeacherCache(committee), frames, best)


def teacher_store(out: Path, root: Path, seed: int) -> Path:
    """The store of a teacher from a seed: trained, in a process of its own, and dumped."""
    folder, store = out / f"teacher{seed}", out / f"teacher{seed}.zarr"
    if not (folder / "done").exists():
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            pool.submit(_train, root, folder, seed).result()
        (folder / "done").touch()
    checkpoint = ("--checkpoint", folder / "teacher.pth")
    cli(
        "dump-teacher", DUMP, "--data", root, *checkpoint, "--out", store, *sets(f"splits=[{VAL}]", "layers={head: {}}")
    )
    return store


def _train(root: Path, folder: Path, seed: int) -> None:
    train_teacher(str(TEACHER), Frames(root=root, version=VERSION, splits=(TEACHERS,)), folder, seed)


def compare_means(stores: Sequence[Path], committee: Path, frames: Frames) -> int:
    """Print the mAP of each store; the number of the best teacher."""
    reports, matches = zip(*(evaluate(store, frames) for store in (*stores, committee)), strict=True)
    scores = [mean_average_precision(each) for each in matches]
    best = int(np.argmax(scores[:-1]))
    rows = []
    for number, (report, ours) in enumerate(zip(reports, matches, strict=True)):
        name = f"teacher, seed {number}" if number < len(stores) else "mean"
        difference, error = paired_bootstrap(ours, matches[best], DRAWS)
        against = "best" if number == best else f"{difference:+.3f} +- {error:.3f}"
        rows.append((name, f"{report['mean_ap']:.3f}", f"{report['nds']:.3f}", against))
    show("from the stores, on frames of no training", ("", "mAP", "NDS", "mAP against the best teacher"), rows)
    return best


def evaluate(store: Path, frames: Frames) -> tuple[dict, dict]:
    """The official metrics of a store, and its matches for a bootstrap over scenes."""
    folder = store.with_suffix(".evaluation")
    report = cli("evaluate", "--data", frames.root, "--cache", store, "--split", VAL, "--out", folder, "--json")
    return json.loads(report), Evaluated.of(folder, frames).matches()


Values = Mapping[str, Float[np.ndarray, "N"]]


def judge(members: Sequence[TeacherCache], mean: TeacherCache, frames: Frames, best: int) -> None:
    """Print the correlations, and whether a committee goes on to students."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(frame.scene for frame in frames))}
    scene_of_frame = [numbers[frame.scene] for frame in frames]
    judged = {"mean": mean, "best teacher": members[best]}
    verdict, rows = "", []
    of_cells = [cells(frame, members, mean, best) for frame in frames]
    scene, found = joined(of_cells, scene_of_frame)
    for who in judged:
        for name in ("features", "heatmap"):
            rank, row = correlation(found[name], found[who], scene)
            rows.append((f"{name}; cell, {who}", *row))
            if (who, name) == ("mean", "features"):
                verdict = f"{'go' if rank >= GO else 'no-go'}: {rank:+.2f} against {GO:+.1f}"
    for who, store in judged.items():
        scene, found = joined([boxes(frame, store, members, mean) for frame in frames], scene_of_frame)
        for name in ("features", "heatmap", "centres"):
            rows.append((f"{name}; box, {who}", *correlation(found[name], found["error"], scene)[1]))
    columns = ("variance of; error of", "number", "rank correlation", "error, lowest quarter", "2nd", "3rd", "highest")
    show(f"variance and error: {verdict}", columns, rows)


def cells(frame: Frame, members: Sequence[TeacherCache], mean: TeacherCache, best: int) -> Values:
    """Of the cells with an object: variances of features and heatmap, errors of the mean and the best teacher."""
    stored = mean.read((frame.token,), layers=(variance_layer("head"),))
    heatmaps = [heatmap(store, frame).amax(dim=1)[0] for store in members]
    mean_heatmap, label = heatmap(mean, frame).amax(dim=1)[0], torch.zeros(1, len(frame.boxes), dtype=torch.long)
    y = draw_heatmaps(torch.from_numpy(frame.boxes)[None], label, 1, mean.spec.heatmap_grid)[0, 0]
    chosen = (mean_heatmap > OBJECT) | (y > OBJECT)
    maps = {
        "features": stored.features[variance_layer("head")].decode()[0, 0],
        "heatmap": torch.stack(heatmaps).var(dim=0, unbiased=False),
        "mean": (mean_heatmap - y).abs(),
        "best teacher": (heatmaps[best] - y).abs(),
    }
    return {name: values[chosen].double().numpy() for name, values in maps.items()}


def boxes(frame: Frame, store: TeacherCache, members: Sequence[TeacherCache], mean: TeacherCache) -> Values:
    """Of the boxes at a store's peaks: variances in their cells, and of their centres (m^2); and errors."""
    found, _ = boxes_of(store, frame).peaks(100, PEAK)
    known = found.scores[0] > 0
    xy, channels = found.boxes[:, known, :2].float(), found.channels[:, known]
    place = Cells.of(xy, mean.spec.heatmap_grid)
    row, column = place.row[0], place.column[0]
    variance = mean.read((frame.token,), layers=(variance_layer("head"),)).features[variance_layer("head")].decode()
    heatmaps = torch.stack([heatmap(member, frame)[0, channels[0], row, column] for member in members])
    codes = torch.stack([boxes_of(member, frame).at(xy, channels)[0][0, :, :2] for member in members])
    centres = codes.double() * torch.tensor(mean.spec.heatmap_grid.cell_m)
    labels = [mean.spec.teacher.classes.index(CLASSES[label]) for label in frame.labels]
    distances = cdist(xy[0].numpy(), frame.boxes[:, :2])
    other = channels[0].numpy()[:, None] != np.asarray(labels)[None]
    return {
        "features": variance[0, 0, row, column].double().numpy(),
        "heatmap": heatmaps.double().var(dim=0, unbiased=False).numpy(),
        "centres": centres.var(dim=0, unbiased=False).sum(dim=-1).numpy(),
        "error": np.where(other, FAR_M, distances).min(axis=1, initial=FAR_M),
    }


def heatmap(store: TeacherCache, frame: Frame) -> Float[Tensor, "1 K H W"]:
    """A store's probabilities of a frame."""
    return store.read((frame.token,), layers=()).heatmap.float() / 255


def boxes_of(store: TeacherCache, frame: Frame) -> TeacherBoxes:
    """A store's boxes of a frame, in its own grid."""
    spec, stored = store.spec, store.read((frame.token,), layers=(), head_maps=True)
    tasks = [number for number, task in enumerate(spec.teacher.tasks) for _ in task]
    return TeacherBoxes(
        heatmap=stored.heatmap.float() / 255,
        maps=stored.head_maps,
        task_of_channel=torch.tensor(tasks),
        grid=spec.heatmap_grid,
        student=spec.heatmap_grid,
        log_dimensions=spec.teacher.decoding.log_dimensions,
    )


def joined(parts: Sequence[Values], scene_of_frame: Sequence[int]) -> tuple[Int[np.ndarray, "N"], Values]:
    """The values of all frames, and the scene of each."""
    scene = np.repeat(scene_of_frame, [len(next(iter(part.values()))) for part in parts])
    return scene, {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def correlation(
    variance: Float[np.ndarray, "N"], error: Float[np.ndarray, "N"], scene: Int[np.ndarray, "N"]
) -> tuple[float, tuple[str, ...]]:
    """Rank correlation, its standard error under resampled scenes, and the mean error by quarter of the variance."""
    rows = [np.flatnonzero(scene == number) for number in range(scene.max() + 1)]
    rng, ranks = np.random.default_rng(0), []
    for _ in range(DRAWS):
        drawn = np.concatenate([rows[number] for number in rng.integers(0, len(rows), len(rows))])
        ranks.append(spearmanr(variance[drawn], error[drawn]).statistic)
    rank = float(spearmanr(variance, error).statistic)
    quarters = np.array_split(error[np.argsort(variance, kind="stable")], 4)
    found = f"{rank:+.2f} +- {np.std(ranks, ddof=1):.2f}"
    return rank, (f"{len(error):,}", found, *(f"{part.mean():.3f}" for part in quarters))


if __name__ == "__main__":
    typer.run(main)

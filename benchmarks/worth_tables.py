"""The tables of the study: means, standard errors, and differences paired by seed."""

import math
import statistics
from collections.abc import Callable, Sequence

from benchmarks.tables import show
from benchmarks.worth_results import BANDS, Result

ALONE, LIVE, UNLABELLED_TOO = "alone", "live teacher", ", with unlabelled frames"
"""Names of the arms that others are compared with, and the end of the name of an arm that sees unlabelled frames."""
Figure = Callable[[Result], float]
Figures = Callable[[Result], Sequence[float]]


def print_tables(found: Sequence[Result]) -> None:
    """All tables of all detectors and budgets."""
    for detector, epochs in dict.fromkeys((result.detector, result.epochs) for result in found):
        chosen = [result for result in found if (result.detector, result.epochs) == (detector, epochs)]
        rows = dict.fromkeys((result.variant, result.arm) for result in chosen)
        groups = {key: [r for r in chosen if (r.variant, r.arm) == key] for key in rows}
        _print(f"{detector}, {epochs} epochs", groups)
    hours = sum(result.cpu_s for result in found) / 3600
    print(f"\n{len(found)} trainings, {hours:.2f} CPU hours")


Groups = dict[tuple[str, str], list[Result]]


def _print(title: str, groups: Groups) -> None:
    figures = ("seeds", "mAP", "NDS", "- alone, mAP", "- alone, NDS", "- live, mAP")
    columns = ("", *figures, "s a step", "CPU minutes", "MB")
    show(title, columns, [_row(key, group, groups) for key, group in groups.items()])
    first = next(iter(groups.values()))[0]
    bands = [f"{near:g}-{far:g} m" for near, far in BANDS]
    show(f"{title}: errors", ("", *first.errors), _rows(groups, lambda r: list(r.errors.values())))
    show(f"{title}: AP by class", ("", *first.class_ap), _rows(groups, lambda r: list(r.class_ap.values())))
    show(f"{title}: mAP by distance", ("", *bands), _rows(groups, lambda r: r.band_ap))
    curves = [(_name(key), _curve(group)) for key, group in groups.items()]
    show(f"{title}: mAP after epochs", ("", "epoch: mAP"), curves)


def _curve(group: Sequence[Result]) -> str:
    means = _means(group, lambda r: [point.mean_ap for point in r.curve])
    return ", ".join(f"{point.epoch}: {value}" for point, value in zip(group[0].curve, means, strict=True))


def _row(key: tuple[str, str], group: Sequence[Result], groups: Groups) -> tuple:
    seen = UNLABELLED_TOO if key[1].endswith(UNLABELLED_TOO) else ""
    alone, live = (baseline(groups, key[0], arm) for arm in (ALONE, LIVE + seen))

    def middle(figure: Figure, digits: int) -> str:
        return f"{statistics.mean(map(figure, group)):.{digits}f}"

    return (
        _name(key),
        len(group),
        mean(group, mean_ap),
        mean(group, nds),
        difference(group, alone, mean_ap),
        difference(group, alone, nds),
        difference(group, live, mean_ap),
        middle(lambda r: r.seconds_per_step, 2),
        middle(lambda r: r.cpu_s / 60, 1),
        middle(lambda r: r.peak_memory_mb, 0),
    )


def _rows(groups: Groups, figures: Figures) -> list[tuple[str, ...]]:
    return [(_name(key), *_means(group, figures)) for key, group in groups.items()]


def _means(group: Sequence[Result], figures: Figures) -> list[str]:
    return [_with_error(values) for values in zip(*map(figures, group), strict=True)]


def _name(key: tuple[str, str]) -> str:
    return ": ".join(filter(None, key))


def baseline(groups: Groups, variant: str, arm: str) -> Sequence[Result]:
    """The arm's results of a variant, else of the one that its name extends behind a comma, else of the study's own."""
    for name in (variant, variant.rpartition(", ")[0], ""):
        if (name, arm) in groups:
            return groups[name, arm]
    return ()


def mean_ap(result: Result) -> float:
    """Its mAP."""
    return result.mean_ap


def nds(result: Result) -> float:
    """Its NDS."""
    return result.nds


def mean(group: Sequence[Result], figure: Figure) -> str:
    """Mean and standard error over the seeds; no error for one seed."""
    return _with_error([figure(result) for result in group])


def difference(ours: Sequence[Result], theirs: Sequence[Result], figure: Figure) -> str:
    """Mean and standard error of the differences by seed; empty where no seed is in both, or for the same group."""
    of_seed = {result.seed: result for result in theirs}
    pairs = [figure(result) - figure(of_seed[result.seed]) for result in ours if result.seed in of_seed]
    return _with_error(pairs, "+") if pairs and list(ours) != list(theirs) else ""


def _with_error(values: Sequence[float], sign: str = "") -> str:
    text = f"{statistics.mean(values):{sign}.3f}"
    if len(values) == 1:
        return text
    return f"{text} ± {statistics.stdev(values) / math.sqrt(len(values)):.3f}"

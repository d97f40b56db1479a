"""Markdown tables of medians."""

import statistics
from collections.abc import Iterable, Sequence


def spread(values: Sequence[float]) -> str:
    """Median (least - greatest), three digits."""
    middle, least, most = (f"{value:.3g}" for value in (statistics.median(values), min(values), max(values)))
    return f"{middle} ({least} - {most})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """The median of ours / theirs, turn by turn."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def show(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, its first column to the left and the others to the right."""
    print(f"\n### {title}\n\n| {' | '.join(columns)} |")
    print(f"|---|{'---:|' * (len(columns) - 1)}")
    for row in rows:
        print(f"| {' | '.join(map(str, row))} |", flush=True)

"""The GPU tables of docs/speed.md from what `benchmarks.gpu` measured: `python -m benchmarks.gpu_tables [FILE]`.

Without FILE all cells say that nothing has been measured. A rehearsal's figures are refused.
"""

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.names import CARDS_GIB, KINDS, PRECISIONS

PAGE = Path(__file__).parent.parent / "docs" / "speed.md"
BEGIN, END = "<!-- benchmarks.gpu_tables: begin -->\n", "<!-- benchmarks.gpu_tables: end -->\n"
UNKNOWN = "not measured yet"
CANDIDATES = ("mse_loss", "recipe, stored teacher", "recipe, float32 teacher", "plain", "plain, compiled")
PIECES = (
    "objective",
    "warp",
    "targets",
    "depth loss",
    "frustum",
    "lift",
    "decoding, circle NMS",
    "decoding, rotated NMS",
)
DUMP = {
    "teacher alone, frames/s": "the teacher alone, frames/s",
    "teacher and encoder, frames/s": "teacher and encoder, frames/s",
    "second dump, frames/s": "the dump, loading and writing beside them, frames/s",
    "second dump, MB/s": "written, MB/s",
}


class Measured:
    """The figures of a run by part and name; None where there are none."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.machine, self.parts = content.get("machine"), content.get("parts", {})

    def __call__(self, part: str, name: str) -> Any:
        return self.parts.get(part, {}).get("figures", {}).get(name)

    def ratio(self, part: str, name: str, floor: str) -> float | None:
        """One figure over another."""
        ours, theirs = self(part, name), self(part, floor)
        return None if ours is None or not theirs else ours / theirs


def pages_block(measured: Measured) -> str:
    """The text between the marks of the page."""
    parts: Iterable[Callable[[Measured], Iterator[str]]] = (_machine, _objective, _step, _data, _equality)
    return "\n".join("\n".join(part(measured)) + "\n" for part in parts)


def _machine(measured: Measured) -> Iterator[str]:
    machine = measured.machine
    if machine is None:
        yield "No GPU has run this yet."
        return
    yield (
        f"{machine['device']} ({machine['device GB']:.0f} GB), {machine['cores']} cores, torch {machine['torch']}, "
        f"numpy {machine['numpy']}, Python {machine['python']}, {machine['measured']}."
    )
    for name, part in measured.parts.items():
        if part["error"]:
            yield f"\nThe part `{name}` failed: `{part['error'].splitlines()[-1]}`"


def _objective(measured: Measured) -> Iterator[str]:
    rows = []
    for name in CANDIDATES:
        floor = "mse_loss beside compiled" if name == "plain, compiled" else "mse_loss"
        cells = []
        for unit in ("ms", "MB"):
            figure = f"{name} {unit}"
            cells.append(_cell(measured("objective", figure), 4))
            cells.append(_cell(measured.ratio("objective", figure, f"{floor} {unit}"), 3))
        rows.append((name, *cells))
    columns = ("8 x 384 x 128 x 128, forward and backward", "ms", "of mse_loss", "peak MB", "of mse_loss")
    return _table(columns, rows)


def _step(measured: Measured) -> Iterator[str]:
    rows = []
    for precision in PRECISIONS:
        for kind in KINDS:
            name, floor = f"{kind}, {precision}", f"{KINDS[0]}, {precision}"
            cells = [
                _cell(measured("step", f"{name} ms"), 4),
                _cell(measured.ratio("step", f"{name} ms", f"{floor} ms"), 3),
                _cell(measured("step", f"{name} GB"), 3),
                _cell(measured.ratio("step", f"{name} GB", f"{floor} GB"), 3),
                *(_cell(measured("largest batch", f"{name}, largest batch in {card} GiB"), 3) for card in CARDS_GIB),
            ]
            rows.append((name, *cells))
    sizes = (f"largest batch in {card} GiB" for card in CARDS_GIB)
    columns = ("step of 8 samples, ResNet-50, 256 x 704", "ms", "of no teacher", "peak GB", "of no teacher", *sizes)
    return _table(columns, rows)


def _data(measured: Measured) -> Iterator[str]:
    rows = [(label, _cell(measured("dump", name), 3)) for name, label in DUMP.items()]
    loading = measured.parts.get("loading", {}).get("figures", {})
    names = [name for name in loading if name.endswith("samples/s")]
    rows += [(f"training: {name}", _cell(loading[name], 3)) for name in names] or [("training: samples/s", UNKNOWN)]
    return _table(("dump and loading", "rate"), rows)


def _equality(measured: Measured) -> Iterator[str]:
    rows = [
        (piece, *(_cell(measured("equality", f"{piece}, {precision}"), 2) for precision in ("float32", "bfloat16")))
        for piece in PIECES
    ]
    return _table(("relative difference to the CPU's float32", "float32", "bfloat16"), rows)


def _cell(value: float | None, digits: int) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}g}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield f"|---|{'---:|' * (len(columns) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def fill(page: str, measured: Measured) -> str:
    """The page with its tables written anew."""
    before, rest = page.split(BEGIN)
    return before + BEGIN + pages_block(measured) + END + rest.split(END)[1]


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="what benchmarks.gpu wrote")
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    content = json.loads(options.file.read_text(encoding="utf-8")) if options.file else {}
    machine = content.get("machine") or {}
    if content and (content["small"] or machine.get("device", "cpu") == "cpu"):
        parser.error(f"{options.file} is a rehearsal's, not a GPU's at full size")
    options.page.write_text(fill(options.page.read_text(encoding="utf-8"), Measured(content)), encoding="utf-8")


if __name__ == "__main__":
    main()

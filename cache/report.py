"""What a person sees of a store."""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from cache.reader import TeacherCache, TeacherSample
from cache.shard_reader import ShardReader
from cache.spec import CodecSpec


@dataclass(frozen=True, kw_only=True)
class LayerStatistics:
    """Of a layer's decoded values in some samples."""

    mean: float
    std: float
    largest: float
    """Largest absolute value."""
    zeros: float
    """Fraction of values that are exactly 0."""


def describe(cache: TeacherCache) -> list[Table]:
    """The store in tables: identity, layers with their error report, sizes."""
    return [_identity(cache), _layers(cache), _sizes(cache)]


def statistics(cache: TeacherCache, samples: int = 8) -> dict[str, LayerStatistics]:
    """Statistics of each layer, over samples spread evenly through the store."""
    places = np.unique(np.linspace(0, len(cache) - 1, min(samples, len(cache))).astype(int))
    batch = cache.read([cache.tokens[int(place)] for place in places])
    found = {}
    for name, layer in batch.features.items():
        values = layer.decode()
        found[name] = LayerStatistics(
            mean=values.mean().item(),
            std=values.std().item(),
            largest=values.abs().max().item(),
            zeros=(values == 0).float().mean().item(),
        )
    return found


def statistics_table(found: dict[str, LayerStatistics]) -> Table:
    """The statistics as a table."""
    rows = [(name, *(f"{x:.4g}" for x in (s.mean, s.std, s.largest)), f"{s.zeros:.1%}") for name, s in found.items()]
    return _table("values", ("layer", "mean", "standard deviation", "largest", "zeros"), rows)


def figure(sample: TeacherSample, view: int = 0) -> Figure:
    """A picture of what is cached for one token: the energy of each layer, the heatmap's maximum, the canvas mask.

    Energy is the mean over channels of the absolute value, cell by cell. Row 0 (lowest y) is drawn at the bottom.
    """
    maps = {}
    for name, encoded in sample.features.items():
        shape = " x ".join(map(str, encoded.values.shape[-3:]))
        maps[f"{name}: {shape}"] = encoded.decode()[view].abs().mean(dim=0)
    maps["heatmap, max over classes"] = sample.heatmap[view].amax(dim=0) / 255
    maps["canvas mask"] = sample.canvas_mask[view]
    picture, axes = plt.subplots(1, len(maps), figsize=(3.3 * len(maps), 3.6), layout="constrained")
    for axis, (title, values) in zip(axes, maps.items(), strict=True):
        axis.imshow(values.float().numpy(), origin="lower", cmap="magma")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    picture.suptitle(f"token {sample.token}", fontsize=9)
    return picture


def _identity(cache: TeacherCache) -> Table:
    spec, teacher = cache.spec, cache.spec.teacher
    state = "complete" if cache.attributes.sealed else f"{len(cache)} committed so far"
    rows = [
        ("fingerprint", spec.fingerprint),
        ("samples", f"{spec.data.samples} of {spec.data.version}, {', '.join(spec.data.splits)}; {state}"),
        ("views", ", ".join(spec.views)),
        ("teacher", f"{teacher.name}, {teacher.weights} weights {teacher.weights_sha256[:12]}"),
        ("classes", ", ".join(teacher.classes)),
        ("points", f"{spec.points.past_sweeps} past sweeps"),
        ("software", ", ".join(f"{name} {version}" for name, version in cache.attributes.software.items())),
    ]
    return _table(str(cache.path), ("", ""), rows)


def _layers(cache: TeacherCache) -> Table:
    rows = []
    for layer in cache.spec.layers:
        shape = " x ".join(map(str, (layer.channels, *layer.grid.shape)))
        (x0, x1), (y0, y1), (cell_x, cell_y) = layer.grid.x_range_m, layer.grid.y_range_m, layer.grid.cell_m
        grid = f"x {x0:g} .. {x1:g} m, y {y0:g} .. {y1:g} m, cells {cell_x:g} x {cell_y:g} m, {layer.grid.frame}"
        report = cache.attributes.codec_report.get(layer.name)
        ratio = "" if report is None else "exact" if report.sqnr_db is None else f"{report.sqnr_db:.1f} dB"
        largest = "" if report is None else f"{report.largest_error:.3g}"
        saturated = "" if report is None else f"{report.saturated_fraction:.1%}"
        rows.append((layer.name, shape, grid, _codec(layer.codec), ratio, largest, saturated))
    return _table("layers", ("layer", "shape", "grid", "codec", "SQNR", "largest error", "saturated"), rows)


def _sizes(cache: TeacherCache) -> Table:
    """Bytes a sample of each array, as the manifest counts them, beside float32."""
    reader, shards = ShardReader(cache.path, cache.attributes), cache.committed_shards()
    views, samples = len(cache.spec.views), max(1, len(cache))
    rows, total, total_float32 = [], 0.0, 0.0
    for name, array in reader.arrays.items():
        stored = sum(reader.file(array, shard).bytes for shard in shards) / samples
        float32 = 4.0 * views * int(np.prod(array.shape)) * (8 if name == "canvas_mask" else 1)
        total, total_float32 = total + stored, total_float32 + float32
        rows.append((name, f"{stored:,.0f}", f"{float32:,.0f}", f"{float32 / stored:.1f} x" if stored else ""))
    rows.append(
        ("together", f"{total:,.0f}", f"{total_float32:,.0f}", f"{total_float32 / total:.1f} x" if total else "")
    )
    title = f"bytes a sample; {total * len(cache) / 1e9:.3f} GB together"
    return _table(title, ("array", "stored", "as float32", "smaller by"), rows)


def _codec(codec: CodecSpec) -> str:
    if codec.kind == "float16":
        return codec.kind
    companding = "" if codec.companding == 1 else f", companding {codec.companding:g}"
    target = "" if codec.target_sqnr_db is None else f", step for {codec.target_sqnr_db:g} dB"
    return f"{codec.kind}, {codec.bits} bits{companding}{target}"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table

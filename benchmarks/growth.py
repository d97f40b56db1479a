"""What grows with a data set: `python -m benchmarks.growth STORE`, STORE being a dump of any number of frames.

For stores like STORE of 80, 34,000 (nuScenes' key frames) and 1,000,000 samples: the cost to open them and to find a
sample, measured; size, files, bytes that each of `--gpus` reads in an epoch, and the dump's hours, computed from the
bytes of STORE's samples and from `--seconds`, the dump's time for one (`cli plan` measures it).
"""

import argparse
import tempfile
from pathlib import Path

from benchmarks.io_open import COLUMNS, measure
from benchmarks.tables import show
from cache.store.layout import batch_arrays, sample_arrays
from cache.store.reader import TeacherCache

SAMPLES = (80, 34_000, 1_000_000)


def main() -> None:
    """Measure and print."""
    options = _options()
    cache = TeacherCache(options.store)
    with tempfile.TemporaryDirectory() as folder:
        rows = [(f"{samples:,}", *measure(cache.attributes, Path(folder), samples)) for samples in SAMPLES]
    show("measured", ("samples", *COLUMNS), rows)
    hours = (f"dump, hours: 1 GPU at {options.seconds:g} s a sample", f"{options.gpus} GPUs")
    columns = ("samples", "store, GB", "files", f"an epoch of each of {options.gpus} GPUs, GB", *hours)
    rows = [(f"{samples:,}", *_computed(cache, samples, options.gpus, options.seconds)) for samples in SAMPLES]
    show("computed", columns, rows)


def _computed(cache: TeacherCache, samples: int, gpus: int, seconds: float) -> tuple[str, ...]:
    sizes, spec = cache.bytes_per_sample(), cache.spec
    shards = len(cache.attributes.layout.shards(samples))
    read = batch_arrays([layer.name for layer in spec.layers])
    epoch = samples * sum(size for name, size in sizes.items() if name in read) / len(spec.views) / gpus
    hours = samples * seconds / 3600
    files = shards * (len(sample_arrays(spec)) + 1)
    figures = samples * sum(sizes.values()) / 1e9, files, epoch / 1e9, hours, hours / gpus
    return tuple(f"{figure:,.3g}" if figure < 1000 else f"{figure:,.0f}" for figure in figures)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--seconds", type=float, required=True, help="a dump's time for one sample on one GPU")
    parser.add_argument("--gpus", type=int, default=8)
    return parser.parse_args()


if __name__ == "__main__":
    main()

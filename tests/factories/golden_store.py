"""The golden store of format version 2: `python -m tests.factories.golden_store tests/data/store-v2`.

It was written once and is never rewritten: run this into another folder to see what has changed since. Views of all
kinds, the depth in two cameras, a layer of each codec; 5 samples in shards of 2.
"""

import sys
from pathlib import Path

import torch

from cache.geometry.camera_points import DepthSpec
from cache.geometry.views import DrawnViews
from cache.spec import CodecSpec, LayerSpec
from cache.store.documents import TeacherFile
from cache.store.layout import Layout
from cache.store.writer import StoreWriter
from tests.factories.stores import CANVAS, LAYERS, SOFTWARE, fill, make_spec, make_tokens

VIEWS = ("canonical", "flip_y", "drawn0")
COMPANDED = CodecSpec(bits=5, companding=0.5, min_sqnr_db=10)


def make_golden_store(path: Path) -> None:
    """Write the store."""
    tokens = make_tokens(5)
    layers = {**LAYERS, "backbone2": (2, 4, COMPANDED)}
    spec = make_spec(
        tokens,
        layers=tuple(
            LayerSpec(name=name, channels=channels, grid=CANVAS.coarser(stride), codec=codec)
            for name, (channels, stride, codec) in layers.items()
        ),
        views=VIEWS,
        drawn=DrawnViews(seed=9),
        depth=DepthSpec(cameras=("left", "right"), room=8, pixel_step=1 / 32),
    )
    with StoreWriter(
        path,
        spec,
        tokens,
        head_weights={"heatmap.weight": torch.arange(6.0).reshape(2, 3)},
        software=SOFTWARE,
        layout=Layout(samples_per_shard=2),
        teacher_file=TeacherFile(name="teacher.pth", sha256="c" * 64),
    ) as writer:
        fill(writer)
        assert writer.seal()


if __name__ == "__main__":
    torch.set_num_threads(1)
    make_golden_store(Path(sys.argv[1]))

"""Cost of a student's parts by precision, memory layout and size: forward and backward pass, one thread, CPU time.

    python -m benchmarks.precision
    python -m benchmarks.precision --config configs/bevdepth_r50.yaml --samples 1 --rounds 3

The lift between depth net and BEV encoder runs in float32 in any case and is measured by `benchmarks.lifting`.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from benchmarks.tables import show
from cache.config import load_yaml
from student.config.student import StudentConfig
from student.models.detectors import BevDetector, build_detector

DEMO = Path(__file__).parent.parent / "configs" / "demo" / "student.yaml"
CAMERAS = 6
PARTS = ("image encoder", "depth net", "BEV encoder and head")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured: changes of the configuration, precision and layout."""

    name: str
    changes: tuple[str, ...] = ()
    bfloat16: bool = False
    channels_last: bool = False

    def measure(self, config: Path, samples: int, rounds: int) -> list[float]:
        """Milliseconds of the parts."""
        student = load_yaml(config, StudentConfig, self.changes)
        detector = build_detector(student.detector)
        if self.channels_last:
            detector.to(memory_format=torch.channels_last)
        return [self._time(run, rounds) for run in _passes(detector, student, samples)]

    def _time(self, run: Callable[[], Tensor], rounds: int) -> float:
        times = []
        for _ in range(rounds + 1):
            began = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=self.bfloat16):
                total = run()
            total.backward()
            times.append(time.process_time() - began)
        return 1e3 * statistics.median(times[1:])


SETTINGS = (
    Setting(name="32-true"),
    Setting(name="32-true, channels_last", channels_last=True),
    Setting(name="bf16-mixed", bfloat16=True),
    Setting(name="bf16-mixed, channels_last", bfloat16=True, channels_last=True),
)
SIZES = tuple(
    Setting(name=name, changes=changes, bfloat16=bfloat16, channels_last=True)
    for name, changes, bfloat16 in (
        ("image stride 16", ("detector.image_stride=16",), True),
        ("48 x 128 pixels", ("image.size=[48,128]",), True),
        ("MobileNetV3 small, 32-true", ("detector.image_backbone=mobilenet_v3_small",), False),
        ("MobileNetV3 small", ("detector.image_backbone=mobilenet_v3_small",), True),
        ("RegNetY-400MF", ("detector.image_backbone=regnet_y_400mf",), True),
        ("BEVDet: no depth net", ("detector.name=bevdet",), True),
    )
)
"""Other students, with channels_last, in bfloat16 unless stated otherwise."""


def _passes(detector: BevDetector, student: StudentConfig, samples: int) -> Iterator[Callable[[], Tensor]]:
    """The forward pass of each part, on random inputs."""
    config, (height, width) = student.detector, student.image.size
    torch.manual_seed(0)
    images = torch.randint(0, 256, (CAMERAS * samples, 3, height, width), dtype=torch.uint8)
    shape = (CAMERAS * samples, config.image_neck_channels, height // config.image_stride, width // config.image_stride)
    features = torch.randn(shape, requires_grad=True)
    parameters = torch.randn(CAMERAS * samples, 27)
    bev = torch.randn(samples, config.lift_channels * config.times, *config.grid.shape, requires_grad=True)

    def encode_bev() -> Tensor:
        heatmap, maps = detector.head(detector.bev_neck(detector.bev_backbone(bev)))
        return torch.stack([heatmap.float().sum(), *(each.float().sum() for each in maps.values())]).sum()

    yield lambda: detector.image_encoder(images).float().sum()
    yield lambda: detector.lift.depth_net(features, parameters).float().sum()
    yield encode_bev


def main(
    config: Path = DEMO,
    samples: int = 2,
    rounds: int = 5,
    sizes: Annotated[bool, typer.Option(help="Other students as well; for the demo's configuration.")] = False,
) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    rows, first = [], None
    for setting in (*SETTINGS, *(SIZES if sizes else ())):
        times = setting.measure(config, samples, rounds)
        first = first or sum(times)
        rows.append((setting.name, *(f"{ms:.0f}" for ms in times), f"{sum(times):.0f}", f"{sum(times) / first:.2f}"))
    show(f"{config.name}, {samples} samples, ms", ("", *PARTS, "together", "of the first"), rows)


if __name__ == "__main__":
    typer.run(main)

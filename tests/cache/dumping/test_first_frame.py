"""What a teacher of the user's own returns is checked on the first frame."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cache.dumping.setup import DumpSetup
from cache.errors import TeacherError
from cache.geometry.grid import BevGrid
from cache.teacher.base import TeacherOutput
from tests.factories.stores import SmallFrames, SmallTeacher, make_config


@pytest.fixture
def frames(tmp_path: Path) -> SmallFrames:
    return SmallFrames(root=tmp_path / "points", count=2)


def refused(teacher: Any, frames: SmallFrames, said: str) -> None:
    with pytest.raises(TeacherError, match=said):
        DumpSetup.of(make_config(), frames, teacher)


class Changed(SmallTeacher):
    """The small teacher with another output."""

    def __init__(self, **changes: Any) -> None:
        super().__init__()
        self.changes = changes

    def forward(self, prepared: list) -> Any:
        output = super().forward(prepared)
        return self.changes["all"](output) if "all" in self.changes else replace(output, **self._changed(output))

    def _changed(self, output: TeacherOutput) -> dict[str, Any]:
        return {name: change(getattr(output, name)) for name, change in self.changes.items()}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"all": lambda output: output.layers}, r"\(output\); got dict; expected TeacherOutput"),
        ({"all": lambda output: 1 / 0}, r"failed on the first frame \(small, token 0000\); got ZeroDivisionError"),
        ({"layers": lambda maps: maps | {"head": maps["head"].long()}}, r"layer head\); got torch\.int64; exp"),
        ({"layers": lambda maps: maps | {"head": maps["head"][0]}}, r"layer head\); got \(6, 6, 8\); expected 4"),
        ({"layers": lambda maps: maps | {"head": maps["head"] / 0}}, r"layer head\); got NaN or infinity"),
        ({"heatmap": lambda maps: maps[:, :2]}, r"heatmap, channels\); got 2; expected 3 classes"),
        ({"heatmap": lambda maps: None}, r"head_maps\); got reg; expected none without a heatmap"),
        ({"head_maps": lambda maps: {"reg": maps["reg"][:, :1]}}, r"head map reg, rows\); got 1; expected 2 tasks"),
        ({"canvas_mask": lambda mask: mask.float()}, r"canvas.mask"),
    ],
)  # fmt: skip
def test_other_outputs_than_the_protocols(changes: dict, said: str, frames: SmallFrames) -> None:
    refused(Changed(**changes), frames, said)


def test_teachers_that_train(frames: SmallFrames) -> None:
    refused(SmallTeacher().train(), frames, r"modules\); got \d+ in training mode: .*expected eval mode")
    refused(SmallTeacher().requires_grad_(), frames, r"parameters\); got \d+ require a gradient: .*requires_gr")


def test_attributes_and_classes(frames: SmallFrames) -> None:
    teacher = SmallTeacher()
    teacher.heatmap_grid = (6, 8)
    refused(teacher, frames, r"attribute heatmap_grid\); got tuple; expected BevGrid")
    teacher = SmallTeacher(tasks=(("car",), ("lorry",)))
    refused(teacher, frames, r"identity\.tasks\); got lorry; expected \('car'")
    teacher = SmallTeacher()
    teacher.layer_grids = {"backbone0": teacher.canvas_grid}
    refused(teacher, frames, r"layer_grids\['head'\]\); got NoneType; expected BevGrid")
    teacher.layer_grids["head"] = BevGrid(x_range_m=(-8.0, 8.0), y_range_m=(-6.0, 6.0), cell_m=(4.0, 4.0))
    refused(teacher, frames, r"does not fit its grid \(layer head\); got \(6, 8\); expected \(3, 4\)")


def test_a_sound_teacher_passes(frames: SmallFrames) -> None:
    setup = DumpSetup.of(make_config(), frames, SmallTeacher())
    assert setup.spec.heatmap == "probability"
    without = Changed(heatmap=lambda maps: None, head_maps=lambda maps: {})
    assert DumpSetup.of(make_config(), frames, without).spec.heatmap == "none"
    assert torch.is_grad_enabled()

"""The model zoo as teachers: each result says what happened, and the documentation's table is the command's."""

import re
from pathlib import Path

import pytest

from cache.teacher.mmdet3d_config import zoo_configs
from cache.teacher.zoo import survey_zoo
from cache.visualization.zoo import zoo_table

pytest.importorskip("mmdet3d", reason="the teacher's libraries are not installed")

PAGE = Path(__file__).parents[3] / "docs" / "your-data.md"
PILLAR02 = "centerpoint_pillar02_second_secfpn_8xb4-cyclic-20e_nus-3d"
CAMERA = "fcos3d_r101-caffe-dcn_fpn_head-gn_8xb2-1x_nus-mono3d"


def documented() -> dict[str, str]:
    """Rows of the page's table by configuration."""
    return {
        name: line for line in PAGE.read_text().splitlines() if (name := "".join(re.findall(r"^\| `(\S+)` ", line)))
    }


def test_a_teacher_and_a_camera_detector() -> None:
    steps: list[tuple[int, int]] = []
    works, refused = survey_zoo((PILLAR02, CAMERA), lambda *step: steps.append(step))
    assert steps == [(1, 2), (2, 2)]
    assert (works.result, works.spconv, works.heatmap, works.head) == ("works", False, True, "384 x 128 x 128")
    assert (refused.result, refused.reason) == ("refused", "the detector takes no voxels of LiDAR points")
    rows = zoo_table((works, refused)).markdown().splitlines()[-2:]
    assert rows == [documented()[PILLAR02], documented()[CAMERA]]


def test_every_nuscenes_configuration_is_documented() -> None:
    assert set(documented()) == {name for name in zoo_configs() if re.search(r"_nus-(3d|mono3d)", name)}


@pytest.mark.long
def test_the_documented_table_is_what_the_command_prints() -> None:
    pytest.importorskip("spconv", reason="spconv is not installed (make setup WITH=voxel)")
    assert zoo_table(survey_zoo()).markdown().splitlines()[4:] == list(documented().values())

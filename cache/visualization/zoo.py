"""The table of mmdet3d's model zoo as teachers."""

from collections.abc import Sequence

from cache.teacher.zoo import ZooTeacher
from cache.visualization.tables import Table


def zoo_table(found: Sequence[ZooTeacher]) -> Table:
    """Which configurations of mmdet3d's model zoo can teach."""
    columns = ("configuration", "result", "`head`", "heatmap")
    return Table(title="mmdet3d's nuScenes detectors", columns=columns, rows=tuple(map(_row, found)))


def _row(found: ZooTeacher) -> tuple[str, str, str, str]:
    if found.result != "works":
        result = f"refused: {found.reason}" if found.result == "refused" else found.result
        return f"`{found.name}`", result, "", ""
    result = "works, with spconv" if found.spconv else "works"
    return f"`{found.name}`", result, found.head, "yes" if found.heatmap else "no"

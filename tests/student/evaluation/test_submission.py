import pytest

from cache.spec import CLASSES
from student.evaluation.submission import likely_attribute


@pytest.mark.parametrize(
    ("name", "speed_mps", "expected"),
    [
        ("car", 3.0, "vehicle.moving"),
        ("car", 0.1, "vehicle.parked"),
        ("bus", 0.1, "vehicle.stopped"),
        ("bicycle", 3.0, "cycle.with_rider"),
        ("motorcycle", 0.0, "cycle.without_rider"),
        ("pedestrian", 1.0, "pedestrian.moving"),
        ("pedestrian", 0.0, "pedestrian.standing"),
        ("barrier", 0.0, ""),
    ],
)
def test_attributes(name: str, speed_mps: float, expected: str) -> None:
    assert name in CLASSES
    assert likely_attribute(name, speed_mps) == expected

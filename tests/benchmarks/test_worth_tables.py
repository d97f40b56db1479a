"""The study's tables, by hand."""

import pytest

pytest.importorskip("nuscenes", reason="the devkit is not installed (the extra evaluate)")

from benchmarks.worth_results import Point, Result
from benchmarks.worth_tables import difference, mean, mean_ap, print_tables


def result(arm: str, seed: int, value: float) -> Result:
    return Result(
        variant="",
        detector="bevdepth",
        arm=arm,
        epochs=6,
        seed=seed,
        mean_ap=value,
        nds=2 * value,
        errors={"mATE (m)": 1.0},
        class_ap={"car": value},
        band_ap=(value, value, value),
        curve=(Point(epoch=6, mean_ap=value, nds=value),),
        cpu_s=1800,
        seconds_per_step=0.5,
        peak_memory_mb=100,
    )


ALONE = [result("alone", seed, value) for seed, value in enumerate((0.1, 0.3, 0.2))]
LIVE = [result("live teacher", seed, value) for seed, value in ((2, 0.3), (0, 0.12))]


def test_the_error_of_a_mean_is_that_of_the_seeds() -> None:
    assert mean(ALONE, mean_ap) == "0.200 ± 0.058"  # 0.1 / sqrt(3)
    assert mean(ALONE[:1], mean_ap) == "0.100"


def test_differences_are_paired_by_seed() -> None:
    # 0.3 - 0.2 and 0.12 - 0.1: 0.06, and 0.08 / sqrt(2) / sqrt(2).
    assert difference(LIVE, ALONE, mean_ap) == "+0.060 ± 0.040"
    assert difference(ALONE, ALONE, mean_ap) == ""
    assert difference(LIVE, ALONE[1:2], mean_ap) == ""


def test_tables_state_the_cpu_hours(capsys: pytest.CaptureFixture[str]) -> None:
    print_tables([*ALONE, *LIVE])
    printed = capsys.readouterr().out
    assert "5 trainings, 2.50 CPU hours" in printed
    assert "| live teacher | 2 | 0.210 ± 0.090 | 0.420 ± 0.180 | +0.060 ± 0.040 |" in printed

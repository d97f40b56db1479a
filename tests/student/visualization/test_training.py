"""Tables of a training's plan and profile, from figures made up by hand."""

from student.data.batch import LoadSeconds
from student.training.plan import TrainingMemory, TrainingPlan
from student.training.profile import PartTime, StepProfile
from student.visualization.training import plan_tables, profile_advice, profile_table

GB = 10**9


def profile(waiting: float) -> StepProfile:
    parts = (PartTime(name="data", median_s=waiting, share=waiting), PartTime(name="backward", median_s=1, share=0.5))
    load = LoadSeconds(images=0.25, features=0.125)
    return StepProfile(steps=20, batch_size=2, workers=4, step_s=1.5, parts=parts, load=load)


def test_a_profile_names_its_parts_their_sum_and_loading() -> None:
    table = profile_table(profile(waiting=0.5))
    assert table.title == "20 steps of 2 samples, 4 loader workers"
    assert table.rows == (
        ("data: waiting for the loader", "500.0", "50.0%"),
        ("backward", "1000.0", "50.0%"),
        ("step", "1500.0", "100.0%"),
        ("loading, a sample: images", "250.0", ""),
        ("loading, a sample: depth", "0.0", ""),
        ("loading, a sample: features", "125.0", ""),
    )


def test_workers_are_advised_to_a_training_that_waits() -> None:
    assert profile_advice(profile(waiting=0.1)) == "The loader keeps up."
    assert profile_advice(profile(waiting=0.5)).startswith(
        "50% of the time is spent waiting for data: raise data.workers"
    )


def test_a_plan_has_its_figures_and_the_largest_batches() -> None:
    plan = TrainingPlan(
        parameters=1_000_000,
        batch_size=2,
        precision="32-true",
        memory=TrainingMemory(weights=GB, optimiser=2 * GB, fixed=3 * GB, each_sample=4 * GB),
        steps=48,
        epochs=24,
        checkpoint_bytes=3 * GB,
        epoch_bytes=0.5 * GB,
    )
    figures, gpus = plan_tables(plan)
    rows = dict(figures.rows)
    assert (rows["parameters"], rows["steps"]) == ("1,000,000", "48 in 24 epochs of 2")
    assert (rows["read of the caches"], rows["peak with 2 samples"]) == ("0.50 GB an epoch", "14.00 GB")
    assert gpus.rows == (("8 GB", "none"), ("12 GB", "none"), ("24 GB", "3"), ("80 GB", "16"))

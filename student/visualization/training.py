"""Tables of a training's plan and of its step profile."""

from cache.visualization.tables import Table
from student.training.plan import GB, GPUS_GB, TrainingPlan
from student.training.profile import StepProfile

BOUND_BY_DATA = 0.1
"""A training that waits for its data for more than this share of its time would gain from workers."""

_PARTS = {
    "data": "data: waiting for the loader",
    "transfer": "transfer to the device",
    "forward": "forward, detection losses",
    "objective": "distillation objective",
    "backward": "backward",
    "optimiser": "clipping, optimiser, log",
}


def profile_table(profile: StepProfile) -> Table:
    """The parts of a step; loading comes last and is no part of the sum."""
    parts = [(_PARTS[part.name], f"{1e3 * part.median_s:.1f}", f"{part.share:.1%}") for part in profile.parts]
    step = ("step", f"{1e3 * profile.step_s:.1f}", f"{sum(part.share for part in profile.parts):.1%}")
    load = [
        (f"loading, a sample: {name}", f"{1e3 * getattr(profile.load, name):.1f}", "")
        for name in ("images", "depth", "features")
    ]
    return Table(
        title=f"{profile.steps} steps of {profile.batch_size} samples, {profile.workers} loader workers",
        columns=("part", "median, ms", "share"),
        rows=(*parts, step, *load),
    )


def profile_advice(profile: StepProfile) -> str:
    """How to make the steps faster."""
    waiting = next(part.share for part in profile.parts if part.name == "data")
    if waiting <= BOUND_BY_DATA:
        return "The loader keeps up."
    return f"{waiting:.0%} of the time is spent waiting for data: raise data.workers, if there are cores for them."


def plan_tables(plan: TrainingPlan) -> list[Table]:
    """A plan's figures, and the largest batch on GPUs of several sizes."""
    memory = plan.memory
    figures = (
        ("parameters", f"{plan.parameters:,}"),
        ("steps", f"{plan.steps:,} in {plan.epochs} epochs of {plan.steps // plan.epochs:,}"),
        ("read of the caches", f"{plan.epoch_bytes / GB:,.2f} GB an epoch"),
        ("a checkpoint", f"{plan.checkpoint_bytes / GB:,.2f} GB"),
        ("weights", f"{memory.weights / GB:,.2f} GB"),
        ("optimiser's state", f"{memory.optimiser / GB:,.2f} GB"),
        ("other fixed parts", f"{memory.fixed / GB:,.2f} GB"),
        ("activations, each sample", f"{memory.each_sample / GB:,.2f} GB"),
        (f"peak with {plan.batch_size} samples", f"{memory.peak(plan.batch_size) / GB:,.2f} GB"),
    )
    largest = tuple((f"{size} GB", str(memory.largest_batch(size) or "none")) for size in GPUS_GB)
    return [
        Table(title=f"{plan.precision}, estimates of a device's memory", rows=figures),
        Table(title="", columns=("GPU", "largest training.batch_size"), rows=largest),
    ]

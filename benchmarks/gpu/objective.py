"""The objective beside one `mse_loss` and beside a compiled formulation: time and peak memory, forward and backward."""

import statistics
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.gpu.part import Figures, Job
from benchmarks.objective import (
    BATCH,
    World,
    build_objective,
    plain_loss,
    run_mse,
    run_plain,
    run_recipe,
)
from benchmarks.objective import measure as take_turns


def measure(job: Job) -> Figures:
    """Milliseconds and megabytes of each candidate, at 8 x 384 x 128 x 128; a rehearsal takes one sample."""
    torch.manual_seed(0)
    world, objective = World(job.device, 1 if job.sizes.small else BATCH), build_objective(job.device)
    candidates: dict[str, Callable[[], object]] = {
        "mse_loss": partial(run_mse, world),
        "recipe, stored teacher": partial(run_recipe, world, objective, world.stored),
        "recipe, float32 teacher": partial(run_recipe, world, objective, world.decoded),
        "plain": partial(run_plain, world, objective),
    }
    reference = run_plain(world, objective)
    ours = run_recipe(world, objective, world.stored)
    yield "largest difference of the gradients of recipe and plain", _difference(ours, reference)
    yield from _costs(job, candidates)
    # Last and by itself: a machine without a compiler has all figures but these.
    compiled = partial(run_plain, world, objective, torch.compile(plain_loss))
    yield "largest difference of the gradients of compiled and plain", _difference(compiled(), reference)
    yield from _costs(job, {"mse_loss beside compiled": candidates["mse_loss"], "plain, compiled": compiled})


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _costs(job: Job, candidates: dict[str, Callable[[], object]]) -> Figures:
    for name, cost in take_turns(candidates, rounds=2 if job.sizes.small else 20, device=job.device).items():
        yield f"{name} ms", 1e3 * statistics.median(cost.wall)
        yield f"{name} MB", statistics.median(cost.peak) / 1e6

"""Cost of the distillation objective: `python -m benchmarks.objective [--threads N] [--device cuda]`.

Features of 8 x 384 x 128 x 128, forward and backward, all candidates in turn in one run:
- mse: `mse_loss` of the student's and the float32 teacher's features, the baseline;
- recipe: the paper's fgd on the head pair, with all its masks, from the uint8 teacher (and from a float32 one);
- plain: the same terms written out over the features, as published; with --compiled also by `torch.compile`.
Then the masks of 8 samples of 40 boxes, and the scales of connected regions; with --terms instead the peers' terms,
each alone beside the same `mse_loss`, from the uint8 teacher, with the gradients of features, head maps and depth
(`cross_head`, a pass of the teacher's head forward and backward, only if it is named; beside it that head forward).

Times are medians, with the fastest and slowest in brackets: wall time, and the process's own time, which other
processes on the machine disturb less. Memory is the peak above what was there before: on a CPU of resident memory, some
of which glibc keeps for later (with MALLOC_MMAP_THRESHOLD_=65536 in the environment it does not); on a GPU of allocated
memory.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.memory import reset_peak
from cache.geometry.grid import BevGrid
from cache.spec import CLASSES, CacheSpec, CodecSpec, DataIdentity, LayerSpec, PointPipeline, TeacherIdentity
from cache.store.codec import Encoded
from student.config.student import HeadConfig
from student.distill import (
    DistillConfig,
    DistillObjective,
    FeatureLayer,
    TeacherMaps,
    draw_heatmaps,
    pad_boxes,
)
from student.distill.attention import joint_attention
from student.distill.cell_weights import weigh_cells
from student.distill.head_maps import HEAD_MAPS
from student.distill.predictions import StudentDepth, TeacherPredictions
from student.distill.regions import region_scale
from student.distill.terms.fgd import FgdLoss
from student.fidelity.surrogate import RECIPE
from student.models.center_head import CenterHead
from student.training.memory import peak_bytes

GRID = BevGrid(x_range_m=(-51.2, 51.2), y_range_m=(-51.2, 51.2), cell_m=(0.8, 0.8))
BATCH, CHANNELS, BOXES = 8, 384, 40
TASKS = (CLASSES[:1], CLASSES[1:3], CLASSES[3:5], CLASSES[5:6], CLASSES[6:8], CLASSES[8:])


@dataclass
class Cost:
    """Seconds of each turn, and peak bytes."""

    wall: list[float] = field(default_factory=list)
    process: list[float] = field(default_factory=list)
    peak: list[int] = field(default_factory=list)


PEERS: dict[str, dict] = {
    "unidistill_points": {"kind": "unidistill_points"},
    "tigbev_features, 4 x 4": {"kind": "tigbev_features"},
    "tigbev_features, 8 x 8": {"kind": "tigbev_features", "points": 8},
    "bevdistill_feature": {"kind": "bevdistill_feature"},
    "box_response, boxes": {"kind": "box_response", "heatmap_weight": 1.0},
    "box_response, teacher": {"kind": "box_response", "at": "teacher"},
    "tigbev_depth": {"kind": "tigbev_depth"},
    "cross_head": {"kind": "cross_head"},
}


class World:
    """Random features, heatmaps and boxes of one batch."""

    def __init__(self, device: str, batch: int = BATCH) -> None:
        torch.manual_seed(0)
        shape = (batch, CHANNELS, *GRID.shape)
        self.student = torch.randn(shape, device=device).relu_()
        values = (torch.randn(shape, device=device).relu_() * 60).clamp_(max=255).to(torch.uint8)
        scale = torch.rand(batch, CHANNELS, device=device) * 0.02
        self.stored = Encoded(values=values, scale=scale, codec=CodecSpec())
        self.decoded = self.stored.decode()
        self.heatmap = (torch.rand(batch, 10, *GRID.shape, device=device) ** 30 * 255).to(torch.uint8)
        self.logits = torch.randn(batch, 10, *GRID.shape, device=device) - 4
        self.canvas = torch.rand(batch, 512, 512, device=device) > 0.9
        rng = np.random.default_rng(0)
        count = (batch, BOXES)
        columns = [rng.uniform(-50, 50, count) for _ in range(2)]
        sides = rng.choice([[4.6, 1.9], [0.7, 0.7], [10.5, 2.9], [2.1, 0.8]], count)
        rest = [np.zeros(count)], [np.full(count, 1.5), rng.uniform(-3, 3, count)]
        stacked = np.stack([*columns, *rest[0], sides[..., 0], sides[..., 1], *rest[1], *rest[0], *rest[0]], axis=-1)
        self.boxes = tuple(torch.from_numpy(sample).float().to(device) for sample in stacked)
        self.labels = tuple(torch.from_numpy(rng.integers(0, 10, BOXES)).to(device) for _ in range(batch))

    def teacher(self, features: Tensor | Encoded) -> TeacherMaps:
        """The teacher with these features."""
        return TeacherMaps(features={"head": features}, heatmap=self.heatmap, canvas_mask=self.canvas)

    def add_heads(self, device: str) -> None:
        """Head maps of student and teacher, and depth: 6 cameras of 16 x 44 patches and 59 bins."""
        batch = len(self.student)
        shapes = {name: (batch, len(TASKS), width, *GRID.shape) for name, width in HEAD_MAPS.items()}
        self.student_maps = {name: torch.randn(shape, device=device) for name, shape in shapes.items()}
        self.teacher_maps = {name: torch.randn(shape, device=device).half() for name, shape in shapes.items()}
        self.depth_logits = torch.randn(batch, 6, 59, 16, 44, device=device)
        self.points = (torch.rand(batch, 6, 16, 44, 3, device=device) - 0.5) * torch.tensor([100.0, 100.0, 4.0])


def build_objective(device: str, config: dict = RECIPE) -> DistillObjective:
    """The recipe on the head pair, or another; no adapter, as mse_loss has none."""
    spec = CacheSpec(
        teacher=TeacherIdentity(name="t", weights_sha256="0", config_sha256="0", tasks=TASKS),
        data=DataIdentity(version="v1.0-mini", splits=("mini_train",), samples=1, tokens_sha256="0"),
        points=PointPipeline(),
        layers=(LayerSpec(name="head", channels=CHANNELS, grid=GRID, codec=CodecSpec()),),
        heatmap_grid=GRID,
        canvas_grid=GRID.resized((512, 512)),
        head_maps=HEAD_MAPS,
    )
    parsed = DistillConfig.parse(config, "benchmark")
    student = {"head": FeatureLayer(channels=CHANNELS, grid=GRID)}
    heads = {cache: CenterHead(CHANNELS, HeadConfig(tasks=TASKS)) for cache in parsed.crossed_caches}
    return DistillObjective(parsed, student, GRID, TASKS, [spec], heads).to(device)


def fgd_of(objective: DistillObjective) -> FgdLoss:
    """The recipe's one term."""
    (term,) = (module for module in objective.modules() if isinstance(module, FgdLoss))
    return term


def run_mse(world: World) -> Tensor:
    """The baseline."""
    student = world.student.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.mse_loss(student, world.decoded), student)
    return gradient


def run_recipe(world: World, objective: DistillObjective, features: Tensor | Encoded) -> Tensor:
    """The recipe's terms, summed."""
    student = world.student.detach().requires_grad_()
    teacher = world.teacher(features)
    terms = objective({"head": student}, world.logits, teacher, world.boxes, world.labels, 0)
    (gradient,) = torch.autograd.grad(torch.stack(list(terms.values())).sum(), student)
    return gradient


def run_peer(world: World, objective: DistillObjective) -> tuple[Tensor | None, ...]:
    """A peer's term, with the gradients of all that it reads."""
    features, logits, depth = (x.detach().requires_grad_() for x in (world.student, world.logits, world.depth_logits))
    maps = {name: values.detach().requires_grad_() for name, values in world.student_maps.items()}
    teacher = replace(world.teacher(world.stored), head_maps=world.teacher_maps)
    distances = world.points.norm(dim=-1)
    terms = objective(
        {"head": features},
        logits,
        teacher,
        world.boxes,
        world.labels,
        0,
        student_maps=maps,
        depth=StudentDepth(logits=depth, depth_m=distances, points_m=world.points, bins_m=(1.0, 60.0, 1.0)),
    )
    inputs = (features, logits, depth, *maps.values())
    return torch.autograd.grad(torch.stack(list(terms.values())).sum(), inputs, allow_unused=True)


def plain_loss(
    student: Tensor, values: Tensor, scale: Tensor, weights: tuple[Tensor, ...], spatial_adapter: nn.Module
) -> Tensor:
    """The recipe's terms over whole feature maps; `weights` of foreground, background and false positives."""
    teacher, square = values.float() * scale[..., None, None], nn.MSELoss(reduction="none")
    foreground, background, false_positive = weights
    attention = joint_attention("teacher_student", teacher.abs().mean(1), student.abs().mean(1), 0.5)
    channel = torch.softmax(teacher.abs().mean((2, 3)) / 0.5, dim=1)[..., None, None] * CHANNELS
    losses = [
        (square(student, teacher) * (foreground * attention)[:, None]).sum() * 6e-3,
        (square(student, teacher) * (background * attention)[:, None]).sum() * 4e-2,
        (square(student, teacher) * ((false_positive * attention)[:, None] * channel)).sum() * 6e-2,
        (spatial_adapter(student.mean(1, keepdim=True)) - teacher.mean(1, keepdim=True)).abs().sum() * 2.5e-3,
    ]
    return torch.stack(losses).sum() / len(student)


def run_plain(world: World, objective: DistillObjective, loss: Callable[..., Tensor] = plain_loss) -> Tensor:
    """`loss` with masks as in `run_recipe`."""
    student = world.student.detach().requires_grad_()
    term, maps = fgd_of(objective), world.teacher(world.stored)
    aligned = TeacherPredictions(heatmap=maps.heatmap, canvas_mask=maps.canvas_mask)
    predictions = objective._predictions(world.logits, (aligned,), world.boxes, world.labels, 0)
    cells = term._weigh_cells(predictions)
    assert term.spatial_adapter is not None and cells.false_positive is not None  # the recipe has both
    weights = cells.foreground, cells.background, cells.false_positive
    total = loss(student, world.stored.values, world.stored.scale, weights, term.spatial_adapter)
    (gradient,) = torch.autograd.grad(total, student)
    return gradient


def measure(candidates: Mapping[str, Callable[[], object]], rounds: int, device: str) -> dict[str, Cost]:
    """Run all candidates in turn, `rounds` times after one to warm up; then again for their memory, since what is given
    back to the system for that has to be fetched again, which takes time."""
    costs = {name: Cost() for name in candidates}
    for turn in range(rounds + 1):
        for name, candidate in candidates.items():
            wall, process = time.perf_counter(), time.process_time()
            kept = candidate()
            _synchronise(device)
            if turn:
                costs[name].wall.append(time.perf_counter() - wall)
                costs[name].process.append(time.process_time() - process)
            del kept
    for _ in range(3):
        for name, candidate in candidates.items():
            before = reset_peak(device)
            candidate()
            costs[name].peak.append(peak_bytes(device) - before)
    return costs


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def report(title: str, costs: dict[str, Cost], floor: str | None = None) -> None:
    """A table; with ratios to the baseline `floor`, turn by turn."""
    print(f"\n{title}")
    heads = f"{'':24}{'wall ms':>24}{'process ms':>24}{'peak MB':>10}"
    print(heads + (f"   of {floor}: wall, process, peak" if floor else ""))
    for name, cost in costs.items():
        cells = [_spread([1e3 * t for t in times]) for times in (cost.wall, cost.process)]
        line = f"{name:24}{cells[0]:>24}{cells[1]:>24}{statistics.median(cost.peak) / 1e6:>10.1f}"
        if floor:
            base = costs[floor]
            pairs = [(getattr(cost, field.name), getattr(base, field.name)) for field in fields(Cost)]
            ratios = [statistics.median(a / b for a, b in zip(ours, theirs, strict=True)) for ours, theirs in pairs]
            line += "   " + "  ".join(f"{ratio:.2f}" for ratio in ratios)
        print(line)


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f}-{max(values):.1f})"


def compare_terms(world: World, names: list[str], rounds: int, device: str) -> None:
    """The peers' terms beside `mse_loss`."""
    world.add_heads(device)
    pairs = RECIPE["pairs"]
    objectives = {name: build_objective(device, {"pairs": pairs, "terms": [PEERS[name]]}) for name in names}
    candidates = {name: partial(run_peer, world, objective) for name, objective in objectives.items()}
    if "cross_head" in objectives:
        (head,) = objectives["cross_head"].teacher_heads.values()
        candidates["the head forward"] = partial(torch.no_grad()(head), world.student)
    threads = torch.get_num_threads()
    title = f"torch {torch.__version__}, {device}, {threads} threads: the peers' terms, forward and backward"
    report(title, measure({"mse": lambda: run_mse(world), **candidates}, rounds, device), floor="mse")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--compiled", action="store_true", help="plain by torch.compile as well")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    everyday = [name for name in PEERS if name != "cross_head"]
    parser.add_argument("--terms", nargs="*", choices=list(PEERS), help=f"the peers' terms; by default {everyday}")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = options.device
    world = World(device, options.batch)
    if options.terms is not None:
        compare_terms(world, options.terms or everyday, options.rounds, device)
        return
    objective = build_objective(device)
    shape = f"{options.batch} x {CHANNELS} x {GRID.shape}"
    print(f"torch {torch.__version__}, {device}, {options.threads} threads, {shape}")
    gradients = [run_recipe(world, objective, world.stored), run_plain(world, objective)]
    difference = (gradients[0] - gradients[1]).abs().max() / gradients[1].abs().max()
    print(f"largest difference of the gradients of recipe and plain, of the largest gradient: {difference:.1e}")
    features: dict[str, Callable[[], object]] = {
        "mse": lambda: run_mse(world),
        "recipe, uint8 teacher": lambda: run_recipe(world, objective, world.stored),
        "recipe, float32 teacher": lambda: run_recipe(world, objective, world.decoded),
        "plain": lambda: run_plain(world, objective),
    }
    if options.compiled:
        features["plain, compiled"] = partial(run_plain, world, objective, torch.compile(plain_loss))
    term = fgd_of(objective)
    channels = torch.stack([label.long() for label in world.labels])
    region = world.heatmap.amax(1) > 25
    parts = {
        "masks of boxes": lambda: weigh_cells(term.config, pad_boxes(world.boxes), GRID),
        "ground-truth heatmap": lambda: draw_heatmaps(pad_boxes(world.boxes), 0 * channels, 1, GRID),
        "region scales": lambda: region_scale("region", region),
    }
    report("forward and backward", measure(features, options.rounds, device), floor="mse")
    report(f"{options.batch} samples of {BOXES} boxes", measure(parts, 10 * options.rounds, device))


if __name__ == "__main__":
    main()

"""Equality with the CPU: objective, warp, targets, lift, decoding and non-maximum suppression, float32 and bfloat16."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.gpu.part import Figures, Job
from benchmarks.gpu.world import make_dataset, relative_difference
from cache.spec import Decoding
from student.data.batch import Batch
from student.models.center_targets import head_targets
from student.models.decoding import decode
from student.models.depth_net import depth_loss
from student.models.detectors import StudentOutput
from student.models.lift_splat import Cameras, cells_of_points, frustum_points, pool
from student.training.module import StudentModule

LIMITS = {"float32": 1e-4, "bfloat16": 3e-2}
"""Of the relative difference (length of the difference over length) to the CPU's float32."""
OWN_LIMITS = {"objective, float32": 2e-3}
"""A few of the adapters' millions of activations lie within rounding of 0, and ReLU switches their whole gradient."""
ROTATED = {"nms_type": "rotate", "nms_thr": 0.2}


def measure(job: Job) -> Figures:
    """Relative differences, each beside its limit.

    Raises:
        AssertionError: after the last figure, if one is above its limit.
    """
    batch, modules = _prepare(job)
    on_device, above = batch.to(job.device), []
    for piece, run in PIECES.items():
        with _exact_float32():
            expected = run(modules["cpu"], batch, "float32")
        for precision, limit in LIMITS.items():
            with _exact_float32():
                found = run(modules[job.device], on_device, precision)
            name = f"{piece}, {precision}"
            difference = max(relative_difference(a, b) for a, b in zip(found, expected, strict=True))
            yield name, difference
            above += [] if difference <= OWN_LIMITS.get(name, limit) else [f"{name}: {difference:.1e}"]
    yield "limits", LIMITS | OWN_LIMITS
    assert not above, f"further from the CPU's numbers than allowed: {'; '.join(above)}"


def _prepare(job: Job) -> tuple[Batch, dict[str, StudentModule]]:
    """Two turned samples on the CPU, and the same module on both devices."""
    config = job.sizes.student("training.activation_checkpointing=false")
    dataset = make_dataset(job.folder, job.sizes, config, job.device)
    batch = dataset.collate([dataset[0], dataset[1]])
    turned = torch.eye(4, dtype=torch.float64)
    turned[:2, :2] = torch.tensor([[0.98, -0.2], [0.2, 0.98]])
    batch = replace(batch, to_teachers=(turned.repeat(2, 1, 1),))
    modules = {}
    for device in dict.fromkeys(("cpu", job.device)):
        torch.manual_seed(0)
        modules[device] = StudentModule(config, [dataset.sources[0].cache.spec]).to(device).eval()
    return batch, modules


@contextmanager
def _exact_float32() -> Iterator[None]:
    """Without TensorFloat-32, which a GPU's convolutions use by default."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def _output(module: StudentModule, batch: Batch) -> StudentOutput:
    """Maps of the student's shapes that need no network: the same values on every device."""
    config, generator = module.config.detector, torch.Generator().manual_seed(0)
    height, width = config.grid.shape

    def maps(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(module.device)

    channels = {f"backbone{stage}": count for stage, count in enumerate(config.bev_channels)}
    features = {
        name: maps(len(batch), count, height >> (stage + 1), width >> (stage + 1)).relu()
        for stage, (name, count) in enumerate(channels.items())
    }
    features["head"] = maps(len(batch), config.bev_neck_channels, height, width).relu()
    heatmap = maps(len(batch), 10, height, width) - 3
    sizes = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
    head_maps = {name: maps(len(batch), 6, size, height, width) for name, size in sizes.items()}
    return StudentOutput(features=features, heatmap=heatmap, head_maps=head_maps, depth=None)


def _objective(module: StudentModule, batch: Batch, precision: str) -> list[Tensor]:
    """The losses together, and the gradients of the student's layers behind a warped teacher."""
    output = _output(module, batch)
    leaves = [output.features[name].requires_grad_() for name in ("backbone1", "backbone2", "head")]
    assert module.objective is not None
    with torch.autocast(module.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        terms = module.objective(
            output.features, output.heatmap, batch.teachers, batch.boxes, batch.labels, 0, batch.to_teachers
        )
    values = torch.stack(list(terms.values()))
    return [values, *torch.autograd.grad(values.sum(), leaves)]


def _warp(module: StudentModule, batch: Batch, precision: str) -> list[Tensor]:
    """The warped teacher's head, decoded, and its valid cells."""
    assert module.objective is not None
    pair = module.objective.pairs[2]
    (teacher,) = batch.teachers
    warped = pair({"head": _output(module, batch).features["head"]}, teacher.features, batch.to_teachers[0])
    decoded = warped.teacher.decode(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    return [decoded, warped.valid_mask.float()]


def _targets(module: StudentModule, batch: Batch, precision: str) -> list[Tensor]:
    config = module.config.detector
    targets = head_targets(batch.boxes, batch.labels, config.grid, config.head)
    return [targets.heatmap, targets.codes * targets.valid[:, None], targets.cell.float()]


def _depth_loss(module: StudentModule, batch: Batch, precision: str) -> list[Tensor]:
    """The loss and the gradient of the depth's logits."""
    config, depth_m = module.config.detector, batch.require_depth_m()
    generator = torch.Generator().manual_seed(0)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    shape = (*depth_m.shape[:2], config.depth_bins, *depth_m.shape[2:])
    logits = torch.randn(shape, generator=generator).to(module.device, dtype).requires_grad_()
    loss = depth_loss(logits, depth_m, config.depth_m)
    return [loss, *torch.autograd.grad(loss, logits)]


def _frustum(module: StudentModule, batch: Batch, precision: str) -> list[Tensor]:
    """Where each pixel's depth bins lie, in metres."""
    config, size = module.config.detector, module.config.image.size
    cameras = Cameras(
        intrinsics=batch.intrinsics[:, 0],
        image_matrix=batch.image_matrix[:, 0],
        camera_to_lidar=batch.camera_to_lidar[:, 0],
        bev_matrix=batch.bev_matrix,
    )
    map_size = (size[0] // config.image_stride, size[1] // config.image_stride)
    return [frustum_points(cameras, size, map_size, config.bin_depths_m)]


def _lift(module: StudentModule, batch: Batch, precision: str) -> list[Tensor]:
    """The map, and the gradients of context and depth.

    The cells are the CPU's: a point within rounding of a cell's edge may be on either side.
    """
    config = module.config.detector
    (points_m,) = _frustum(module, batch.to("cpu"), precision)
    cells, valid = (part.to(module.device) for part in cells_of_points(points_m, config.grid, config.z_range_m))
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    generator, shape = torch.Generator().manual_seed(0), points_m.shape[:4]
    context, logits = (
        torch.randn(*shape, channels, generator=generator).to(module.device, dtype).requires_grad_()
        for channels in (config.lift_channels, config.depth_bins)
    )
    bev = pool(context.float(), logits.float().softmax(-1), cells, valid, config.grid.shape)
    weights = torch.randn(bev.shape, generator=generator).to(module.device)
    return [bev, *torch.autograd.grad((bev * weights).sum(), (context, logits))]


def _decoded(decoding: Decoding) -> Callable[[StudentModule, Batch, str], list[Tensor]]:
    def run(module: StudentModule, batch: Batch, precision: str) -> list[Tensor]:
        """Of maps that bfloat16 represents, and of scores without ties, whose order would be the device's own."""
        output, config = _output(module, batch), module.config.detector
        dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
        maps = {name: values.bfloat16().to(dtype) for name, values in output.head_maps.items()}
        count, generator = output.heatmap.numel(), torch.Generator().manual_seed(0)
        scores = (torch.randperm(count, generator=generator).float() / count).view_as(output.heatmap)
        found = decode(scores.to(module.device), maps, config.grid, config.head.tasks, decoding)
        return [torch.cat([one.boxes for one in found]), torch.cat([one.scores for one in found])]

    return run


PIECES: dict[str, Callable[[StudentModule, Batch, str], list[Tensor]]] = {
    "objective": _objective,
    "warp": _warp,
    "targets": _targets,
    "depth loss": _depth_loss,
    "frustum": _frustum,
    "lift": _lift,
    "decoding, circle NMS": _decoded(Decoding()),
    "decoding, rotated NMS": _decoded(Decoding(**ROTATED)),
}

"""DistillBEV's recipe, `fgd` on pairs of layers, in plain torch; keys and equations (n) as in docs/objective.md."""

import difflib
import math
from contextlib import ExitStack, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, Dict, Iterator, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .reader import Batch, BevCacheError, Grid, Names, TeacherStore

Config = Mapping[str, Any]
Maps = Mapping[str, Tensor]
Many = Sequence[Tensor]
CRITERIA = {"mse": torch.square, "l1": torch.abs, "smooth_l1": lambda d: F.smooth_l1_loss(d, d * 0, reduction="none")}
ADAPTERS = "2layer", "3layer", "identity", "1x1conv", "3x3conv", "mlp"
# fmt: off
TERM = {  # Defaults; of a list, the first. The product's objective has further choices.
    "kind": ["fgd"], "name": "", "pairs": (), "scale": ["none"], "foreground_mask": ["gt"],
    "background_mask": ["logical_not", "1minus"], "scale_mask": ["combine_gt", "separate_gt", "bg_only", "none"],
    "fg_weight": 1.5e-3, "bg_weight": 4e-2, "channel_weight": 0.25, "spatial_weight": 2.5e-3, "fp_weight": 0.0,
    "non_empty_weight": 0.0, "channel_attention": True, "spatial_attention": ["teacher", "teacher_student", "none"],
    "channel_temperature": 0.5, "spatial_temperature": 0.5, "student_ratio": 1.0,
    "false_positives": ["none", "teacher", "student", "teacher_selected_student", "teacher+teacher_selected_student"],
    "fp_scale": ["average"], "fp_epoch": 0, "threshold": 0.1, "gt_threshold": None,
    "feature_criterion": ["mse", "l1", "smooth_l1"], "channel_criterion": ["l1", "mse", "smooth_l1"],
    "spatial_criterion": ["l1", "mse", "smooth_l1"],
}
# fmt: on


def require_known(given: Config, known: Sequence[str], where: str) -> None:
    """Raise BevCacheError for a key that is not among the known ones, with the nearest."""
    for key in set(given) - set(known):
        near = difflib.get_close_matches(str(key), known, 1)
        raise BevCacheError("an unknown key", where, key, ", ".join(known), f"Write {near[0]}" if near else "Remove it")


def read_aligned(store: TeacherStore, token: str, augmentation: Any, frame: Any, layers: Names = None) -> Batch:
    """A sample, without B, of the view V nearest to the augmentation A; E is `frame`; (4, 4) each.

    Its `to_teacher`, V (A E)^-1, leads from metres of the student's augmented BEV to the teacher's view.
    """
    augmentation, frame = (np.asarray(matrix, np.float64) for matrix in (augmentation, frame))
    batch = store.read([token], layers, [store.nearest_view(token, np.linalg.inv(frame) @ augmentation @ frame)])
    batch["to_teacher"] = batch["view_matrix"].double() @ torch.from_numpy(np.linalg.inv(augmentation @ frame))
    return {name: tensor[0] for name, tensor in batch.items()}


@contextmanager
def tapped(model: nn.Module, taps: Mapping[str, str], **keep: Any) -> Iterator[Dict[str, Any]]:
    """By name, the latest output with gradient of each tap's module, "neck" or "neck:1" (part 1), or `keep` of it."""
    found, modules = {}, dict(model.named_modules())

    def record(name: str, part: str, _: nn.Module, __: Any, output: Any) -> None:
        if torch.is_grad_enabled():
            found[name] = keep.get(name, lambda maps: maps)(output[int(part)] if part else output)

    with ExitStack() as hooks:
        for name, (module, _, part) in ((name, tap.partition(":")) for name, tap in taps.items()):
            if module not in modules:
                raise BevCacheError("the model has no such module", f"tap {name}", module, ", ".join(model._modules))
            hooks.enter_context(modules[module].register_forward_hook(partial(record, name, part)))
        yield found


class DistillObjective(nn.Module):
    """Weighted losses of a student's features against its teachers'; the adapters are its parameters.

    Args:
        config: `distill:` as plain data: pairs, terms of kind fgd, multi_scale_epoch, two_stage_epoch.
        layers: channels and grid of each of the student's layers.
        heatmap_grid: of the student's heatmaps, or of its layer `head` where it has none.
        classes: the student's, in the order of its labels.
        specs: `TeacherStore.spec` of each store; a pair's `cache` is an index into it.
    """

    def __init__(self, config: Config, layers: Config, heatmap_grid: Grid, classes: Any, specs: Any) -> None:
        super().__init__()
        require_known(config, ("pairs", "terms", "multi_scale_epoch", "two_stage_epoch"), "distill")
        self.config, self.grid, self.specs, self.classes = config, heatmap_grid, list(specs), list(classes)
        self.pairs: Any = nn.ModuleList(Pair(pair, layers, self.specs) for pair in config["pairs"])
        self.terms: Any = nn.ModuleList()
        labels = [pair.label for pair in self.pairs]
        for term in config["terms"]:
            chosen: Any = [self.pairs[labels.index(label)] for label in term.get("pairs") or labels]
            self.terms.append(nn.ModuleList(Fgd(term, pair, n, len(chosen)) for n, pair in enumerate(chosen)))
        settings = [term.c for term in self.modules() if isinstance(term, Fgd)]
        self.needs_logits = any("student" in c.false_positives for c in settings)
        schedule = config.get("multi_scale_epoch"), config.get("two_stage_epoch"), *(c.fp_epoch for c in settings)
        self.names_epochs = any(schedule)

    def forward(
        self, features: Maps, logits: Optional[Tensor], teachers: Sequence[Batch], boxes: Many, labels: Many, epoch: int
    ) -> Dict[str, Tensor]:
        """Weighted terms by name, distill/<term>/<pair>/<part>.

        Args:
            features: by layer, before any adapter, (B, C, H, W) or (B, H W, C).
            logits: of the student's heatmap, (B, K, H, W); None unless `needs_logits`.
            teachers: the samples of each store, with `to_teacher` (B, 4, 4) where the student's BEV moves.
            boxes: x, y, z, dx, dy, dz, yaw (counter-clockwise from +x) in the student's augmented BEV, (M, 7 or more).
            labels: index into the classes; boxes of other labels are foreground, but no objects of the heatmap.
        """
        known = [((label >= 0) & (label < len(self.classes)))[:, None] for label in labels]
        truth = torch.stack([draw_heatmap(box * own, self.grid) for box, own in zip(boxes, known)])
        student = None if logits is None else logits.detach().amax(1).float().sigmoid()
        batch, losses = SimpleNamespace(epoch=epoch, boxes=boxes, truth=truth, student=student), {}
        autocast = torch.autocast if hasattr(torch, "autocast") else lambda _, enabled: torch.cuda.amp.autocast(enabled)
        for pair in self.pairs:
            if epoch >= self.config.get("multi_scale_epoch", 0) or not pair.student.startswith("backbone"):
                ours, theirs, valid = pair(features, teachers[pair.cache])
                batch.canvas, batch.teacher = self._aligned(self.specs[pair.cache], teachers[pair.cache])
                with autocast(truth.device.type, enabled=False):
                    for term in (term for terms in self.terms for term in terms if term.pair == pair.label):
                        parts = term(ours, theirs, valid, batch)
                        losses.update({f"distill/{term.label}/{pair.label}/{n}": value for n, value in parts.items()})
        return losses

    def detection_weight(self, epoch: int) -> float:
        """Factor on the student's own losses: 0 before `two_stage_epoch`, then 1."""
        return float(epoch >= self.config.get("two_stage_epoch", 0))

    def _aligned(self, spec: Config, teacher: Batch) -> Iterator[Optional[Tensor]]:
        """The canvas mask, and the largest probability of a class of the student's, on the student's extent."""
        names, largest = [name for task in spec["teacher"]["tasks"] for name in task], teacher.get("heatmap")
        if largest is not None:
            if not set(self.classes) <= set(names):
                raise BevCacheError("the teacher lacks a class of the student's", got=names, expected=self.classes)
            largest = largest[:, [names.index(name) for name in self.classes]].amax(1)
            largest = largest if largest.is_floating_point() else largest.float() / 255
        for maps, grid in ((teacher["canvas_mask"].float(), "canvas_grid"), (largest, "heatmap_grid")):
            source, matrix = Grid(**spec[grid]), teacher.get("to_teacher")
            fits = matrix is None and merges(self.grid, source)
            yield maps if maps is None or fits else warp(maps[:, None], source, self.grid, matrix, True)[0][:, 0]


class Pair(nn.Module):
    """A student's layer behind its adapter, and the teacher's layer warped to its cells."""

    def __init__(self, config: Config, layers: Config, specs: Sequence[Config]) -> None:
        super().__init__()
        require_known(config, ("student", "teacher", "student_adapter", "cache", "name"), "a pair")
        self.student, self.teacher, self.cache = config["student"], config["teacher"], config.get("cache", 0)
        label = self.student if self.student == self.teacher else f"{self.student}-{self.teacher}"
        self.label = config.get("name") or (f"{label}@{self.cache}" if self.cache else label)
        stored = {layer["name"]: layer for layer in specs[self.cache]["layers"]}
        if self.student not in layers or self.teacher not in stored or layers[self.student][1].axes != "yx":
            expected = f"{list(layers)}, of axes yx, and {list(stored)}"
            raise BevCacheError("there is no such layer", self.label, expected=expected)
        theirs, (channels, grid), kind = stored[self.teacher], layers[self.student], config.get("student_adapter", {})
        self.codec, self.teacher_grid = theirs["codec"], Grid(**theirs["grid"])
        self.shapes = (channels, *grid.shape), (theirs["channels"], *self.teacher_grid.shape)
        kind = {"kind": kind} if isinstance(kind, str) else kind
        self.student_adapter, self.grid = adapter(grid, channels, theirs["channels"], **kind)
        a, b, self.warped = self.grid.shape, self.teacher_grid.shape, not merges(self.grid, self.teacher_grid)
        if a != b and not self.warped:
            cure = "Resize with student_adapter: upsample_1x1conv or downsample_3layer, and a factor"
            raise BevCacheError("cells differ behind the adapter", self.label, a, b, cure)

    def forward(self, features: Maps, teacher: Batch) -> Tuple[Tensor, Tensor, Tensor]:
        """Student and teacher (B, C, H, W), 0 in invalid cells, and the valid cells (B, H, W)."""
        ours, theirs = features.get(self.student), decode(teacher, self.teacher, self.codec)
        if not isinstance(ours, Tensor):
            cure = "Name a part of the module's output, `module:0`"
            raise BevCacheError("a tap gives no feature map", self.student, type(ours).__name__, "a tensor", cure)
        ours = ours if ours.dim() == 4 else ours.transpose(1, 2).reshape(len(ours), -1, *self.shapes[0][1:])
        got = tuple(ours.shape[1:]), tuple(theirs.shape[1:])
        if got != self.shapes:
            raise BevCacheError("layers of another shape than at construction", self.label, got, self.shapes)
        ours, valid = self.student_adapter(ours), theirs.new_ones(len(theirs), *self.grid.shape, dtype=torch.bool)
        ours = ours.to(torch.promote_types(ours.dtype, theirs.dtype))
        if self.warped or "to_teacher" in teacher:
            theirs, valid = warp(theirs, self.teacher_grid, self.grid, teacher.get("to_teacher"))
            ours, theirs = (maps.masked_fill(~valid[:, None], 0) for maps in (ours, theirs))
        return ours, theirs, valid


class Fgd(nn.Module):
    """`fgd` on a pair, equations (1) to (8)."""

    def __init__(self, config: Config, pair: Pair, index: int, count: int) -> None:
        super().__init__()
        require_known(config, list(TERM), "a term of kind fgd")
        self.pair, self.grid, self.c = pair.label, pair.grid, SimpleNamespace()
        for key, default in TERM.items():
            choices = default if isinstance(default, list) else []
            given = config.get(key, choices[0] if choices else default)
            listed = key != "pairs" and isinstance(given, (list, tuple))
            value = given[index] if listed and len(given) == count else given
            if (listed and isinstance(value, (list, tuple))) or (choices and value not in choices):
                expected = f"{' or '.join(choices) or 'one value'}, or one for each of {count} pairs"
                raise BevCacheError("a setting that this objective does not have", key, given, expected)
            setattr(self.c, key, value)
        spatial = self.c.spatial_weight and self.c.spatial_attention != "none"
        self.label, self.spatial_adapter = self.c.name or "fgd", nn.Conv2d(1, 1, 3, padding=1) if spatial else None

    def forward(self, ours: Tensor, theirs: Tensor, valid: Tensor, batch: Any) -> Dict[str, Tensor]:
        """Weighted parts by name, from maps (B, C, H, W) and the batch's boxes and heatmaps."""
        c, (samples, channels), cells = self.c, ours.shape[:2], valid.sum((1, 2)).clamp(min=1)[:, None]
        difference, size = CRITERIA[c.feature_criterion](ours - theirs), theirs.abs()
        error = mistaken = difference.sum(1)
        if c.channel_attention or c.fp_weight or c.non_empty_weight:
            share = torch.softmax(size.sum((2, 3)) / (c.channel_temperature * cells), 1) * channels
            mistaken = (difference * share[..., None, None]).sum(1)
            error = mistaken if c.channel_attention else error
        focus = torch.ones_like(error)
        if c.spatial_attention != "none":
            focus = attention(size.mean(1) / c.spatial_temperature, valid)
        if c.spatial_attention == "teacher_student":
            student = attention(ours.detach().abs().mean(1) / c.spatial_temperature, valid)
            focus = (focus + c.student_ratio * student) / (1 + c.student_ratio)
        losses = {}
        for name, (weight, region) in self._regions(batch, valid).items():
            errors = error if name in ("foreground", "background") else mistaken
            losses[name] = weight * (errors * region * focus).sum() / samples
        if c.channel_attention and c.channel_weight:
            means = (ours.sum((2, 3)) - theirs.sum((2, 3))) / cells
            losses["channel"] = c.channel_weight * CRITERIA[c.channel_criterion](means).sum() / samples
        if self.spatial_adapter is not None:
            spatial = (self.spatial_adapter(ours.mean(1, keepdim=True)) - theirs.mean(1, keepdim=True))[:, 0] * valid
            losses["spatial"] = c.spatial_weight * CRITERIA[c.spatial_criterion](spatial).sum() / samples
        return losses

    def _regions(self, batch: Any, valid: Tensor) -> Dict[str, Tuple[float, Tensor]]:
        """Weight, and weights of cells (B, H, W), of each region: masks (1), (2) times scales (3)."""
        c, shape, within, regions = self.c, self.grid.shape, {}, {}
        fg_scale = torch.stack([box_scale(box, self.grid) for box in batch.boxes])
        objects, free = valid & (fg_scale > 0), valid & (fg_scale == 0)
        if c.false_positives != "none" and batch.epoch >= c.fp_epoch:
            within["false_positive"] = c.fp_weight, F.adaptive_max_pool2d(self._false_positives(batch), shape) > 0
        if c.non_empty_weight:
            within["non_empty"] = c.non_empty_weight, F.adaptive_max_pool2d(batch.canvas, shape) > 0
        for name, (weight, mask) in within.items():
            free, region = free & ~mask, free & mask
            regions[name] = weight, region * one_over_cells(region)
        bg_scale = one_over_cells(free).expand_as(fg_scale)
        if c.scale_mask in ("bg_only", "none"):
            fg_scale = bg_scale = bg_scale if c.scale_mask == "bg_only" else torch.ones_like(bg_scale)
        elif c.scale_mask == "combine_gt":
            fg_scale = bg_scale = torch.maximum(fg_scale, bg_scale)
        boxes = {"foreground": (c.fg_weight, objects * fg_scale), "background": (c.bg_weight, free * bg_scale)}
        return {**boxes, **regions}

    def _false_positives(self, batch: Any) -> Tensor:
        """1 at cells of the teacher's heatmap without an object, where a network predicts one, (2)."""
        c, teacher = self.c, batch.teacher
        low = c.threshold if c.gt_threshold is None else c.gt_threshold
        wrong = teacher > c.threshold if c.false_positives.split("+")[0] == "teacher" else teacher < 0
        if "student" in c.false_positives:
            found = F.adaptive_max_pool2d(batch.student, teacher.shape[1:]) > c.threshold
            wrong = wrong | (found if c.false_positives == "student" else found & (teacher < low))
        return (wrong & (F.adaptive_max_pool2d(batch.truth, teacher.shape[1:]) < low)).float()


def attention(energy: Tensor, valid: Tensor) -> Tensor:
    """Softmax over the valid cells of an energy (B, H, W), times their number, (4)."""
    logits = energy.masked_fill(~valid, torch.finfo(energy.dtype).min).flatten(1)
    return torch.softmax(logits, 1).view_as(energy) * valid * valid.sum((1, 2), keepdim=True)


def one_over_cells(region: Tensor) -> Tensor:
    """(B, 1, 1): 1 / the number of cells of a region (B, H, W), 0 where there are none."""
    count = region.sum((1, 2), keepdim=True).float()
    return (count > 0) / count.clamp(min=1)


def merges(a: Grid, b: Grid) -> bool:
    """Whether two grids cover the same metres of the same frame by cells that are whole multiples, along both sides."""
    same = a[3:] == b[3:] and np.abs(np.subtract(a[:2], b[:2])).max() < 1e-3
    return same and any(np.remainder(x, y).max() == 0 for x, y in ((a.shape, b.shape), (b.shape, a.shape)))


def decode(batch: Batch, name: str, codec: Config) -> Tensor:
    """Float features (B, C, H, W) of a layer, sign(q) (|q| / L)^(1/g) L s; without a scale they are float already."""
    codes, scale = batch[f"features/{name}"], batch.get(f"features/{name}_scale")
    codes = codes.to(torch.promote_types(codes.dtype, torch.float32))
    if scale is None:
        return codes
    levels, scale = 2 ** (codec["bits"] - (codec["kind"] == "signed")) - 1, scale[..., None, None]
    if codec["companding"] != 1:
        codes = codes.sign() * (codes.abs() / levels) ** (1 / codec["companding"]) * levels
    return codes * scale


def adapter(grid: Grid, channels: int, out: int, kind: str = "identity", factor: int = 1) -> Tuple[nn.Module, Grid]:
    """The module of a kind (docs/objective.md, Pairs and adapters), and the grid of its output."""
    (height, width), (resize, _, tail) = grid.shape, kind.rpartition("_")
    resize, tail = (kind, "identity") if kind == "upsample" else (resize, tail)
    up, stride = factor if resize == "upsample" else 1, factor if resize == "downsample" else 1
    known = {"": ADAPTERS, "upsample": ADAPTERS, "downsample": ADAPTERS[:2]}.get(resize, ())
    fits = tail in known and (resize != "") == (factor > 1) and (tail != "identity" or channels == out)
    if not fits or height % stride or width % stride:
        got = f"{kind}, factor {factor}, {channels} channels of {height} x {width}"
        expected = f"{', '.join(ADAPTERS)}, also upsample_..., or downsample_Nlayer, with a factor; {out} channels"
        raise BevCacheError("an adapter that does not fit", "a pair", got, expected)
    module: nn.Module = nn.Identity()
    if tail.endswith("conv"):
        module = nn.Conv2d(channels, out, int(tail[0]), padding=int(tail[0]) // 2)
    elif tail == "mlp":
        module = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.ReLU(inplace=True), nn.Conv2d(channels, out, 1))
    elif tail.endswith("layer"):
        widths = [channels] * int(tail[0]) + [out]
        convs = [nn.Conv2d(a, b, size, size) for a, b, size in zip(widths, widths[1:], (stride, 1, 1))]
        module = nn.Sequential(*(m for c in convs for m in (c, nn.BatchNorm2d(c.out_channels), nn.ReLU(inplace=True))))
    if up > 1:
        module = nn.Sequential(nn.Upsample(scale_factor=factor, mode="bilinear", align_corners=False), module)
    return module, grid._replace(cell_m=(grid.cell_m[0] * stride / up, grid.cell_m[1] * stride / up))


def draw_heatmap(boxes: Tensor, grid: Grid) -> Tensor:
    """(H, W): the largest of CenterPoint's Gaussians, of radius 2 cells or more, at the centres of boxes (M, 7)."""
    boxes = F.pad(boxes.double(), (0, 0, 0, 1))
    length, width = boxes[:, 3] / grid.cell_m[0], boxes[:, 4] / grid.cell_m[1]
    total, area, drawn = length + width, length * width, (length > 0) & (width > 0)
    # Where boxes overlap by 0.1, a r^2 - b r + c = 0.
    cases = (1, total, area * 0.9 / 1.1), (4, 2 * total, area * 0.9), (0.4, -0.2 * total, area * -0.9)
    radius = torch.stack([(b + (b * b - 4 * a * c).sqrt()) / 2 for a, b, c in cases]).amin(0)
    reach, factors = radius.floor().clamp(min=2).float()[:, None], []
    for axis, (low, _), cells in zip((1, 0), (grid.y_range_m, grid.x_range_m), grid.shape):
        centre = ((boxes[:, axis] - low) / grid.cell_m[axis]).floor()
        offset = (torch.arange(cells, device=boxes.device) - centre[:, None]).float()
        factors.append((-0.5 * (offset / (2 * reach + 1) * 6) ** 2).exp() * (offset.abs() <= reach))
        drawn = drawn & (centre >= 0) & (centre < cells)
    return (factors[0][:, :, None] * factors[1][:, None, :] * drawn[:, None, None]).amax(0)


def box_scale(boxes: Tensor, grid: Grid) -> Tensor:
    """(H, W), equation (3): sqrt(cell area / area) of the first of boxes (M, 7) that holds a cell's centre, or 0."""
    x, y, _, dx, dy, _, yaw = F.pad(boxes[:, :7].double(), (0, 0, 0, 1))[..., None, None].unbind(1)
    rows, columns = (torch.arange(n, dtype=torch.float64, device=boxes.device) + 0.5 for n in grid.shape)
    ahead = grid.y_range_m[0] + rows[:, None] * grid.cell_m[1] - y
    right = grid.x_range_m[0] + columns * grid.cell_m[0] - x
    along, across = right * yaw.cos() + ahead * yaw.sin(), ahead * yaw.cos() - right * yaw.sin()
    inside = (along.abs() < dx / 2 - 1e-6) & (across.abs() < dy / 2 - 1e-6)
    scale = (grid.cell_m[0] * grid.cell_m[1] / (dx * dy).clamp(min=1e-12)).sqrt().float()[:, 0, 0]
    return scale[inside.to(torch.uint8).argmax(0)] * inside.any(0)


def warp(maps: Tensor, source: Grid, target: Grid, matrix: Optional[Tensor], largest: bool = False) -> Any:
    """Maps over `source` at the cells of `target`, (B, C, H, W), and which lie within the source's range (B, H, W).

    Bilinear, the mean over points in cells longer than the source's; with `largest` the maximum of the cells touched.
    """
    if matrix is None and source.frame != target.frame:
        raise BevCacheError("frames differ, and there is no to_teacher", got=source.frame, expected=target.frame)
    matrix = torch.eye(4).expand(len(maps), 4, 4) if matrix is None else matrix
    planar = matrix.double().cpu()[:, [0, 1, 3]][:, :, [0, 1, 3]].numpy()
    between = source.cell_matrix() @ planar @ np.linalg.inv(target.cell_matrix())
    across = np.linalg.norm(between[:, :2, :2], 2, (1, 2)).max()
    per_side = math.ceil(math.sqrt(2) * across if largest else max(1, across - 0.1))
    by_column, by_row, offset = torch.from_numpy(between).to(maps.device)[:, None, None, :2].unbind(-1)
    rows, columns = ((torch.arange(n * per_side).to(offset) + 0.5) / per_side for n in target.shape)
    at = rows[:, None, None] * by_row + columns[:, None] * by_column + offset - 0.5
    at = torch.where((at - at.round()).abs() < 1e-4, at.round(), at)
    outside = ((at < 0) | (at > at.new_tensor(source.shape[::-1]) - 1)).any(-1)
    padded = [1 << (side - 1).bit_length() for side in source.shape[::-1]]  # where grid_sample is exact at centres
    wide = F.pad(maps, (0, padded[0] - source.shape[1], 0, padded[1] - source.shape[0]))
    places, mode = ((2 * at + 1) / at.new_tensor(padded) - 1).float().to(wide), "nearest" if largest else "bilinear"
    pool = F.max_pool2d if largest else F.avg_pool2d
    warped = pool(F.grid_sample(wide, places, mode, align_corners=False), per_side)
    return warped, F.max_pool2d(outside.float()[:, None], per_side)[:, 0] == 0

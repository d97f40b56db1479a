"""The old registries: train a detector with mmcv 1.x's runner, for `python old_mmcv.py PLUGINS STORE FOLDER`.

mmdet 2.x needs mmcv's compiled operators; of it only the two registries are here, made by mmcv's own Registry. The
detector has the interface of mmdet's BaseDetector: forward_train gives losses, train_step sums those called `loss`.
"""

import sys
import types
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmcv.parallel import DataContainer, MMDataParallel, collate
from mmcv.runner import EpochBasedRunner, build_optimizer
from mmcv.utils import Registry, build_from_cfg, get_logger
from torch import nn

GRID = {"x_range_m": [-8.0, 8.0], "y_range_m": [-6.0, 6.0], "cell_m": [2.0, 2.0]}
CLASSES = ["car", "pedestrian", "traffic_cone"]


def install_registries():
    """mmdet.datasets.builder.PIPELINES, mmdet.models.builder.DETECTORS and build_detector, as mmdet 2.x has them."""
    pipelines, detectors = Registry("pipeline"), Registry("models")
    for name in ("mmdet", "mmdet.datasets", "mmdet.models"):
        sys.modules[name] = types.ModuleType(name)
    datasets, models = types.ModuleType("mmdet.datasets.builder"), types.ModuleType("mmdet.models.builder")
    datasets.PIPELINES, models.DETECTORS = pipelines, detectors

    def build_detector(config, train_cfg=None, test_cfg=None):
        return detectors.build(config, default_args={"train_cfg": train_cfg, "test_cfg": test_cfg})

    models.build_detector = build_detector
    sys.modules.update({"mmdet.datasets.builder": datasets, "mmdet.models.builder": models})
    return pipelines, detectors, build_detector


class Boxes:
    """As mmdet3d's LiDARInstance3DBoxes: a tensor (M, 9)."""

    def __init__(self, tensor):
        self.tensor = tensor


class Detector(nn.Module):
    """A neck that gives a list, and a head of one task."""

    def __init__(self, channels, train_cfg=None, test_cfg=None):
        super().__init__()
        self.img_bev_encoder_neck = nn.Conv2d(3, channels, 3, padding=1)
        self.pts_bbox_head = Head(channels)

    def forward(self, return_loss=True, **kwargs):
        return self.forward_train(**kwargs)

    def forward_train(self, img, img_metas, gt_bboxes_3d, gt_labels_3d):
        maps = self.img_bev_encoder_neck(img)
        heatmap = self.pts_bbox_head(maps)[0][0]["heatmap"].sigmoid_()  # in place, as mmdet3d's clip_sigmoid
        return {"loss_heatmap": heatmap.square().mean(), "task0.loss_bbox": [maps.square().mean()]}

    def train_step(self, data, optimizer):
        losses = self(**data)
        values = {name: sum(value) if isinstance(value, list) else value for name, value in losses.items()}
        loss = sum(value for name, value in values.items() if "loss" in name)
        logged = {name: value.item() for name, value in values.items()}
        return {"loss": loss, "log_vars": dict(logged, loss=loss.item()), "num_samples": len(data["img_metas"])}


class Head(nn.Module):
    """A CenterHead's output: a list by task of lists of maps by name."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 3, 1)

    def forward(self, maps):
        return ([{"heatmap": self.conv(maps)}],)


class Samples(torch.utils.data.Dataset):
    """Random images of the store's tokens, through a pipeline built from a configuration."""

    def __init__(self, tokens, step):
        self.tokens, self.step = tokens * 12, step

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        box = torch.tensor([[1.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.3, 0.0, 0.0]])
        results = self.step({"sample_idx": self.tokens[index]})
        return {
            "img": DataContainer(torch.randn(3, 6, 8), stack=True),
            "img_metas": DataContainer({"sample_idx": results["sample_idx"]}, cpu_only=True),
            "gt_bboxes_3d": DataContainer(Boxes(box), cpu_only=True),
            "gt_labels_3d": DataContainer(torch.tensor([1])),
            "teacher": results["teacher"],
        }


def main(plugins, store, folder):
    sys.path.insert(0, plugins)
    pipelines, detectors, build_detector = install_registries()
    detectors.register_module(module=Detector)
    from bevcache.mmdet3d import export_checkpoint  # registers its steps and detectors
    from bevcache.reader import TeacherStore

    torch.manual_seed(0)
    step = build_from_cfg({"type": "LoadTeacherFeatures", "store": store, "layers": ["head"]}, pipelines)
    term = {"kind": "fgd", "false_positives": "student", "fp_weight": 0.1, "fp_epoch": 1}
    pair = {"student": "head", "teacher": "head", "student_adapter": "1x1conv"}
    model = build_detector(
        {
            "type": "Distilled",
            "detector": {"type": "Detector", "channels": 5},
            "store": store,
            "distill": {"pairs": [pair], "terms": [term], "two_stage_epoch": 1},
            "taps": {"head": "img_bev_encoder_neck"},
            "layers": {"head": {"channels": 5, "grid": GRID}},
            "classes": CLASSES,
        }
    )
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loader = torch.utils.data.DataLoader(
        Samples(list(TeacherStore(store).positions), step),
        4,
        True,
        num_workers=1,
        collate_fn=partial(collate, samples_per_gpu=4),
    )
    optimizer = build_optimizer(model, {"type": "AdamW", "lr": 3e-2})
    logged = []
    runner = EpochBasedRunner(
        MMDataParallel(model, device_ids=[]),
        None,
        optimizer,
        folder,
        get_logger("test", log_level="ERROR"),
        max_epochs=2,
    )
    runner.register_training_hooks(
        {"policy": "fixed"}, {"grad_clip": {"max_norm": 35}}, {"interval": 1}, None, None,
        custom_hooks_config=[{"type": "DistillEpochHook", "priority": "VERY_HIGH"}],
    )  # fmt: skip
    hooked = runner.call_hook

    def call_hook(name):
        if name == "after_train_iter":
            logged.append((runner.epoch, dict(runner.outputs["log_vars"])))
        hooked(name)

    runner.call_hook = call_hook
    runner.run([loader], [("train", 1)])

    distances = [sum(v for k, v in terms.items() if "distill" in k) for epoch, terms in logged if epoch == 0]
    assert np.mean(distances[-5:]) < 0.8 * np.mean(distances[:5]), distances
    assert all(terms["loss_heatmap"] == 0 for epoch, terms in logged if epoch == 0)  # two_stage_epoch
    assert all(terms["loss_heatmap"] > 0 for epoch, terms in logged if epoch == 1)
    false_positives = ["loss_distill/fgd/head/false_positive" in terms for _, terms in logged]
    assert false_positives == [epoch == 1 for epoch, _ in logged]
    moved = [name for name, tensor in model.state_dict().items() if (tensor != before[name]).any()]
    assert "bevcache.pairs.0.student_adapter.weight" in moved, moved
    export_checkpoint(str(Path(folder) / "epoch_2.pth"), str(Path(folder) / "student.pth"))
    bare = build_detector({"type": "Detector", "channels": 5})
    bare.load_state_dict(torch.load(str(Path(folder) / "student.pth"))["state_dict"])
    first, last = np.mean(distances[:5]), np.mean(distances[-5:])
    sys.stdout.write(f"{len(logged)} steps, from {first:.3f} to {last:.3f}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Build and check detectors from mmdet3d configurations.

mmdet3d is imported inside functions only: a store is read, and a student trained, without it.
"""

import difflib
import hashlib
import importlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from cache.errors import TeacherError
from cache.spec import CLASSES, Decoding, PointPipeline

Config = Any
"""mmengine's Config."""
Detector = Any
"""An mmdet3d detector, an nn.Module whose parts are known at run time only."""


@contextmanager
def mmdet3d_scope() -> Iterator[None]:
    """Import mmdet3d and make the registered types that its configurations name available within the context.

    Raises:
        TeacherError: mmdet3d, mmdet, mmengine or mmcv is missing, or they do not fit together.
    """
    try:
        importlib.import_module("mmdet3d.models")
        from mmengine.registry import DefaultScope
    except (ImportError, AssertionError) as error:  # mmdet3d asserts the versions of mmcv, mmdet and mmengine.
        raise TeacherError(
            "mmdet3d cannot be imported",
            got=f"{type(error).__name__}: {error}",
            cure="Run `make setup`, which builds mmcv for this torch and installs mmdet3d; only the teacher needs them",
        ) from error
    with DefaultScope.overwrite_default_scope("mmdet3d"):
        yield


def read_config(name: str) -> Config:
    """An mmdet3d configuration, resolved.

    Args:
        name: a .py file, which is run as Python, or the name of a configuration of mmdet3d's model zoo.

    Raises:
        TeacherError: no such file or name (with the nearest ones), or it cannot be read.
    """
    with mmdet3d_scope():
        from mmengine.config import Config

        path = _find_config(name)
        try:
            config = Config.fromfile(path)
        except Exception as error:  # A configuration is a Python program: it can fail in any way.
            raise TeacherError(
                "the mmdet3d configuration cannot be read", where=path, got=f"{type(error).__name__}: {error}"
            ) from error
    if "model" not in config:
        raise TeacherError("the mmdet3d configuration describes no model", where=path, got=", ".join(config))
    return config


def _find_config(name: str) -> Path:
    import mmdet3d

    if Path(name).is_file():
        return Path(name)
    zoo = Path(mmdet3d.__file__).parent / ".mim" / "configs"
    known = {path.stem: path for path in zoo.rglob("*.py") if "_base_" not in path.parts}
    stem = Path(name).stem
    if stem in known and Path(name).parent == Path():
        return known[stem]
    nearest = difflib.get_close_matches(stem, known, n=3, cutoff=0.4)
    raise TeacherError(
        "no such mmdet3d configuration",
        got=name,
        expected="a .py file, or a name of mmdet3d's model zoo" + (f" such as {', '.join(nearest)}" if nearest else ""),
        cure="Check the path, or take one of these names",
    )


def build_detector(config: Config) -> Detector:
    """The detector of a configuration, checked to be fit for a teacher, without trained weights.

    Raises:
        TeacherError: it cannot be built, has no BEV neck or no CenterHead, knows a class that nuScenes does not, or
            needs sparse convolutions where there are none.
    """
    with mmdet3d_scope():
        from mmdet3d.registry import MODELS

        try:
            # MODELS.build and the detectors alter the configuration that they are given.
            detector = MODELS.build(config.copy().model)
        except Exception as error:  # The types that a configuration names run their own code.
            raise TeacherError(
                "the detector cannot be built", where=config.filename, got=f"{type(error).__name__}: {error}"
            ) from error
        _check_parts(detector, config.filename)
        _check_sparse(detector, config.filename)
    _set_prior(detector.pts_bbox_head)
    return detector


def _set_prior(head: Any) -> None:
    """Start the heatmaps at the probability that `init_bias` is the logit of.

    mmdet3d means to, but mmengine looks for init_weights() only in a module's children and not inside a ModuleList, so
    its heatmaps start at 0.5 everywhere, and the loss in the thousands.
    """
    for task in head.task_heads:
        branch = task.heatmap if hasattr(task, "heatmap") else task.cls_head
        nn.init.constant_(branch[-1].bias, task.init_bias)


def _check_parts(detector: Detector, where: str) -> None:
    from mmdet3d.models.dense_heads import CenterHead

    parts = [getattr(detector, name, None) for name in ("pts_backbone", "pts_neck", "pts_bbox_head")]
    if None in parts or not isinstance(parts[-1], CenterHead):
        found = ", ".join(f"{name}: {type(part).__name__}" for name, part in detector.named_children())
        raise TeacherError(
            "the detector is not a centre detector in bird's-eye view",
            where=where,
            got=f"{type(detector).__name__} with {found}",
            expected="pts_backbone, pts_neck and pts_bbox_head, the last a CenterHead",
            cure="Choose a CenterPoint configuration",
        )
    unknown = [name for task in parts[-1].class_names for name in task if name not in CLASSES]
    if unknown:
        raise TeacherError(
            "the teacher knows classes that nuScenes' detection task does not",
            where=where,
            got=", ".join(unknown),
            expected=f"some of {', '.join(CLASSES)}",
        )


def _check_sparse(detector: Detector, where: str) -> None:
    """Sparse convolutions come with spconv, or with an mmcv that was built with CUDA."""
    from mmcv.ops import get_compiling_cuda_version
    from mmdet3d.models.layers.spconv import IS_SPCONV2_AVAILABLE

    sparse = any("SparseConv" in type(module).__name__ for module in detector.modules())
    if sparse and not IS_SPCONV2_AVAILABLE and get_compiling_cuda_version() == "not available":
        raise TeacherError(
            "the detector needs sparse convolutions and spconv is not installed",
            where=where,
            got=f"pts_middle_encoder: {type(detector.pts_middle_encoder).__name__}",
            cure="Install spconv for this machine's CUDA (such as spconv-cu120), or choose a pillar configuration",
        )


def initialise(detector: Detector) -> None:
    """Random weights, as the configuration asks for."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)  # At INFO it prints four lines for each parameter.
    detector.init_weights()
    logger.setLevel(level)


def config_sha256(config: Config) -> str:
    """SHA-256 of the canonical JSON of a configuration's resolved model."""
    return hashlib.sha256(json.dumps(config.model.to_dict(), sort_keys=True, default=str).encode()).hexdigest()


def point_pipeline(config: Config) -> PointPipeline:
    """How the teacher's points are assembled from sweeps, by the configuration's test pipeline.

    Raises:
        TeacherError: the pipeline loads no sweeps, or other columns than x, y, z, intensity and lag.
    """
    steps = transforms_of(config, "test_dataloader")
    loaders = [step for step in steps if step.type == "LoadPointsFromMultiSweeps"]
    columns = loaders[0].get("use_dim", [0, 1, 2, 4]) if loaders else None
    if columns not in (5, [0, 1, 2, 3, 4]):
        raise TeacherError(
            "the teacher's points are not x, y, z, intensity and lag",
            where=f"{config.filename}, test_dataloader.dataset.pipeline",
            got=f"use_dim={columns}" if loaders else f"no LoadPointsFromMultiSweeps among {[s.type for s in steps]}",
            expected="LoadPointsFromMultiSweeps with use_dim=[0, 1, 2, 3, 4] (and sweeps_num=0 for a single sweep)",
        )
    return PointPipeline(
        past_sweeps=loaders[0].get("sweeps_num", 10),
        pad_empty_sweeps=loaders[0].get("pad_empty_sweeps", False),
        remove_close_m=1.0 if loaders[0].get("remove_close", False) else 0.0,
    )


def transforms_of(config: Config, loader: str) -> list:
    """The steps of a data loader's pipeline, within wrappers such as CBGSDataset."""
    dataset = config.get(loader, {}).get("dataset", {})
    while "dataset" in dataset:
        dataset = dataset.dataset
    return list(dataset.get("pipeline", []))


def decoding_of(head: Any) -> Decoding:
    """How mmdet3d's CenterHead turns its maps into boxes.

    Raises:
        TeacherError: the configuration does not say.
    """
    test, coder = head.test_cfg, head.bbox_coder
    if test is None:
        raise TeacherError("the configuration does not say how boxes are decoded", expected="model.test_cfg.pts")
    # The coder filters by score and range, and rotated NMS by its own score as well.
    scores = [coder.score_threshold, test.get("score_threshold") if test.get("nms_type") == "rotate" else None]
    known = {key: test[key] for key in Decoding.model_fields if key in test} | {
        "score_threshold": max(score or 0.0 for score in scores),
        "max_per_frame": coder.max_num,
        "post_center_range": coder.post_center_range,
        "log_dimensions": head.norm_bbox,
    }
    return Decoding.parse(known, where="model.test_cfg.pts and pts_bbox_head.bbox_coder")

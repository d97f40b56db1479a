"""What a training starts from: a module with its first weights, and its data."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as lightning

from cache.nuscenes.frames import Frames
from cache.nuscenes.loader import Loader
from student.config.student import StudentConfig
from student.data.dataset import StudentDataset, TeacherSource
from student.distill.inherit import inherit_head
from student.models.checkpoint import start_from
from student.training.early_checks import require_sound
from student.training.loaders import open_sources, training_dataset, training_loader, training_sampler
from student.training.module import StudentModule
from student.training.preflight import resolve_devices


def first_module(config: StudentConfig, sources: Sequence[TeacherSource], resumed: bool = False) -> StudentModule:
    """The module as its seed, `init_from` and its teacher's head make it.

    Args:
        resumed: a checkpoint's weights will follow, and `init_from` is not looked at.

    Raises:
        ConfigError, MismatchError: the configuration and the caches do not fit.
    """
    lightning.seed_everything(config.training.seed, verbose=False)
    module = StudentModule(config, [source.cache.spec for source in sources])
    if config.training.init_from is not None and not resumed:
        start_from(module.detector, config.training.init_from)
    if config.distill is not None and config.distill.inherit_head:
        inherit_head(module.detector.head, sources[0].cache.head_weights())
    return module


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """A training that could begin; `loader` is that of its first device."""

    module: StudentModule
    dataset: StudentDataset
    sources: tuple[TeacherSource, ...]
    loader: Loader


def prepare(config: StudentConfig, root: Path, cache_paths: Sequence[Path]) -> Preparation:
    """What `student.training.trainer.train_student` begins with, for those who look at it before it runs.

    Raises:
        ConfigError, NotCachedError, DataError: see there.
    """
    require_sound(config)
    config = resolve_devices(config)
    frames = Frames(root=root, version=config.data.version, splits=(config.data.train_split,), max_sweeps=0)
    sources = open_sources(config, cache_paths, frames)
    module = first_module(config, sources)
    sampler = training_sampler(frames, config, ranks=int(config.training.devices))
    return Preparation(
        module=module,
        dataset=training_dataset(frames, config, sources, module.detector),
        sources=sources,
        loader=training_loader(frames, config, sources, module.detector, sampler),
    )

"""A LiDAR teacher's features and maps, dumped once to a Zarr store and read while camera students train.

The names below are the public API. Each is imported when it is first used: importing this package loads no library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cache import errors as errors
    from cache.dumping.config import DumpConfig as DumpConfig
    from cache.dumping.run import dump as dump
    from cache.dumping.verify import verify as verify
    from cache.geometry.grid import BevGrid as BevGrid
    from cache.nuscenes.frames import Frames as Frames
    from cache.spec import CacheSpec as CacheSpec
    from cache.spec import PointPipeline as PointPipeline
    from cache.spec import TeacherIdentity as TeacherIdentity
    from cache.store.batch import TeacherBatch as TeacherBatch
    from cache.store.prefetch import prefetched as prefetched
    from cache.store.reader import TeacherCache as TeacherCache
    from cache.teacher.base import Teacher as Teacher
    from cache.teacher.base import TeacherInput as TeacherInput
    from cache.teacher.base import TeacherOutput as TeacherOutput
    from cache.teacher.checkpoint import weights_sha256 as weights_sha256

    __version__: str

_PUBLIC = {
    "BevGrid": "geometry.grid:BevGrid",
    "CacheSpec": "spec:CacheSpec",
    "DumpConfig": "dumping.config:DumpConfig",
    "Frames": "nuscenes.frames:Frames",
    "PointPipeline": "spec:PointPipeline",
    "Teacher": "teacher.base:Teacher",
    "TeacherBatch": "store.batch:TeacherBatch",
    "TeacherCache": "store.reader:TeacherCache",
    "TeacherIdentity": "spec:TeacherIdentity",
    "TeacherInput": "teacher.base:TeacherInput",
    "TeacherOutput": "teacher.base:TeacherOutput",
    "dump": "dumping.run:dump",
    "errors": "errors",
    "prefetched": "store.prefetch:prefetched",
    "verify": "dumping.verify:verify",
    "weights_sha256": "teacher.checkpoint:weights_sha256",
}
"""By name, the module within this package and the member."""

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("offline-distillbev")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, member = _PUBLIC[name].partition(":")
    imported = importlib.import_module(f".{module}", __name__)
    return getattr(imported, member) if member else imported


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

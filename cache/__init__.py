"""A LiDAR teacher's features and maps, dumped once to a Zarr store and read while camera students train.

The names below are the public API. Each is imported when it is first used: `import cache` loads no library.
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
    from cache.teacher.base import TeacherOutput as TeacherOutput

    __version__: str

_PUBLIC = {
    "BevGrid": "cache.geometry.grid:BevGrid",
    "CacheSpec": "cache.spec:CacheSpec",
    "DumpConfig": "cache.dumping.config:DumpConfig",
    "Frames": "cache.nuscenes.frames:Frames",
    "PointPipeline": "cache.spec:PointPipeline",
    "Teacher": "cache.teacher.base:Teacher",
    "TeacherBatch": "cache.store.batch:TeacherBatch",
    "TeacherCache": "cache.store.reader:TeacherCache",
    "TeacherIdentity": "cache.spec:TeacherIdentity",
    "TeacherOutput": "cache.teacher.base:TeacherOutput",
    "dump": "cache.dumping.run:dump",
    "errors": "cache.errors",
    "prefetched": "cache.store.prefetch:prefetched",
    "verify": "cache.dumping.verify:verify",
}

__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("offline-distillbev")
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, member = _PUBLIC[name].partition(":")
    imported = importlib.import_module(module)
    return getattr(imported, member) if member else imported


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

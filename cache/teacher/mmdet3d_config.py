"""Build and check detectors from mmdet3d configurations.

mmdet3d is imported inside functions only: a store is read, and a student trained, without it.
"""

import difflib
import hashlib
import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cache.errors import TeacherError
from cache.teacher.foreign import OWN_TEACHER
from cache.teacher.plugins import look_in_working_directory

Config = Any
"""mmengine's Config."""


@contextmanager
def mmdet3d_scope() -> Iterator[None]:
    """Import mmdet3d and make the registered types that its configurations name available within the context.

    Raises:
        TeacherError: mmdet3d, mmdet, mmengine or mmcv is missing, or they do not fit together.
    """
    # spconv calls what torch is going to rename and to change.
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Using a non-tuple sequence for multidimensional indexing")
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
        look_in_working_directory()
        try:
            config = Config.fromfile(path)
        except ImportError as error:
            raise TeacherError(
                "a module that the mmdet3d configuration imports cannot be imported",
                where=path,
                got=_first_cause(error),
                cure="Run the command where the module lies, or name that folder in PYTHONPATH: for mmdet3d's projects "
                "a clone of mmdetection3d, with the project's operators built",
            ) from error
        except Exception as error:  # A configuration is a Python program: it can fail in any way.
            raise TeacherError(
                "the mmdet3d configuration cannot be read", where=path, got=f"{type(error).__name__}: {error}"
            ) from error
    _require_current(config, path)
    return config


def _first_cause(error: BaseException) -> str:
    """The exception that began it: mmengine's own lists the whole of sys.path."""
    while (earlier := error.__cause__ or error.__context__) is not None:
        error = earlier
    return f"{type(error).__name__}: {error}"


def _require_current(config: Config, path: Path) -> None:
    """Refuse configurations of other frameworks, and of mmdet3d 0.x."""
    if "MODEL" in config and "DATA_CONFIG" in config:
        raise TeacherError("the configuration is OpenPCDet's", where=path, got="MODEL, DATA_CONFIG", cure=OWN_TEACHER)
    if "model" not in config:
        cure = "Name a detector's whole configuration: this one is a part that others take over"
        raise TeacherError("the mmdet3d configuration describes no model", where=path, got=", ".join(config), cure=cure)
    if "reader" in config.model:
        what = "the configuration is of det3d (tianweiy/CenterPoint)"
        raise TeacherError(what, where=path, got="model.reader", cure=OWN_TEACHER)
    old = [key for key in ("pts_voxel_layer", "voxel_layer") if key in config.model]
    if old and not config.model.get("data_preprocessor"):
        raise TeacherError(
            "the configuration is of mmdet3d 0.x, which mmdet3d 1.x cannot build",
            where=path,
            got=f"model.{old[0]}",
            expected="model.data_preprocessor.voxel_layer",
            cure="Take the configuration of the same detector in mmdet3d 1.x's model zoo: the checkpoint fits it",
        )


def zoo_configs() -> dict[str, Path]:
    """The configurations of mmdet3d's model zoo by name, as its wheel carries them."""
    import mmdet3d

    zoo = Path(mmdet3d.__file__).parent / ".mim" / "configs"
    return {path.name.removesuffix(".py"): path for path in sorted(zoo.rglob("*.py")) if "_base_" not in path.parts}


def _find_config(name: str) -> Path:
    if Path(name).is_file():
        return Path(name)
    known = zoo_configs()
    stem = Path(name).name.removesuffix(".py")  # Names hold dots, as regnet-1.6gf: `stem` would cut there.
    if stem in known and Path(name).parent == Path():
        return known[stem]
    nearest = difflib.get_close_matches(stem, known, n=3, cutoff=0.4)
    raise TeacherError(
        "no such mmdet3d configuration",
        got=name,
        expected="a .py file, or a name of mmdet3d's model zoo" + (f" such as {', '.join(nearest)}" if nearest else ""),
        cure="Check the path, or take one of these names",
    )


def config_sha256(config: Config) -> str:
    """SHA-256 of the canonical JSON of a configuration's resolved model."""
    return hashlib.sha256(json.dumps(config.model.to_dict(), sort_keys=True, default=str).encode()).hexdigest()

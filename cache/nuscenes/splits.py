"""Splits -> scenes: nuScenes' own, those of splits.json beside the tables, scenes' names, and "all"."""

import json
from collections.abc import Sequence
from pathlib import Path

from cache.errors import ConfigError, DataError
from cache.nuscenes.columns import Names

ALL = "all"
"""The split of every scene in the tables."""

SPLITS_FILE = "splits.json"
"""Beside the tables: {"split": ["scene", ...]}; the devkit reads it too."""


def scenes_of_splits(splits: Sequence[str], names: Names, folder: Path) -> set[str]:
    """The names of all scenes in some splits; of two splits of one name, nuScenes' own counts.

    Args:
        folder: of the tables.

    Raises:
        ConfigError: a split is unknown.
        DataError: splits.json is broken.
    """
    known = {ALL: names.scenes, **custom_splits(folder), **names.splits}
    unknown = [name for name in splits if name not in known and name not in names.scenes]
    if unknown:
        raise ConfigError(
            "unknown split",
            where=folder,
            got=", ".join(unknown),
            expected=f"some of {', '.join(known)}, or names of scenes",
            cure=f"Change the split, or define it in {SPLITS_FILE} beside the tables",
        )
    return {scene for name in splits for scene in known.get(name, (name,))}


def custom_splits(folder: Path) -> dict[str, tuple[str, ...]]:
    """The splits of splits.json; none where there is no such file.

    Raises:
        DataError: it is broken.
    """
    path = folder / SPLITS_FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(path, f"{type(error).__name__}: {error}") from None
    if not isinstance(found, dict) or not all(_is_scenes(scenes) for scenes in found.values()):
        raise _broken(path, "something else")
    return {name: tuple(scenes) for name, scenes in found.items()}


def _is_scenes(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(scene, str) for scene in value)


def _broken(path: Path, got: str) -> DataError:
    return DataError(
        "the splits cannot be read",
        where=path,
        got=got,
        expected='{"split": ["name of a scene", ...], ...}',
        cure="Correct the file",
    )

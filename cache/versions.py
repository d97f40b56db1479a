"""Versions of the installed software."""

import importlib.metadata
import platform

PROJECT = "offline-distillbev"

LIBRARIES = ("torch", "numpy", "zarr", "numcodecs", "nuscenes-devkit", "mmdet3d", "mmcv", "spconv")
"""Libraries that decide the content of a store."""


def installed_versions() -> dict[str, str | None]:
    """Versions of this project, Python and the libraries; None for what is not installed."""
    return {PROJECT: _version(PROJECT), "python": platform.python_version()} | {
        name: _version(name) for name in LIBRARIES
    }


def software_versions() -> dict[str, str]:
    """Versions of what is installed, as a store records them."""
    return {name: version for name, version in installed_versions().items() if version is not None}


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

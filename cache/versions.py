"""Versions of the installed software."""

import importlib.metadata
import platform

PROJECT = "offline-distillbev"

LIBRARIES = ("torch", "numpy", "zarr", "numcodecs", "nuscenes-devkit", "mmdet3d", "mmcv", "spconv")
"""Libraries that decide the content of a store."""


def installed_versions() -> dict[str, str | None]:
    """Versions of this project, Python and the libraries; None for what is not installed."""
    return (
        {PROJECT: _version(PROJECT), "python": platform.python_version()}
        | {name: _version(name) for name in LIBRARIES}
        | {"spconv": _spconv_version()}
    )


def software_versions() -> dict[str, str]:
    """Versions of what is installed, as a store records them."""
    return {name: version for name, version in installed_versions().items() if version is not None}


def _spconv_version() -> str | None:
    """Of the package for the CPU, or of one for a CUDA version, as 2.3.8+cu126."""
    cuda = {suffix: _version(f"spconv-{suffix}") for suffix in ("cu118", "cu120", "cu121", "cu124", "cu126")}
    return _version("spconv") or next((f"{found}+{suffix}" for suffix, found in cuda.items() if found), None)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

"""Versions of the installed software."""

import importlib.metadata

import pytest

from cache.versions import installed_versions, software_versions


def test_spconv_of_a_cuda_version_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "spconv-cu124":
            return "2.3.8"
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert software_versions().keys() == {"python", "spconv"}
    assert installed_versions()["spconv"] == "2.3.8+cu124"

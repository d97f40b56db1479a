import subprocess
import sys

import pytest

import cache

PROGRAMS = (
    "from cache import dump, verify",
    "import cache.dumping.run, cache.dumping.verify; from cache import dump, verify",
    "from cache import dump; import cache.dumping.run, cache.dumping.verify; from cache import dump, verify",
)
HEAVY = ("torch", "zarr", "pydantic", "numpy", "rich")


def run(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("name", cache.__all__)
def test_every_name_is_found_and_listed(name):
    assert getattr(cache, name)
    assert name in dir(cache)


def test_names_are_those_of_their_modules():
    from cache.store.reader import TeacherCache

    assert cache.TeacherCache is TeacherCache
    assert cache.errors.StoreError.__module__ == "cache.errors"
    assert cache.__version__[0].isdigit()
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = cache.nothing


def test_import_loads_no_library():
    loaded = f"import sys, cache; print([name for name in {HEAVY!r} if name in sys.modules])"
    assert run(loaded) == "[]"


def test_dump_and_verify_are_functions_whatever_was_imported_before():
    # The package is imported anew for each program, the libraries once.
    script = f"""
import sys
for program in {PROGRAMS!r}:
    for name in [name for name in sys.modules if name.partition(".")[0] == "cache"]:
        del sys.modules[name]
    exec(program, found := {{}})
    print(type(found["dump"]).__name__, type(found["verify"]).__name__)
"""
    assert run(script).splitlines() == ["function function"] * 3


def test_the_reader_needs_neither_zarr_nor_what_draws():
    libraries = ("zarr", "matplotlib", "rich", "nuscenes", "pytorch_lightning", "mmdet3d")
    program = f"import sys; from cache import TeacherCache; print([n for n in {libraries!r} if n in sys.modules])"
    assert run(program) == "[]"

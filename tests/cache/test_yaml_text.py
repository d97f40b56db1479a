import time
from pathlib import Path

import pytest

from cache.errors import ConfigError
from cache.yaml_text import parse_yaml, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]\n"
    for before, name in zip("abcdefghij", "bcdefghijk", strict=True)
)
"""8 to the power of 11 values in a kilobyte."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {b: 1, c: 2, b: 3}", "is not YAML (here); got the key 'b' occurs twice"),
        (BOMB, "the configuration's aliases stand for too much (here); got more than 100,000 values"),
        ("a: &a [*a]", "got an alias of what it is part of"),
        ("a: 2001-13-45", "is not YAML (here); got month must be in 1..12"),
        ("[" * 5000, "is not YAML (here); got brackets within brackets"),
        ("a: " + "9" * 5000, "is not YAML (here); got Exceeds the limit"),
        ("{a: 1}: 2", "is not YAML (here); got while constructing a mapping found unhashable key"),
        ("a: \x01", "is not YAML (here); got unacceptable character"),
    ],
)
def test_what_is_refused_in_a_moment(text: str, message: str) -> None:
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, where="here")
    assert message in str(caught.value)
    assert time.monotonic() - began < 10


def test_anchors_and_merges_that_are_small_are_kept() -> None:
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a"
    assert parse_yaml(text, where="here") == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}, "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_are_named(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes("name: né".encode(encoding))
    with pytest.raises(ConfigError, match=r"the configuration is not UTF-8 text .*Save it in the encoding UTF-8"):
        read_yaml(path)


def test_nothing_is_none(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("# nothing\n")
    assert read_yaml(path) is None

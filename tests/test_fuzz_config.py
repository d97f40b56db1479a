"""Configurations with one value replaced by another: parsed, or refused with a ConfigError; never another exception."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cache.config import Strict, load_yaml
from cache.dumping.config import DumpConfig
from cache.errors import ConfigError
from cache.yaml_text import parse_yaml
from demo.world.config import WorldConfig
from student.config.student import StudentConfig

CONFIGS = Path(__file__).parent.parent / "configs"
BASES: dict[type[Strict], Any] = {
    StudentConfig: yaml.safe_load((CONFIGS / "bevdepth4d_r50.yaml").read_text()),
    DumpConfig: yaml.safe_load((CONFIGS / "centerpoint_pillar02.yaml").read_text()),
    WorldConfig: {},
}

NUMBERS = [-1, 0, 1, 3, 2**63, 10**30, -(10**30), 1.5, -1e308, 1e308, 1e-308, float("inf"), float("nan")]
SCALARS = st.sampled_from(NUMBERS) | st.sampled_from([None, True, False, "", "x", "1e4", "\ud800", "auto", "car"])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.sampled_from(["a", "kind", 1]), inner),
    max_leaves=6,
)


def keys(model: type[Strict], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        yield (*above, name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Strict):
            yield from keys(field.annotation, (*above, name))


PLACES = [(model, path) for model in BASES for path in keys(model)]


def replaced(values: Any, path: tuple[str, ...], value: Any) -> Any:
    inner = values.get(path[0]) if isinstance(values, dict) else None
    own = values if isinstance(values, dict) else {}
    return own | {path[0]: value if len(path) == 1 else replaced(inner, path[1:], value)}


@settings(max_examples=400, deadline=2000, derandomize=True, suppress_health_check=list(HealthCheck))
@given(place=st.sampled_from(PLACES), value=VALUES)
def test_any_value_at_any_key(place: tuple[type[Strict], tuple[str, ...]], value: Any) -> None:
    model, path = place
    try:
        model.parse(replaced(BASES[model], path, value), where="fuzz")
    except ConfigError as error:
        assert "\n" not in str(error)


@settings(max_examples=200, deadline=5000, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=st.text(alphabet="ab:-[]{}&*!<>|#,'\"% \n\t\x000123.\ud800é", max_size=60))
def test_any_text(text: str) -> None:
    try:
        parse_yaml(text, where="fuzz")
    except ConfigError as error:
        assert "\n" not in str(error)


@settings(max_examples=50, deadline=2000, derandomize=True, suppress_health_check=list(HealthCheck))
@given(content=st.binary(max_size=80))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError):
        load_yaml(path, StudentConfig, ["detector.no_such_key=1"])

from typing import Literal

import pytest
from pydantic import Field, ValidationError

from cache.config import Strict, load_yaml
from cache.errors import ConfigError


class Inner(Strict):
    learning_rate: float = Field(0.1, gt=0)
    kind: Literal["a", "b"] = "a"


class Outer(Strict):
    name: str
    inner: Inner = Inner()
    many: dict[str, Inner] = Field(default_factory=dict)
    maybe: Inner | None = None


def write(tmp_path, text: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return path


def problem(path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_yaml(path, Outer, overrides)
    return str(caught.value)


def test_values_and_defaults(tmp_path):
    config = load_yaml(write(tmp_path, "name: x\ninner: {learning_rate: 2}\n"), Outer)
    assert config == Outer(name="x", inner=Inner(learning_rate=2))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("name: x\ninnre: {}", "unknown key 'innre': did you mean 'inner'?"),
        ("name: x\ninner: {learning_rat: 1}", "unknown key 'inner.learning_rat': did you mean 'learning_rate'?"),
        ("name: x\nmany: {one: {knid: a}}", "unknown key 'many.one.knid': did you mean 'kind'?"),
        ("name: x\nmaybe: {knid: a}", "unknown key 'maybe.knid': did you mean 'kind'?"),
        ("name: x\nzzzzzz: 1", "unknown key 'zzzzzz': known here: inner, many, maybe, name"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(tmp_path, text, hint):
    path = write(tmp_path, text)
    assert problem(path) == f"invalid configuration: {hint} ({path})"


def test_every_problem_is_listed(tmp_path):
    message = problem(write(tmp_path, "inner: {learning_rate: -1, kind: c}"))
    assert "name: Field required" in message
    assert "inner.learning_rate: Input should be greater than 0, got -1" in message
    assert "inner.kind: Input should be 'a' or 'b', got 'c'" in message


def test_a_missing_file(tmp_path):
    assert problem(tmp_path / "no.yaml").startswith(f"the configuration cannot be read ({tmp_path / 'no.yaml'})")


def test_a_file_that_is_not_yaml(tmp_path):
    assert "the configuration is not YAML" in problem(write(tmp_path, "name: [x"))


@pytest.mark.parametrize("text", ["", "- a\n- b", "just text"])
def test_a_file_without_the_keys(tmp_path, text):
    assert "invalid configuration" in problem(write(tmp_path, text))


def test_nothing_in_a_yaml_file_is_run(tmp_path):
    message = problem(write(tmp_path, f"name: !!python/object/apply:os.mkdir ['{tmp_path}/made']"))
    assert "not YAML" in message
    assert not (tmp_path / "made").exists()


def test_overrides_are_laid_over_the_file(tmp_path):
    path = write(tmp_path, "name: x\ninner: {learning_rate: 2}")
    config = load_yaml(path, Outer, ("inner.kind=b", "maybe.learning_rate=3", "name=y"))
    assert config == Outer(name="y", inner=Inner(learning_rate=2, kind="b"), maybe=Inner(learning_rate=3))


def test_an_override_without_a_value(tmp_path):
    assert "got name; expected dotted.key=value" in problem(write(tmp_path, "name: x"), "name")


def test_models_are_frozen():
    with pytest.raises(ValidationError):
        Inner().learning_rate = 2


def test_a_list_is_no_configuration(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n- 2\n")
    with pytest.raises(ConfigError, match=r"not a mapping of keys to values .*; got list"):
        load_yaml(path, Strict, ["a=1"])


@pytest.mark.parametrize(
    ("text", "key"), [("inner: {learning_rate: true}", "inner.learning_rate"), ("name: no", "name")]
)
def test_true_is_no_number_and_no_text(tmp_path, text, key):
    message = problem(write(tmp_path, "name: x\n" * ("name" not in text) + text))
    assert f"{key}: Input should be a value other than true or false, got " in message


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_numbers_are_finite(tmp_path, value):
    message = problem(write(tmp_path, f"name: x\ninner: {{learning_rate: {value}}}"))
    assert "inner.learning_rate: Input should be " in message


def test_a_long_value_is_shortened(tmp_path):
    message = problem(write(tmp_path, f"name: x\ninner: {{kind: {'z' * 5000}}}"))
    assert "inner.kind: Input should be 'a' or 'b', got 'zzz" in message
    assert len(message) < 400

"""Strict configuration: YAML into frozen pydantic models; the error for an unknown key names the nearest known one."""

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from cache.errors import ConfigError

Model = TypeVar("Model", bound="Strict")


class Strict(BaseModel):
    """Base of every configuration and of every record kept in a store; numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @classmethod
    def parse(cls: type[Model], values: Any, where: str | Path) -> Model:
        """Validate plain data.

        Raises:
            ConfigError: with one clause for each key that is unknown, missing or out of range.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(_describe(detail, cls) for detail in error.errors())
            raise ConfigError(f"invalid configuration: {problems}", where=where) from None


def load_yaml(path: str | Path | None, model: type[Model], overrides: Iterable[str] = ()) -> Model:
    """Read a YAML file into a model.

    Args:
        path: None for the model's defaults.
        overrides: "dotted.key=value" each, with the value in YAML, which replaces the file's.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not fit the model.
    """
    try:
        text = "" if path is None else Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "the configuration cannot be read", where=path, got=error.strerror, cure="Check its path"
        ) from None
    values = _yaml(text, where=path or model.__name__) or {}
    if not isinstance(values, dict):
        raise ConfigError(
            "invalid configuration: not a mapping of keys to values",
            where=path,
            got=type(values).__name__,
            cure="Correct it",
        )
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ConfigError("not an override", where="--set", got=override, expected="dotted.key=value")
        _set_at(values, key.split("."), _yaml(value, where=f"--set {key}"))
    return model.parse(values, where=path or model.__name__)


def differing(first: Any, second: Any, *, whole: bool = True, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The dotted path and both values of each leaf at which two records of plain data differ.

    Args:
        whole: compare keys that only the first has too, with None.
    """
    if isinstance(first, dict) and isinstance(second, dict):
        for key in (first | second) if whole else second:
            inner = f"{path}.{key}" if path else key
            yield from differing(first.get(key), second.get(key), whole=whole, path=inner)
    elif isinstance(first, list) and isinstance(second, list | tuple) and len(first) == len(second):
        for index, (ours, theirs) in enumerate(zip(first, second, strict=True)):
            yield from differing(ours, theirs, whole=whole, path=f"{path}[{index}]")
    elif first != second:
        yield path, first, second


def _yaml(text: str, where: str | Path) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError("the configuration is not YAML", where=where, got=problem, cure="Correct it there") from None


def _set_at(values: dict[str, Any], path: list[str], value: Any) -> None:
    """Set the value at a path of keys, making the mappings on the way."""
    *parents, last = path
    for part in parents:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[last] = value


def _describe(detail: ErrorDetails, model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in detail["loc"]) or "the top level"
    if detail["type"] != "extra_forbidden":
        return f"{key}: {detail['msg']}, got {detail['input']!r}"
    *parents, unknown = detail["loc"]
    known = _fields_at(model, tuple(parents))
    nearest = difflib.get_close_matches(str(unknown), known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known here: {', '.join(known)}"
    return f"unknown key {key!r}: {hint}"


def _fields_at(model: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    """The field names of the models nested at `path` inside `model`, through lists, dicts and unions."""
    found = [model]
    for part in path:
        names = [m.model_fields[str(part)].annotation for m in found if str(part) in m.model_fields]
        if names:
            found = [nested for annotation in names for nested in _models_in(annotation)]
        # Otherwise the part is an index, a dict's key or a union's tag: the models stay the same.
    return sorted({name for m in found for name in m.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [nested for argument in getattr(annotation, "__args__", ()) for nested in _models_in(argument)]

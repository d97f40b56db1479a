"""Strict configuration: YAML into frozen pydantic models, with unknown keys refused and the nearest known one named."""

import difflib
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from cache.errors import ConfigError


class Strict(BaseModel):
    """Base of every configuration and of every record kept in a store."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def parse(cls, values: Any, where: str | Path) -> Self:
        """Validate plain data.

        Raises:
            ConfigError: with one clause for each key that is unknown, missing or out of range.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(_describe(detail, cls) for detail in error.errors())
            raise ConfigError(f"invalid configuration: {problems}", where=where) from None


Model = TypeVar("Model", bound=Strict)


def load_yaml(path: str | Path, model: type[Model]) -> Model:
    """Read a YAML file into a model.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not fit the model.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError("the configuration cannot be read", where=path, got=error.strerror) from None
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError("the configuration is not YAML", where=path, got=problem) from None
    return model.parse({} if values is None else values, where=path)


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

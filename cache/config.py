"""Strict configuration: YAML into frozen pydantic models; the error for an unknown key names the nearest known one."""

import difflib
import reprlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError

from cache.errors import ConfigError
from cache.yaml_text import parse_yaml, read_yaml

Model = TypeVar("Model", bound="Strict")


_NO_TRUTH_VALUE = PydanticCustomError("truth_value", "Input should be a value other than true or false")


def _ascending(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("the first value should not be above the second")
    return ends


Range = Annotated[tuple[float, float], AfterValidator(_ascending)]
"""(low, high), in that order."""


Size = Annotated[int, Field(ge=1, le=2**16)]
"""Of a tensor along a dimension; torch has no number for a typing mistake's."""


class Strict(BaseModel):
    """Base of every configuration and of every record kept in a store; numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_value_as_a_number(cls, values: Any) -> Any:
        """pydantic takes true for 1: `batch_size: true` would train."""
        fields = {name: str(field.annotation) for name, field in cls.model_fields.items()}
        wrong = [
            InitErrorDetails(type=_NO_TRUTH_VALUE, loc=(name,), input=values[name])
            for name, kind in fields.items()
            if isinstance(values, dict) and "bool" not in kind and _holds_bool(values.get(name))
        ]
        if wrong:
            raise ValidationError.from_exception_data(cls.__name__, wrong)
        return values

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
    values = {} if path is None else read_yaml(Path(path))
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(
            "invalid configuration: not a mapping of keys to values",
            where=path,
            got=type(values).__name__,
            cure="Write `key: value` lines, as the files in configs/ have them",
        )
    return model.parse(override(values, overrides), where=path or model.__name__)


def override(values: dict[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Set values of plain data in place.

    Args:
        overrides: "dotted.key=value" each, with the value in YAML.

    Raises:
        ConfigError: one has another form.
    """
    for each in overrides:
        key, equals, value = each.partition("=")
        if not equals:
            raise ConfigError(
                "not an override",
                where="--set",
                got=each,
                expected="dotted.key=value",
                cure="Write a key of the file with its parents, and a value: --set training.epochs=2",
            )
        _set_at(values, key.split("."), parse_yaml(value, where=f"--set {key}"))
    return values


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


def _holds_bool(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, list | tuple) and any(map(_holds_bool, value)))


def _set_at(values: dict[str, Any], path: list[str], value: Any) -> None:
    """Set the value at a path of keys, making the mappings on the way."""
    *parents, last = path
    for part in parents:
        if not isinstance(values.get(part), dict):
            values[part] = {}
        values = values[part]
    values[last] = value


_SHORT = reprlib.Repr()
"""Of a value that may be a whole file's; short ones stay as they are."""
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 120
_SHORT.maxdict = _SHORT.maxlist = _SHORT.maxtuple = 12


def _describe(detail: ErrorDetails, model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in detail["loc"]) or "the top level"
    if detail["type"] != "extra_forbidden":
        return f"{key}: {detail['msg']}, got {_SHORT.repr(detail['input'])}"
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

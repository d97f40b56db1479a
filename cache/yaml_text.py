"""YAML text -> plain data; what YAML leaves open or makes dangerous is an error."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from cache.errors import ConfigError

MOST_NODES = 100_000
"""Values of a file with its aliases written out: a few lines of nested aliases stand for billions."""


def read_yaml(path: Path) -> Any:
    """The data of a YAML file; None where it is empty.

    Raises:
        ConfigError: the file cannot be read, is not UTF-8 or is not YAML; see `parse_yaml`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "the configuration cannot be read", where=path, got=error.strerror, cure="Check its path"
        ) from None
    except (UnicodeDecodeError, ValueError) as error:
        raise ConfigError(
            "the configuration is not UTF-8 text", where=path, got=error, cure="Save it in the encoding UTF-8"
        ) from None
    return parse_yaml(text, where=path)


def parse_yaml(text: str, where: str | Path) -> Any:
    """The data that a YAML text stands for; no code of it is run.

    Raises:
        ConfigError: the text is not YAML, has a key twice, or stands for more than MOST_NODES values.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        _require_size(node, where)
        return None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise _not_yaml(where, " ".join(str(error).split())) from None
    except RecursionError:
        raise _not_yaml(where, "brackets within brackets, too many for a reader") from None
    except (ValueError, OverflowError) as error:  # 2001-13-45 reads as a date, 1_:_ as a number
        raise _not_yaml(where, error) from None


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a mapping with a key twice: YAML forbids it, and PyYAML takes the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} occurs twice", key.start_mark
                )
            if name is not None:
                seen.add(name)
        return super().construct_mapping(node, deep)


def _require_size(node: yaml.Node | None, where: str | Path) -> None:
    """Raise unless the data is finite and small once its aliases are written out."""
    sizes: dict[int, int | None] = {}

    def size(of: yaml.Node) -> int:
        if id(of) not in sizes:
            sizes[id(of)] = None
            sizes[id(of)] = 1 + sum(map(size, _children(of)))
        found = sizes[id(of)]
        if found is None or found > MOST_NODES:
            raise ConfigError(
                "the configuration's aliases stand for too much",
                where=where,
                got="an alias of what it is part of" if found is None else f"more than {MOST_NODES:,} values",
                cure="Write the values themselves in place of anchors (&) and aliases (*)",
            )
        return found

    if node is not None:
        size(node)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _not_yaml(where: str | Path, got: object) -> ConfigError:
    return ConfigError("the configuration is not YAML", where=where, got=got, cure="Correct it there")

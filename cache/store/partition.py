"""Division of a dump's shards among processes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from cache.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Part:
    """The shards that a process writes, block `index` of `count`: processes share a dump without communication."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(
                "no such part",
                got=f"{self.index}/{self.count}",
                expected="i/n with 0 <= i < n",
                cure="Count parts from 0",
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> "Part":
        """The part written "i/n".

        Raises:
            ConfigError: the text has another form, or there is no such part.
        """
        match = re.fullmatch(r"(\d+)/(\d+)", text)
        if match is None:
            raise ConfigError("not a part", got=text, expected="i/n with 0 <= i < n", cure="Write for example 0/4")
        return cls(index=int(match[1]), count=int(match[2]))

    @classmethod
    def of_rank(cls, environment: Mapping[str, str]) -> "Part":
        """The part of a process of torchrun (RANK of WORLD_SIZE); the whole without torchrun.

        Raises:
            ConfigError: one of both is no number, or there is no such part.
        """
        index, count = environment_number(environment, "RANK", 0), environment_number(environment, "WORLD_SIZE", 1)
        return cls(index=index, count=count)

    def shards(self, total: int) -> range:
        """This part's of `total` shards."""
        return range(total * self.index // self.count, total * (self.index + 1) // self.count)


WHOLE = Part()


def environment_number(environment: Mapping[str, str], name: str, default: int) -> int:
    """The number that a launcher gives its processes in an environment variable.

    Raises:
        ConfigError: it is no whole number of 0 or more.
    """
    text = environment.get(name, str(default)).strip()
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(
            "an environment variable of a launcher is no number",
            where=name,
            got=repr(text),
            expected="a whole number of 0 or more",
            cure=f"Unset {name}, or start the command with a launcher that sets it, such as torchrun",
        )
    return int(text)

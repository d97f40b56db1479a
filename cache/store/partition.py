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
        """The part of a process of torchrun (RANK of WORLD_SIZE); the whole without torchrun."""
        return cls(index=int(environment.get("RANK", 0)), count=int(environment.get("WORLD_SIZE", 1)))

    def shards(self, total: int) -> range:
        """This part's of `total` shards."""
        return range(total * self.index // self.count, total * (self.index + 1) // self.count)


WHOLE = Part()

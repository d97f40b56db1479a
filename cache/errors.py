"""The project's exceptions; each message has what, where, got, expected and cure.

OfflineDistillError
|-- ConfigError             a configuration asks for something impossible or unknown
|-- DataError               the data set: a file, table, version or value is missing or broken
|-- TeacherError            the teacher cannot be built, loaded or trusted
|-- StoppedError            a signal stopped the work, which can go on from there
`-- StoreError              the store on disk
    |-- NotCachedError      a token, layer or view that was not dumped (also a KeyError)
    |-- CorruptStoreError   bytes that do not match their checksum, or a broken layout
    |-- MismatchError       the store is not the one that was expected
    |-- StoreBusyError      another process is writing there
    `-- UnsealedError       the dump has not finished
"""

from functools import partial
from pathlib import Path


class OfflineDistillError(Exception):
    """Base of this project's errors; the command line prints one in one line, without a traceback.

    Args:
        what: What went wrong, a clause without a full stop.
        where: The file, array, key or token concerned.
        got: What was found.
        expected: What was needed instead.
        cure: What the user can do about it, an imperative.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | Path | None = None,
        got: object = None,
        expected: object = None,
        cure: str | None = None,
    ) -> None:
        self.what, self.where, self.got, self.expected, self.cure = what, where, got, expected, cure
        super().__init__(what)

    def __str__(self) -> str:
        parts = [self.what if self.where is None else f"{self.what} ({self.where})"]
        if self.got is not None:
            parts.append(f"got {self.got}")
        if self.expected is not None:
            parts.append(f"expected {self.expected}")
        message = "; ".join(parts)
        return message if self.cure is None else f"{message}. {self.cure}."

    def __reduce__(self) -> tuple:
        """Keep every part when pickled, as from a loader worker to its parent."""
        rebuild = partial(type(self), where=self.where, got=self.got, expected=self.expected, cure=self.cure)
        return rebuild, (self.what,)


class ConfigError(OfflineDistillError):
    """A configuration asks for something impossible or unknown."""


class DataError(OfflineDistillError):
    """The data set: a file, table, version or value is missing or broken."""


class TeacherError(OfflineDistillError):
    """The teacher cannot be built, loaded or trusted."""


class StoppedError(OfflineDistillError):
    """A signal stopped the work, which can go on from there."""


class OfflineDistillWarning(UserWarning):
    """Base of this project's warnings; the command line prints one in one line."""


class StoreError(OfflineDistillError):
    """The store on disk."""


class NotCachedError(StoreError, KeyError):
    """A token, layer or view that was not dumped; also a KeyError."""

    __str__ = OfflineDistillError.__str__


class CorruptStoreError(StoreError):
    """Bytes that do not match their checksum, or a broken layout."""


class MismatchError(StoreError):
    """The store is not the one that was expected."""


class StoreBusyError(StoreError):
    """Another process is writing there."""


class UnsealedError(StoreError):
    """The dump has not finished."""

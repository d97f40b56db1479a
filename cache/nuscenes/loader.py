"""A DataLoader that raises its workers' errors unchanged."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from cache.errors import OfflineDistillError


class Loader(DataLoader):
    """DataLoader that raises a worker's OfflineDistillError unchanged; DataLoader adds the worker's traceback to it.

    With a GPU, batches are in page-locked memory.
    """

    def __init__(self, dataset: Dataset, *, collate_fn: Callable[[list], Any], **options: Any) -> None:
        super().__init__(
            _ErrorsAsSamples(dataset=dataset),
            collate_fn=_Collate(function=collate_fn),
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, OfflineDistillError):
                raise batch
            yield batch


@dataclass(frozen=True, kw_only=True)
class _ErrorsAsSamples(Dataset):
    """A data set that returns its errors as samples."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Any) -> Any:
        try:
            return self.dataset[key]
        except OfflineDistillError as error:
            return error


@dataclass(frozen=True, kw_only=True)
class _Collate:
    """A collate function that returns an error among the samples, or its own."""

    function: Callable[[list], Any]

    def __call__(self, samples: Sequence[Any]) -> Any:
        for sample in samples:
            if isinstance(sample, OfflineDistillError):
                return sample
        try:
            return self.function(list(samples))
        except OfflineDistillError as error:
            return error

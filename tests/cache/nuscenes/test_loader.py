import pytest
from torch.utils.data import Dataset

from cache.errors import DataError
from cache.nuscenes.loader import Loader


class Numbers(Dataset):
    """0 .. 5, of which one may be broken."""

    def __init__(self, broken: int | None = None) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> int:
        if index == self.broken:
            raise DataError("broken", where=f"number {index}", cure="Mend it")
        return index


def refuse_fives(numbers: list[int]) -> int:
    if 5 in numbers:
        raise DataError("no fives", got=numbers)
    return sum(numbers)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_in_order(workers: int) -> None:
    assert list(Loader(Numbers(), collate_fn=sum, batch_size=2, num_workers=workers)) == [1, 5, 9]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_workers_error_arrives_whole(workers: int) -> None:
    batches = iter(Loader(Numbers(broken=3), collate_fn=sum, batch_size=2, num_workers=workers))
    assert next(batches) == 1
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == "broken (number 3). Mend it."


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_while_collating_arrives_whole(workers: int) -> None:
    with pytest.raises(DataError, match=r"^no fives; got \[4, 5\]$"):
        list(Loader(Numbers(), collate_fn=refuse_fives, batch_size=2, num_workers=workers))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_start_as_asked_for(method):
    loader = Loader(Numbers(), collate_fn=sum, num_workers=1, multiprocessing_context=method)
    assert loader.multiprocessing_context.get_start_method() == method

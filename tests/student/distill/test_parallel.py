import threading

import pytest
import torch

from student.distill.parallel import parallel_map, single_threaded


@pytest.fixture
def three_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_for_each_keeps_the_order_and_gives_each_worker_one_thread(three_threads: None) -> None:
    meeting = threading.Barrier(3, timeout=20)

    def work(index: int, item: str) -> tuple[int, str, int]:
        # Three are at work at a time, or this waits for ever.
        meeting.wait()
        return index, item, torch.get_num_threads()

    assert parallel_map("abcdef", work) == [(index, item, 1) for index, item in enumerate("abcdef")]
    assert torch.get_num_threads() == 3


def test_the_number_of_threads_comes_back_after_an_error(three_threads: None) -> None:
    def work(index: int, item: int) -> float:
        return 1 / item

    with pytest.raises(ZeroDivisionError):
        parallel_map([1, 0, 2], work)
    with pytest.raises(ZeroDivisionError), single_threaded():
        assert torch.get_num_threads() == 1
        work(0, 0)
    assert torch.get_num_threads() == 3
    started = []
    thread = threading.Thread(target=lambda: started.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert started == [3]


def test_a_single_item_is_worked_on_by_all_threads(three_threads: None) -> None:
    assert parallel_map([7], lambda index, item: (item, torch.get_num_threads())) == [(7, 3)]

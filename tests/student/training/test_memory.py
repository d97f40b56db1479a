import pytest
import torch

from student.training.memory import LiveBytes, bytes_of, tensors_of

FLOATS = 1000
BYTES = 4 * FLOATS


def test_a_tensor_counts_while_it_lives() -> None:
    with LiveBytes() as live:
        x = torch.ones(FLOATS)
        y = x * 2
        assert live.now == 2 * BYTES
        view = y[10:]
        del y
        assert live.now == 2 * BYTES
        del view
        assert live.now == BYTES
        x.add_(1)
    assert (live.now, live.peak) == (BYTES, 2 * BYTES)


def test_what_autograd_saves_and_frees_is_seen() -> None:
    x = torch.rand(FLOATS, requires_grad=True)
    with LiveBytes() as live:
        loss = x.exp().sum()  # exp keeps its result, and the sum is one number
        assert live.now == BYTES + 4
        loss.backward()
        assert live.now == BYTES + 4  # the result went, the gradient came
    assert x.grad is not None


def test_tensors_are_found_in_batches(nested: object) -> None:
    assert bytes_of(tensors_of(nested)) == 2 * BYTES + 3


@pytest.fixture
def nested() -> object:
    return (torch.zeros(FLOATS), {"a": torch.zeros(3, dtype=torch.uint8)}, None, (torch.zeros(FLOATS), "b"))

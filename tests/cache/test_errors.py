import multiprocessing
import pickle
from pathlib import Path

import pytest

from cache import errors
from cache.errors import MismatchError, NotCachedError, OfflineDistillError, StoreError

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, OfflineDistillError)]


def test_message_by_hand():
    error = StoreError("the store is missing", where=Path("a/b"), got=3, expected="4", cure="Dump it")
    assert str(error) == "the store is missing (a/b); got 3; expected 4. Dump it."


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "what"),
        ({"where": "here"}, "what (here)"),
        ({"got": 0}, "what; got 0"),
        ({"expected": False}, "what; expected False"),
        ({"cure": "Do it"}, "what. Do it."),
    ],
)
def test_parts_that_are_missing_leave_no_trace(parts, message):
    assert str(OfflineDistillError("what", **parts)) == message


@pytest.mark.parametrize("kind", ALL)
def test_every_error_survives_pickling(kind):
    error = kind("what", where="here", got=[1], expected={"a": 2}, cure="Do it")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert (again.what, again.where, again.got, again.expected, again.cure) == ("what", "here", [1], {"a": 2}, "Do it")


def fail(token: str) -> None:
    raise NotCachedError("not here", got=token)


def test_an_error_comes_back_from_a_pool():
    with multiprocessing.get_context("fork").Pool(1) as pool, pytest.raises(NotCachedError) as caught:
        pool.apply(fail, ("abc",))
    assert str(caught.value) == "not here; got abc"


def test_a_token_that_was_not_cached_is_a_key_error_with_a_plain_message():
    error = NotCachedError("not here", got="abc")
    assert isinstance(error, KeyError)
    assert str(error) == "not here; got abc"  # KeyError itself would quote it


def test_the_tree_is_the_one_in_the_docstring():
    for kind in ALL:
        assert kind.__name__ in errors.__doc__
    assert {kind for kind in ALL if issubclass(kind, StoreError)} == {
        StoreError,
        NotCachedError,
        MismatchError,
        errors.CorruptStoreError,
        errors.StoreBusyError,
        errors.UnsealedError,
    }

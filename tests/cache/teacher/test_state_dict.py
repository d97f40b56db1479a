import torch
from torch import nn

from cache.teacher.state_dict import abridged, load_state_dict, match_state_dict, not_finite


def small() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))


def test_a_state_dict_that_fits_has_nothing_to_report() -> None:
    match = match_state_dict(small().state_dict(), small().state_dict())
    assert not match
    assert str(match) == ""


def test_names_and_shapes_that_differ_are_listed() -> None:
    weights = small().state_dict()
    weights["0.weight"] = torch.zeros(3, 5, 1, 1)
    weights["head"] = weights.pop("1.bias")
    match = match_state_dict(weights, small().state_dict())
    assert match
    assert (match.missing, match.unexpected) == (("1.bias",), ("head",))
    assert match.mismatched == {"0.weight": ((3, 5, 1, 1), (3, 2, 1, 1))}
    expected = "1 missing: 1.bias; 1 unexpected: head; 1 of another shape: 0.weight (3, 5, 1, 1) for (3, 2, 1, 1)"
    assert str(match) == expected
    assert str(load_state_dict(small(), weights)) == expected


def test_counters_of_batch_norm_may_be_missing() -> None:
    weights = small().state_dict()
    del weights["1.num_batches_tracked"]
    assert not match_state_dict(weights, small().state_dict())
    assert not load_state_dict(small(), weights)


def test_loading_takes_what_fits() -> None:
    trained, fresh = small(), small()
    weights = {name: value for name, value in trained.state_dict().items() if name != "0.bias"}
    assert load_state_dict(fresh, weights).missing == ("0.bias",)
    torch.testing.assert_close(fresh[0].weight, trained[0].weight, rtol=0, atol=0)


def test_values_that_are_not_finite_are_named() -> None:
    assert not_finite({"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan]), "c": torch.tensor(3)}) == ["b"]


def test_long_lists_are_cut() -> None:
    assert abridged("abcdef") == "a, b, c, d and 2 more"
    assert abridged("abc", most=2, separator="; ") == "a; b and 1 more"

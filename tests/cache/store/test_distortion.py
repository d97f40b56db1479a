import math

import numpy as np
import pytest
import torch

from cache.errors import ConfigError
from cache.spec import CodecSpec
from cache.store.codec import encode
from cache.store.distortion import Distortion, expected_sqnr_db, measure, require_budget

UNSIGNED = CodecSpec()


def relu_features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu()


def test_distortion_by_hand():
    features = torch.tensor([[[[0.0, 1.005, 2.0, 5.1]]]])
    (distortion,) = measure(features, encode(features, UNSIGNED))
    assert distortion.signal == pytest.approx(1.005**2 + 4 + 5.1**2)
    assert distortion.largest == pytest.approx(0.005, rel=1e-3)
    assert distortion.noise == pytest.approx(0.005**2, rel=1e-2)
    assert distortion.values == 4


def test_distortions_add_up():
    features = relu_features(4, 3, 8, 8)
    encoded = encode(features, UNSIGNED)
    total = sum(measure(features, encoded), start=Distortion())
    error = (features - encoded.decode()).double()
    expected = 10 * math.log10(features.double().square().sum() / error.square().sum())
    assert total.sqnr_db == pytest.approx(expected)
    assert total.largest == pytest.approx(error.abs().max().item())
    assert total.values == features.numel()


def test_distortion_of_huge_values_does_not_overflow():
    features = relu_features(1, 1, 8, 8) * 1e25
    (distortion,) = measure(features, encode(features, UNSIGNED))
    assert 40 < distortion.sqnr_db < 70


def test_nothing_lost_is_an_infinite_ratio():
    assert Distortion(signal=1, values=1).sqnr_db == math.inf
    assert Distortion().sqnr_db == math.inf


def test_budget():
    codec = CodecSpec(bits=4)
    features = relu_features(1, 3, 16, 16) ** 4
    (distortion,) = measure(features, encode(features, codec))
    require_budget(distortion, codec.model_copy(update={"min_sqnr_db": 5.0}), "layer head")
    with pytest.raises(ConfigError) as caught:
        require_budget(distortion, codec, "layer head, token abc")
    message = str(caught.value)
    assert "(layer head, token abc)" in message
    assert f"an SQNR of {distortion.sqnr_db:.1f} dB with unsigned, 4 bits" in message
    assert "at least 30 dB" in message


@pytest.mark.parametrize(
    ("codec", "off_db"),
    [
        (CodecSpec(), 0.3),
        (CodecSpec(kind="signed"), 0.3),
        (CodecSpec(bits=6, companding=0.7), 0.3),
        (CodecSpec(kind="float16"), 0.3),
        (CodecSpec(target_sqnr_db=34), 0.6),
    ],
)
def test_the_expected_ratio_is_close_to_the_measured_one(codec: CodecSpec, off_db: float) -> None:
    values = torch.randn(2, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    values = values if codec.kind == "signed" else values.relu()
    encoded = encode(values, codec)
    measured = [distortion.sqnr_db for distortion in measure(values, encoded)]
    np.testing.assert_allclose(expected_sqnr_db(encoded), measured, atol=off_db)


def test_nothing_but_zeros_has_no_rounding() -> None:
    assert expected_sqnr_db(encode(torch.zeros(1, 2, 3, 3), CodecSpec())).tolist() == [float("inf")]

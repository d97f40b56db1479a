import math

import pytest
import torch

from cache.errors import ConfigError, TeacherError
from cache.spec import CodecSpec
from cache.store.codec import encode, shared_step
from cache.store.distortion import Distortion, measure

UNSIGNED, SIGNED, HALF = (CodecSpec(kind=kind) for kind in ("unsigned", "signed", "float16"))


def relu_features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).relu()


def test_unsigned_codes_by_hand():
    encoded = encode(torch.tensor([[[[0.0, 1.0], [2.0, 5.1]]]]), UNSIGNED)
    assert encoded.values.dtype == torch.uint8
    assert encoded.values.flatten().tolist() == [0, 50, 100, 255]  # step 5.1 / 255 = 0.02
    assert encoded.scale.item() == pytest.approx(0.02)
    assert encoded.decode().flatten().tolist() == pytest.approx([0, 1, 2, 5.1])


def test_signed_codes_by_hand():
    encoded = encode(torch.tensor([[[-12.7, 0.0, 6.0]]]), SIGNED)
    assert encoded.values.dtype == torch.int8
    assert encoded.values.flatten().tolist() == [-127, 0, 60]
    assert encoded.decode().flatten().tolist() == pytest.approx([-12.7, 0, 6])


def test_companding_by_hand():
    codec = CodecSpec(bits=4, companding=0.5)
    encoded = encode(torch.tensor([[[0.0, 0.04, 0.25, 1.0]]]), codec)
    assert encoded.values.flatten().tolist() == [0, 3, 8, 15]  # round(15 sqrt(x)): 0.25 -> 7.5 -> 8 (half to even)
    assert encoded.decode().flatten().tolist() == pytest.approx([0, 0.04, (8 / 15) ** 2, 1])


def test_companding_keeps_signs():
    codec = CodecSpec(kind="signed", companding=0.5)
    features = torch.tensor([[[-1.0, -0.25, 0.0, 0.25]]])
    assert encode(features, codec).decode() == pytest.approx(features, abs=0.005)


@pytest.mark.parametrize("bits", [4, 5, 6, 7, 8])
@pytest.mark.parametrize("kind", ["unsigned", "signed"])
def test_error_is_at_most_half_a_step(kind, bits):
    features = relu_features(2, 3, 16, 16) if kind == "unsigned" else torch.randn(2, 3, 16, 16)
    encoded = encode(features, CodecSpec(kind=kind, bits=bits))
    error = (features - encoded.decode()).abs().amax((-2, -1))
    assert (error <= encoded.scale * 0.5 * (1 + 1e-5)).all()
    assert encoded.values.abs().max() <= encoded.codec.levels


@pytest.mark.parametrize("codec", [UNSIGNED, SIGNED, HALF, CodecSpec(bits=5, companding=0.5)])
def test_zeros_stay_exactly_zero(codec):
    features = relu_features(3, 4, 8, 8)
    features[0, 1] = 0  # an empty channel has no scale
    decoded = encode(features, codec).decode()
    assert torch.equal(decoded[features == 0], torch.zeros_like(decoded[features == 0]))
    assert decoded.isfinite().all()


def test_tiny_channels_survive():
    features = torch.full((1, 1, 2, 2), 1e-42)  # below the smallest normal float32
    assert encode(features, UNSIGNED).decode().max() <= 2e-42


def test_leading_dimensions_are_free():
    features = relu_features(2, 3, 4, 5, 6)
    encoded = encode(features, UNSIGNED)
    assert encoded.scale.shape == (2, 3, 4)
    assert torch.equal(encoded.decode()[1, 2], encode(features[1, 2], UNSIGNED).decode())


def test_float16_saturates_and_counts():
    features = torch.tensor([[[[1e6, -1e6, 2.0]]]])
    encoded = encode(features, HALF)
    assert encoded.values.flatten().tolist() == [65504, -65504, 2]
    assert measure(features, encoded)[0].saturated == 2


def test_decode_to_half():
    assert encode(relu_features(1, 2, 4, 4), UNSIGNED).decode(torch.float16).dtype == torch.float16


def test_half_precision_features_are_accepted():
    features = relu_features(1, 2, 8, 8)
    assert encode(features.bfloat16(), UNSIGNED).decode() == pytest.approx(features, abs=0.03)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("codec", [UNSIGNED, SIGNED, HALF])
def test_values_that_are_not_finite_are_refused(codec, bad):
    features = relu_features(2, 3, 4, 4)
    features[1, 2, 0, 0] = bad
    with pytest.raises(TeacherError) as caught:
        encode(features, codec, layer="head", tokens=("aaa", "bbb"))
    assert "not finite (layer head, token bbb, channel 2)" in str(caught.value)


def test_negative_value_in_an_unsigned_layer_names_the_cure():
    features = relu_features(2, 3, 4, 4)
    features[0, 1, 0, 0] = -0.5
    with pytest.raises(ConfigError) as caught:
        encode(features, UNSIGNED, layer="backbone0", tokens=("aaa", "bbb"))
    message = str(caught.value)
    assert "(layer backbone0, token aaa, channel 1); got -0.5" in message
    assert "Set this layer's codec kind to signed" in message


def uneven_features(seed: int = 0) -> torch.Tensor:
    """Channels of very different sizes, one of them empty, and long tails."""
    features = relu_features(2, 32, 24, 24, seed=seed) ** 2
    features *= torch.logspace(-2, 1, 32)[:, None, None]
    features[:, 5] = 0
    return features


def test_a_shared_step_by_hand():
    # 1000 values: signal 900 * 1 + 100 * 4 = 1300; 20 dB below it is 13 = 1000 s^2 / 12, so s = sqrt(0.156).
    features = torch.ones(2, 20, 25)
    features[1, :4] = 2
    codec = CodecSpec(target_sqnr_db=20, min_sqnr_db=10)
    scale = encode(features, codec).scale
    assert scale.tolist() == pytest.approx([math.sqrt(0.156)] * 2)
    assert encode(features, codec).values.unique().tolist() == [3, 5]


@pytest.mark.parametrize("kind", ["unsigned", "signed"])
@pytest.mark.parametrize("target", [14, 20, 26, 32])
def test_the_target_is_met(kind, target):
    features = uneven_features()
    features = features if kind == "unsigned" else features * torch.randn(features.shape).sign()
    codec = CodecSpec(kind=kind, target_sqnr_db=target, min_sqnr_db=10)
    encoded = encode(features, codec)
    for distortion in measure(features, encoded):
        assert distortion.sqnr_db > target - 0.3
    assert torch.equal(encoded.decode()[features == 0], features[features == 0])
    assert encoded.values.abs().max() <= codec.levels


@pytest.mark.parametrize("target", [20, 26, 32, 38])
def test_the_target_is_hardly_exceeded(target):
    """Values below half a step lose less than the s^2 / 12 that is counted for them; here they are few."""
    features = relu_features(2, 16, 32, 32)
    for distortion in measure(features, encode(features, CodecSpec(target_sqnr_db=target, min_sqnr_db=10))):
        assert distortion.sqnr_db == pytest.approx(target, abs=0.3)


def test_the_shared_step_is_the_root_that_bisection_finds():
    """Independent of the closed form: sum of n_c max(s, peak_c / levels)^2 / 12 is the noise that is allowed."""
    values = uneven_features()
    peak, counts = values.amax((-2, -1)), (values > 0).sum((-2, -1))
    for levels, target in ((255, 40.0), (31, 25.0), (15, 20.0)):
        part = values / peak.clamp_min(1e-30)[..., None, None]
        found = shared_step(part, peak, levels, target)
        for row in range(2):
            low, high = 0.0, 10.0
            for _ in range(60):
                middle = (low + high) / 2
                noise = (counts[row] * (peak[row] / levels).clamp_min(middle) ** 2).sum() / 12
                enough = noise > values[row].square().sum() / 10 ** (target / 10)
                low, high = (low, middle) if enough else (middle, high)
            assert found[row].item() == pytest.approx(low, rel=1e-4, abs=1e-9)


def test_a_target_that_the_levels_cannot_reach_leaves_each_channel_its_own_step():
    features = uneven_features()
    target = encode(features, CodecSpec(bits=4, target_sqnr_db=60))
    own = encode(features, CodecSpec(bits=4))
    assert torch.equal(target.values, own.values)
    assert torch.equal(target.scale, own.scale)


def test_a_shared_step_costs_fewer_bits_than_one_a_channel_at_the_same_ratio():
    features = uneven_features()
    own = encode(features, CodecSpec(bits=6))
    ratio = sum(measure(features, own), start=Distortion()).sqnr_db
    shared = encode(features, CodecSpec(target_sqnr_db=ratio, min_sqnr_db=10))
    assert sum(measure(features, shared), start=Distortion()).sqnr_db >= ratio - 0.1
    assert entropy(shared.values) < 0.9 * entropy(own.values)


def entropy(codes: torch.Tensor) -> float:
    """Bits a value."""
    share = codes.flatten().bincount().double() / codes.numel()
    return -(share * share.clamp_min(1e-300).log2()).sum().item()


def test_a_target_for_huge_values_does_not_overflow():
    features = relu_features(1, 3, 8, 8) * 1e25
    (distortion,) = measure(features, encode(features, CodecSpec(target_sqnr_db=34)))
    assert distortion.sqnr_db == pytest.approx(34, abs=0.5)


def test_an_empty_sample_has_a_step_of_nothing():
    encoded = encode(torch.zeros(2, 3, 4, 4), CodecSpec(target_sqnr_db=40))
    assert encoded.decode().abs().max() == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "float16"}, "got codec kind float16"),
        ({"companding": 0.5}, "companding 0.5; expected unsigned or signed, without companding"),
        ({"target_sqnr_db": 25}, "got target_sqnr_db 25; expected at least min_sqnr_db 30"),
    ],
)
def test_targets_that_make_no_sense(changes, words):
    with pytest.raises(ConfigError, match=words):
        CodecSpec(**{"target_sqnr_db": 38, **changes})


def test_to_keeps_the_codec():
    encoded = encode(relu_features(1, 2, 4, 4), UNSIGNED).to("cpu")
    assert encoded.codec == UNSIGNED


@pytest.mark.gpu
def test_the_same_codes_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    features = relu_features(2, 8, 32, 32)
    ours, theirs = encode(features, UNSIGNED), encode(features.cuda(), UNSIGNED).to("cpu")
    assert (ours.values.int() - theirs.values.int()).abs().max() <= 1
    assert torch.equal(ours.pin_memory().to("cuda").decode().cpu(), ours.decode())

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from cache.spec import CodecSpec
from cache.store.codec import Encoded, encode
from student.distill import fused as onepass
from student.distill.feature_stats import FeatureStats, feature_stats

CRITERIA = {
    "mse": np.square,
    "l1": np.abs,
    "smooth_l1": lambda d: np.where(np.abs(d) < 1, d**2 / 2, np.abs(d) - 0.5),
}


def reference(student: np.ndarray, teacher: np.ndarray, criterion: str, temperature: float) -> dict[str, np.ndarray]:
    """The moments by their definition, in float64."""
    error = CRITERIA[criterion](student - teacher)
    energy = np.abs(teacher).mean(axis=(2, 3)) / temperature
    share = np.exp(energy - energy.max(axis=1, keepdims=True))
    attention = share / share.sum(axis=1, keepdims=True) * teacher.shape[1]
    return {
        "error": error.sum(1),
        "weighted_error": (error * attention[:, :, None, None]).sum(1),
        "student_sum": student.sum(1),
        "teacher_sum": teacher.sum(1),
        "student_energy": np.abs(student).sum(1),
        "teacher_energy": np.abs(teacher).sum(1),
        "student_channels": student.sum((2, 3)),
        "teacher_channels": teacher.sum((2, 3)),
    }


def features(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check(found: FeatureStats, expected: dict[str, np.ndarray], rtol: float = 1e-5) -> None:
    for name, values in expected.items():
        np.testing.assert_allclose(
            getattr(found, name).double().detach().numpy(), values, rtol, atol=1e-5, err_msg=name
        )


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("block", [1, 40, 2**18])
def test_statistics_by_definition(criterion: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(onepass.BLOCK, "cpu", block)
    student, teacher = features(3, 7, 4, 5), 2 * features(3, 7, 4, 5, seed=1)
    found = feature_stats(student, teacher, criterion, 0.3)
    check(found, reference(student.double().numpy(), teacher.double().numpy(), criterion, 0.3))
    assert found.channels == 7


@pytest.mark.parametrize(
    "codec",
    [
        CodecSpec(),
        CodecSpec(kind="signed"),
        CodecSpec(kind="float16"),
        CodecSpec(bits=5, companding=0.5),
        CodecSpec(kind="signed", bits=6, companding=0.6),
    ],
    ids=lambda codec: f"{codec.kind}-{codec.bits}-{codec.companding}",
)
def test_statistics_of_stored_features_are_those_of_decoded_ones(codec: CodecSpec) -> None:
    student, teacher = features(2, 6, 5, 3), features(2, 6, 5, 3, seed=1)
    stored = encode(teacher.relu() if codec.kind == "unsigned" else teacher, codec)
    decoded = stored.decode().double().numpy()
    check(feature_stats(student, stored, "mse", 0.5), reference(student.double().numpy(), decoded, "mse", 0.5))


def test_scales_may_be_stored_as_float16() -> None:
    values = torch.arange(96, dtype=torch.uint8).view(1, 4, 4, 6)
    scale = torch.tensor([[0.5, 0.25, 0.125, 1.0]])
    stored = Encoded(values=values, scale=scale.half(), codec=CodecSpec())
    decoded = (values.double() * scale[..., None, None]).numpy()
    student = features(1, 4, 4, 6)
    check(feature_stats(student, stored), reference(student.double().numpy(), decoded, "mse", 0.5))


def test_attention_over_very_different_channels_does_not_overflow() -> None:
    teacher = torch.zeros(1, 6, 2, 2)
    teacher[0, 1], teacher[0, 4] = 3000.0, 2999.0
    student = teacher + 1
    found = feature_stats(student, teacher, "mse", 0.5)
    check(found, reference(student.double().numpy(), teacher.double().numpy(), "mse", 0.5))
    assert found.weighted_error.isfinite().all()


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("block", [1, 6, 2**18])
def test_gradients(criterion: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(onepass.BLOCK, "cpu", block)
    student = features(2, 3, 2, 3).double().requires_grad_()
    teacher = features(2, 3, 2, 3, seed=1).double().requires_grad_()

    def run(student: Tensor, teacher: Tensor) -> list[Tensor]:
        found = feature_stats(student, teacher, criterion)
        # The weighted error's attention takes no gradient, so the numerical check holds it still.
        return [found.error, found.student_sum, found.teacher_sum, found.student_channels, found.teacher_channels]

    assert torch.autograd.gradcheck(run, (student, teacher))
    frozen = teacher.detach()
    assert torch.autograd.gradcheck(lambda s: feature_stats(s, frozen, criterion).weighted_error, (student,))


def test_the_gradient_of_a_few_statistics_leaves_the_others_out() -> None:
    constant = "channels", "valid_mask", "student_energy", "teacher_energy"
    names = [name for name in FeatureStats.__dataclass_fields__ if name not in constant]
    for pair in itertools.combinations(names, 2):
        student, teacher = features(2, 3, 2, 3).requires_grad_(), features(2, 3, 2, 3, seed=1).requires_grad_()
        found = feature_stats(student, teacher)
        sum(getattr(found, name).square().sum() for name in pair).backward()
        plain_s, plain_t = student.detach().requires_grad_(), teacher.detach().requires_grad_()
        attention = torch.softmax(teacher.detach().abs().mean(dim=(2, 3)) / 0.5, dim=1) * 3
        error = (plain_s - plain_t).square()
        values = {
            "error": error.sum(1),
            "weighted_error": (error * attention[..., None, None]).sum(1),
            "student_sum": plain_s.sum(1),
            "teacher_sum": plain_t.sum(1),
            "student_channels": plain_s.sum((2, 3)),
            "teacher_channels": plain_t.sum((2, 3)),
        }
        sum(values[name].square().sum() for name in pair).backward()
        for ours, theirs in ((student, plain_s), (teacher, plain_t)):
            expected = torch.zeros_like(ours) if theirs.grad is None else theirs.grad
            torch.testing.assert_close(ours.grad, expected, rtol=1e-5, atol=1e-4)


def test_energies_take_no_gradient() -> None:
    found = feature_stats(features(1, 2, 3, 3).requires_grad_(), features(1, 2, 3, 3, seed=1))
    assert not found.student_energy.requires_grad
    assert not found.teacher_energy.requires_grad


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_students_are_summed_in_float32(dtype: torch.dtype) -> None:
    student, teacher = (1000 * features(2, 5, 4, 4)).to(dtype).requires_grad_(), features(2, 5, 4, 4, seed=1)
    found = feature_stats(student, teacher)
    check(found, reference(student.detach().double().numpy(), teacher.double().numpy(), "mse", 0.5), rtol=1e-4)
    assert found.error.dtype == torch.float32
    found.error.mean().backward()
    assert student.grad.dtype == dtype
    expected = 2 * (student.detach().float() - teacher) / found.error.numel()
    torch.testing.assert_close(student.grad.float(), expected, rtol=1e-2, atol=1e-6)


def test_any_memory_layout() -> None:
    student, teacher = features(2, 5, 4, 3), features(2, 5, 4, 3, seed=1)
    expected = reference(student.double().numpy(), teacher.double().numpy(), "mse", 0.5)
    channels_last = student.to(memory_format=torch.channels_last).requires_grad_()
    found = feature_stats(channels_last, teacher.transpose(2, 3).contiguous().transpose(2, 3))
    check(found, expected)
    found.error.sum().backward()
    torch.testing.assert_close(channels_last.grad, 2 * (student - teacher))

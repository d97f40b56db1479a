"""The terms on feature maps, unweighted: pure functions of moments and masks, each a scalar with a name.

Every function is zero, not NaN, where a region is empty.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from cache.store.codec import Encoded
from student.distill.attention import activation_map, spatial_attention
from student.distill.criteria import CRITERIA
from student.distill.feature_stats import Moments, counted_cells, decoded, full, only
from student.distill.term_configs import Criterion

Map = Float[Tensor, "B H W"]
Scalar = Float[Tensor, ""]
Region = Bool[Tensor, "B H W"]


def masked_sum(error: Map, weight: Map) -> Scalar:
    """Sum of error times weight over cells, a sample: a region's term of fgd (docs/objective.md, equation 6)."""
    return (error * weight).sum() / len(error)


def all_cells(moments: Moments) -> Scalar:
    """`all`: mean of the criterion over all elements."""
    return moments.error.sum() / (moments.cells.sum() * moments.channels)


def fitnet(moments: Moments) -> Scalar:
    """`fitnet`: half the squared distance, a sample (FitNets, equation 3)."""
    return moments.error.sum() / (2 * len(moments.error))


def channel_term(moments: Moments, criterion: Criterion) -> Scalar:
    """Distance of the channel means, summed over channels, a sample."""
    difference = (moments.student_channels - moments.teacher_channels) / moments.cells[:, None]
    return CRITERIA[criterion](difference).sum() / len(difference)


def spatial_term(moments: Moments, adapter: nn.Module, criterion: Criterion) -> Scalar:
    """Distance of the teacher's channel mean and the student's after a 3x3 convolution, summed over cells, a sample
    (DistillBEV's attention imitation; docs/objective.md, equation 8)."""
    student = adapter(moments.student_sum[:, None] / moments.channels)[:, 0]
    difference = only(student - moments.teacher_sum / moments.channels, moments.inside)
    return CRITERIA[criterion](difference).sum() / len(student)


def attention_transfer(
    student: Float[Tensor, "B _ H W"],
    teacher: Float[Tensor, "B _ H W"] | Encoded,
    p: float = 2.0,
    inside: Region | None = None,
) -> Scalar:
    """Mean squared difference of normalised activation maps (Zagoruyko and Komodakis 2017, equation 2 as in their
    code). Channels may differ.

    Args:
        inside: the cells that count; both maps are 0 in the others.
    """
    student = full(student)
    target = activation_map(decoded(teacher, student.dtype), p)
    return (activation_map(student, p) - target).square().sum() / counted_cells(student, inside).sum()


def attended_distance(moments: Moments, temperature: float) -> Scalar:
    """`linfengzhang`, feature term: mean over samples of sqrt(sum of (S - T)^2 A_spatial A_channel), the teacher's
    attentions (Zhang and Ma 2021; docs/objective.md, equation 12)."""
    attention = spatial_attention(moments.teacher_energy / moments.channels, temperature, moments.inside)
    squares = (moments.weighted_error * attention).sum(dim=(1, 2))
    # The root has no slope at 0; below the floor there is nothing left to learn.
    return squares.clamp(min=torch.finfo(squares.dtype).tiny).sqrt().mean()


def distance(student: Tensor, teacher: Tensor) -> Scalar:
    """Euclidean distance of two tensors of one shape, over the whole batch, as `linfengzhang` has it."""
    return torch.linalg.vector_norm(student - teacher)


def mean_within(error: Map, region: Region, channels: int = 1) -> Scalar:
    """Mean of the error over a region in each sample, then over the samples that have such cells (S2M2-SSD)."""
    cells = region.sum(dim=(1, 2))
    means = (error * region).sum(dim=(1, 2)) / (cells.clamp(min=1) * channels)
    return means.sum() / (cells > 0).sum().clamp(min=1)

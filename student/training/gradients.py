"""The gradients of the detection losses and of the teacher's terms on the detector, compared."""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from student.distill.objective import PREFIX

Losses = dict[str, Float[Tensor, ""]]


def compare_gradients(terms: Losses, parameters: Iterable[Tensor]) -> Losses:
    """Norms of both gradients, their ratio and their cosine; two more backward passes, whose graph is kept.

    A ratio far below 1 means that the teacher hardly moves the student, far above 1 that it alone does; a cosine below
    0 that they pull in opposite directions. Parameters that one of the two does not reach count as 0 there.

    Args:
        terms: a step's weighted losses by name, with terms of the objective among them.
        parameters: the detector's.

    Returns:
        `gradients/detection`, `gradients/distill`, `gradients/ratio` (distill / detection) and `gradients/cosine`.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    distill = [value for name, value in terms.items() if name.startswith(PREFIX)]
    detection = [value for name, value in terms.items() if not name.startswith(PREFIX)]
    ours, theirs = (_gradient(losses, trained) for losses in (detection, distill))
    norms = ours.norm(), theirs.norm()
    least = torch.finfo(ours.dtype).tiny
    return {
        "gradients/detection": norms[0],
        "gradients/distill": norms[1],
        "gradients/ratio": norms[1] / norms[0].clamp(min=least),
        "gradients/cosine": ours @ theirs / (norms[0] * norms[1]).clamp(min=least),
    }


def _gradient(losses: Sequence[Float[Tensor, ""]], parameters: Sequence[Tensor]) -> Float[Tensor, "_"]:
    """The gradient of a sum of losses on all parameters, as one vector in float32."""
    total = torch.stack(list(losses)).sum()
    if not total.requires_grad:
        return torch.cat([torch.zeros_like(parameter, dtype=torch.float32).flatten() for parameter in parameters])
    found = torch.autograd.grad(total, list(parameters), retain_graph=True, materialize_grads=True)
    return torch.cat([gradient.float().flatten() for gradient in found])

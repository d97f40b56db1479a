from copy import deepcopy

import pytest
import torch
from torch import nn

from cache.geometry.grid import BevGrid
from student.distill.adapters import FeatureLayer
from student.distill.pairs import LayerPair, PairConfig
from student.models.backbones import image_backbone
from student.models.bev_encoder import BevResNet
from student.training.activation_checkpoint import recompute_blocks


class Adapted(nn.Module):
    """A pair's adapter of three layers, upsampling 64 x 64 cells."""

    def __init__(self) -> None:
        super().__init__()
        grid = BevGrid(x_range_m=(-32, 32), y_range_m=(-32, 32), cell_m=(1, 1))
        layers = FeatureLayer(channels=3, grid=grid), FeatureLayer(channels=5, grid=grid.resized((128, 128)))
        adapter = {"kind": "upsample_3layer", "factor": 2}
        self.pair = LayerPair(PairConfig(student="s", teacher="t", student_adapter=adapter), *layers)

    def forward(self, maps: torch.Tensor) -> list[torch.Tensor]:
        return [self.pair({"s": maps}, {"t": maps.new_zeros(len(maps), 5, 128, 128)}).adapted]


# Of the two chains one has BatchNorm and both draw at random which blocks to skip.
NETWORKS = {
    "bev encoder": (lambda: BevResNet(3, (8, 16), strides=(2, 2)), 4),
    "resnet18": (lambda: image_backbone("resnet18", 16), 8),
    "efficientnet_b0": (lambda: image_backbone("efficientnet_b0", 16), 9),
    "adapter": (Adapted, 1),
    "convnext_tiny": (lambda: image_backbone("convnext_tiny", 16), 8),
}


def step(network: nn.Module) -> tuple[float, list[torch.Tensor]]:
    """One pass and its gradients."""
    torch.manual_seed(1)
    loss = torch.stack([found.square().mean() for found in network(torch.randn(2, 3, 64, 64))]).sum()
    loss.backward()
    return loss.item(), [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("name", NETWORKS)
def test_recomputed_blocks_change_nothing(name: str) -> None:
    torch.manual_seed(0)
    build, blocks = NETWORKS[name]
    plain = build()
    recomputed = deepcopy(plain)
    recompute_blocks(recomputed)
    wrapped = [module for module in recomputed.modules() if type(module).__name__ == "CheckpointWrapper"]
    assert len(wrapped) == blocks
    # An average of the weights is made of a copy, which must not reach back to the original.
    copied = deepcopy(recomputed)
    loss, gradients = step(plain)
    for other in (recomputed, copied):
        assert other.state_dict().keys() == plain.state_dict().keys()
        other_loss, other_gradients = step(other)
        assert other_loss == loss
        for mine, theirs in zip(gradients, other_gradients, strict=True):
            torch.testing.assert_close(theirs, mine)
        for mine, theirs in zip(plain.buffers(), other.buffers(), strict=True):
            torch.testing.assert_close(theirs, mine)


def test_less_is_kept_for_the_gradients() -> None:
    def kept_bytes(network: nn.Module) -> int:
        sizes: list[int] = []
        keep = torch.autograd.graph.saved_tensors_hooks(
            lambda saved: sizes.append(saved.numel() * saved.element_size()) or saved, lambda saved: saved
        )
        with keep:
            network(torch.randn(1, 3, 64, 64))
        return sum(sizes)

    plain = image_backbone("resnet18", 16)
    recomputed = deepcopy(plain)
    recompute_blocks(recomputed)
    assert kept_bytes(recomputed) < 0.5 * kept_bytes(plain)

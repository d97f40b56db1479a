import math

import pytest
import torch

from student.models.depth_net import DepthNet, PlainDepthNet, depth_loss, entropy_of_known

BINS_M = (1.0, 4.0, 1.0)  # [1, 2), [2, 3), [3, 4)


def test_loss_is_the_binary_cross_entropy_of_the_right_bin() -> None:
    logits = torch.log(torch.tensor([0.2, 0.5, 0.3])).view(1, 1, 3, 1, 1)
    expected = -(math.log(0.8) + math.log(0.5) + math.log(0.7))
    assert depth_loss(logits, torch.full((1, 1, 1, 1), 2.9), BINS_M).item() == pytest.approx(expected, rel=1e-5)


def test_only_patches_with_a_depth_in_the_bins_count() -> None:
    logits = torch.log(torch.tensor([0.2, 0.5, 0.3])).view(1, 1, 3, 1, 1).expand(1, 1, 3, 1, 5)
    # No point, nearer than the bins, the first bin's near edge, the last bin, beyond the bins.
    depth_m = torch.tensor([0.0, 0.5, 1.0, 3.99, 4.0]).view(1, 1, 1, 5)
    first = -(math.log(0.2) + math.log(0.5) + math.log(0.7))
    last = -(math.log(0.8) + math.log(0.5) + math.log(0.3))
    assert depth_loss(logits, depth_m, BINS_M).item() == pytest.approx((first + last) / 2, rel=1e-5)


def test_unknown_patches_do_not_count_where_they_are_not_left_out() -> None:
    """As on a GPU, which is not waited for to count them; one of them holds no number."""
    logits = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    logits[0, 0, 1] = torch.nan
    logits.requires_grad_()
    target, known = torch.tensor([[-1, 0, 7, 1], [2, 2, 0, 1]]), torch.tensor([[False, True, False, True], [True] * 4])
    found = [
        (loss, *torch.autograd.grad(loss, logits))
        for loss in (
            entropy_of_known(logits, target, known),
            entropy_of_known(logits[known], target[known], known[known]),
        )
    ]
    torch.testing.assert_close(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1][known], found[1][1][known])
    assert found[0][0].isfinite() and not found[1][1][~known].any()


def test_loss_without_any_point_is_zero_and_has_a_gradient() -> None:
    logits = torch.randn(1, 2, 3, 2, 2, requires_grad=True)
    loss = depth_loss(logits, torch.zeros(1, 2, 2, 2), BINS_M)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None and not logits.grad.any()


def test_loss_stays_in_float32_under_autocast() -> None:
    logits, depth_m = torch.randn(1, 1, 3, 2, 2), torch.full((1, 1, 2, 2), 1.5)
    with torch.autocast("cpu", torch.bfloat16):
        inside = depth_loss(logits, depth_m, BINS_M)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, depth_loss(logits, depth_m, BINS_M))


@pytest.mark.parametrize("kind", [DepthNet, PlainDepthNet])
def test_gives_the_bins_then_the_context(kind: type[DepthNet] | type[PlainDepthNet]) -> None:
    net = kind(16, bins=5, context_channels=7)
    assert net(torch.randn(3, 16, 4, 6), torch.randn(3, 27)).shape == (3, 12, 4, 6)


def test_depth_and_context_depend_on_the_camera() -> None:
    torch.manual_seed(0)
    net = DepthNet(16, bins=5, context_channels=7).eval()
    x = torch.randn(1, 16, 4, 6).expand(2, -1, -1, -1)
    near, far = net(x, torch.stack([torch.zeros(27), torch.ones(27)]))
    assert (near[:5] != far[:5]).all()
    assert (near[5:] != far[5:]).all()


def test_a_plain_net_does_not_depend_on_it() -> None:
    net = PlainDepthNet(16, bins=5, context_channels=7)
    x = torch.randn(1, 16, 4, 6)
    assert torch.equal(net(x, torch.zeros(1, 27)), net(x, torch.ones(1, 27)))


def test_tensors_are_those_of_the_public_depth_net() -> None:
    """Names and shapes of BEVDet's DepthNet (256 channels, 59 bins, 64 of context, no deformable convolution)."""
    shapes = {name: tuple(value.shape) for name, value in DepthNet(256, 59, 64).state_dict().items()}
    public = {
        "reduce_conv.0.weight": (256, 256, 3, 3),
        "reduce_conv.1.running_mean": (256,),
        "context_conv.weight": (64, 256, 1, 1),
        "bn.weight": (27,),
        "depth_mlp.fc1.weight": (256, 27),
        "depth_mlp.fc2.bias": (256,),
        "context_se.conv_reduce.weight": (256, 256, 1, 1),
        "depth_se.conv_expand.bias": (256,),
        "depth_conv.0.conv1.weight": (256, 256, 3, 3),
        "depth_conv.2.bn2.bias": (256,),
        "depth_conv.3.aspp1.atrous_conv.weight": (256, 256, 1, 1),
        "depth_conv.3.aspp4.bn.weight": (256,),
        "depth_conv.3.global_avg_pool.1.weight": (256, 256, 1, 1),
        "depth_conv.3.conv1.weight": (256, 1280, 1, 1),
        "depth_conv.3.bn1.weight": (256,),
        "depth_conv.4.weight": (59, 256, 1, 1),
    }
    assert public.items() <= shapes.items()


def test_a_depth_that_is_no_number_makes_the_loss_none() -> None:
    """It is not an error of its own: the training names the step and its frames."""
    logits = torch.zeros(1, 1, 2, 1, 1)
    logits[0, 0, 0] = torch.nan
    assert depth_loss(logits, torch.full((1, 1, 1, 1), 1.5), (1.0, 3.0, 1.0)).isnan()

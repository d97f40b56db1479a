import torch

from student.distill.terms.non_local import NonLocal


def test_non_local_starts_as_the_identity() -> None:
    features = torch.randn(2, 4, 3, 5)
    assert torch.equal(NonLocal(4)(features), features)


def test_non_local_by_its_definition() -> None:
    block = NonLocal(4).eval()
    torch.nn.init.normal_(block.norm.weight)
    features = torch.randn(2, 4, 3, 5)
    theta, phi, g = (layer(features).flatten(2) for layer in (block.theta, block.phi, block.g))
    mixed = (theta.mT @ phi / 15) @ g.mT
    expected = features + block.norm(block.out(mixed.mT.reshape(2, 2, 3, 5)))
    torch.testing.assert_close(block(features), expected)


def test_non_local_of_a_single_channel() -> None:
    assert NonLocal(1)(torch.randn(2, 1, 3, 3)).shape == (2, 1, 3, 3)

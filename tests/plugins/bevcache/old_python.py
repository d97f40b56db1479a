"""Compute saved cases with the plug-in alone, under any Python: `python old_python.py PLUGINS CASE.pt ...`.

Nothing but torch, numpy and the plug-in's own dependencies is imported here.
"""

import sys

import torch


def run_case(case):
    """Terms and gradients of a case, as `make_case` in test_objective.py describes it."""
    from bevcache.objective import DistillObjective
    from bevcache.reader import Grid

    layers = {name: (channels, Grid(*grid)) for name, (channels, grid) in case["layers"].items()}
    objective = DistillObjective(case["config"], layers, Grid(*case["heatmap_grid"]), case["classes"], case["specs"])
    objective.load_state_dict(case["state"])
    objective.train(case["train"]).to(case["features"]["head"].dtype)
    features = {name: maps.clone().requires_grad_() for name, maps in case["features"].items()}
    terms = objective(features, case["logits"], case["teachers"], case["boxes"], case["labels"], case["epoch"])
    sum(terms.values()).backward()
    wanted = {**features, **dict(objective.named_parameters())}
    gradients = {name: tensor.grad for name, tensor in wanted.items() if tensor.grad is not None}
    return {name: value.detach() for name, value in terms.items()}, gradients


def require_equal(case, found):
    """Terms to 1e-5 of each, gradients to 1e-5 of the largest entry of each tensor."""
    terms, gradients = found
    assert sorted(terms) == sorted(case["terms"]), (sorted(terms), sorted(case["terms"]))
    for name, value in terms.items():
        expected = case["terms"][name]
        assert abs(value - expected) <= 1e-5 * abs(expected) + 1e-12, (name, float(value), float(expected))
    assert sorted(gradients) == sorted(case["gradients"]), (sorted(gradients), sorted(case["gradients"]))
    for name, gradient in gradients.items():
        expected = case["gradients"][name]
        difference = (gradient - expected).abs().max()
        assert difference <= 1e-5 * expected.abs().max() + 1e-12, (name, float(difference), float(expected.abs().max()))


if __name__ == "__main__":
    sys.path.insert(0, sys.argv[1])
    torch.set_num_threads(1)
    for path in sys.argv[2:]:
        saved = torch.load(path)
        require_equal(saved, run_case(saved))
    sys.stdout.write(f"{len(sys.argv[2:])} cases with Python {sys.version.split()[0]} and torch {torch.__version__}\n")

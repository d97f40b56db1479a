"""The schema of the distillation objective."""

from cache.strict import Strict


class DistillConfig(Strict):
    """Terms and weights."""

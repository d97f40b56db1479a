"""Names that the measurements and the tables made of them share."""

KINDS = ("no teacher", "store", "live teacher")
"""Trainings."""
PRECISIONS = ("32-true", "bf16-mixed")
CARDS_GIB = (8, 12, 24)
"""Memory of GPUs that a batch is to fit."""

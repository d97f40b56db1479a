"""Conversion of public checkpoints to student checkpoints."""

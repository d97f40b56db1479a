"""Strict configuration of students and their training."""

"""Samples of a student's training: images, boxes, depth, cached teachers."""

"""Dump a LiDAR teacher to a store: estimate, run, verify, repair."""

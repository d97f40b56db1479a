"""The demo: a made-up world, and the whole job on it."""

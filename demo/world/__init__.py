"""A made-up driving world in nuScenes' format, rendered by ray casting; `make.make_world` writes it."""

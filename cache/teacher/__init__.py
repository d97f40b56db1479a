"""LiDAR teachers: the protocol, mmdet3d detectors as teachers, their checkpoints and their training."""

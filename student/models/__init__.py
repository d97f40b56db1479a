"""Networks: image encoder, lift-splat, BEV encoder, centre head; detectors and their checkpoints."""

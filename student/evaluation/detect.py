"""Run a student on frames: its detections, one frame after the other."""

from collections.abc import Iterator

import torch

from cache.nuscenes.frames import Frames
from cache.nuscenes.loader import Loader
from student.config.student import StudentConfig
from student.data.dataset import StudentDataset
from student.models.decoding import Detections
from student.models.detectors import BevDetector


@torch.inference_mode()
def student_detections(
    detector: BevDetector, config: StudentConfig, frames: Frames
) -> Iterator[tuple[str, Detections]]:
    """Token and detections of each frame, on the GPU where there is one.

    Raises:
        DataError: a file of a frame cannot be read.
    """
    dataset = StudentDataset(frames, config, times=detector.times)
    loader = Loader(
        dataset,
        batch_size=config.training.batch_size,
        num_workers=config.data.workers,
        collate_fn=dataset.collate,
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    detector.to(device)
    for batch in loader:
        yield from zip(batch.tokens, detector.detect(detector(batch.to(device))), strict=True)

"""Where the time of a training's steps goes."""

import time
from collections import defaultdict

import torch

PARTS = ("data", "transfer", "forward", "objective", "backward", "optimiser")


class StepClock:
    """A stopwatch that is pressed at the end of each part of a step.

    A part gets all the time since the part before it ended, so that the parts add up to the step. On a GPU every press
    waits for the device: otherwise its work would count to whichever part waits for it first.

    steps: seconds by part, of each step that has ended.
    """

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._step: defaultdict[str, float] = defaultdict(float)
        self._pressed = time.perf_counter()

    def end(self, part: str) -> None:
        """A part of the step has ended."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        now = time.perf_counter()
        self._step[part] += now - self._pressed
        self._pressed = now

    def end_step(self) -> None:
        """The step has ended; the next part belongs to another one."""
        self.steps.append(dict(self._step))
        self._step.clear()

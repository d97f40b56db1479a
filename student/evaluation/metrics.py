"""The official nuScenes detection metrics, and remarks on errors with a known cause."""

import math
from dataclasses import dataclass

SWAPPED_SCALE_ERROR = 0.5
"""No detector's mean over its detected classes is that high; swapping width and length gives about 0.7."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """nuScenes' detection metrics: mAP and NDS in 0 .. 1 (higher is better), the five mean errors (lower is better).

    remarks: known mistakes that the errors point to.
    """

    mean_ap: float
    nds: float
    translation_error_m: float
    scale_error: float
    orientation_error_rad: float
    velocity_error_mps: float
    attribute_error: float
    class_ap: dict[str, float]
    remarks: tuple[str, ...] = ()


def remarks_on(scale_error: float, orientation_error_rad: float) -> tuple[str, ...]:
    """Known mistakes that an evaluation's mean errors point to.

    Args:
        scale_error, orientation_error_rad: means over the detected classes that have a heading.
    """
    turned = abs(orientation_error_rad - math.pi / 2) < 0.2
    if not (scale_error > SWAPPED_SCALE_ERROR and turned):
        return ()
    return (
        f"a scale error of {scale_error:.2f} with an orientation error of {orientation_error_rad:.2f} rad is the "
        "signature of boxes of mmdet3d < 1.0, which swap width and length and turn yaw by a quarter: where boxes come "
        "from your own code or from a file without a version, convert them (dx, dy = length, width and yaw = -yaw - "
        "pi/2); `dump-teacher` and `import-checkpoint` convert a checkpoint that names its mmdet3d version",
    )

"""What the official evaluation says of a detector."""

import math
from dataclasses import dataclass

from cache.visualization.tables import Table

SWAPPED_SCALE_ERROR = 0.5
"""No detector is that far off over the classes that it finds; swapping width and length leaves about 0.7."""


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """nuScenes' detection metrics: mAP and NDS in 0 .. 1 (higher is better), the five mean errors (lower is better).

    remarks: what the errors give away about a mistake; empty where they give away nothing.
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

    def table(self) -> Table:
        """mAP and NDS, the five errors, the average precision of each class."""
        rows = (
            ("mAP", f"{self.mean_ap:.4f}"),
            ("NDS", f"{self.nds:.4f}"),
            ("mATE (m)", f"{self.translation_error_m:.3f}"),
            ("mASE", f"{self.scale_error:.3f}"),
            ("mAOE (rad)", f"{self.orientation_error_rad:.3f}"),
            ("mAVE (m/s)", f"{self.velocity_error_mps:.3f}"),
            ("mAAE", f"{self.attribute_error:.3f}"),
            *((f"AP {name}", f"{precision:.3f}") for name, precision in self.class_ap.items()),
        )
        return Table(title="nuScenes detection", columns=("metric", "value"), rows=rows)


def remarks_on(scale_error: float, orientation_error_rad: float) -> tuple[str, ...]:
    """Remarks on an evaluation's mean errors: known mistakes that leave a signature in them.

    Args:
        scale_error, orientation_error_rad: means over the classes that were found and have a heading.
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

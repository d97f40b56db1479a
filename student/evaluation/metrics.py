"""The official nuScenes detection metrics, and remarks on errors with a known cause."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

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

    @property
    def errors(self) -> dict[str, float]:
        """The five mean errors by their usual names."""
        return {
            "mATE (m)": self.translation_error_m,
            "mASE": self.scale_error,
            "mAOE (rad)": self.orientation_error_rad,
            "mAVE (m/s)": self.velocity_error_mps,
            "mAAE": self.attribute_error,
        }

    @classmethod
    def from_summary(cls, summary: dict[str, Any]) -> "Metrics":
        """From the devkit's metrics_summary.json."""
        errors = summary["tp_errors"]
        return cls(
            mean_ap=summary["mean_ap"],
            nds=summary["nd_score"],
            translation_error_m=errors["trans_err"],
            scale_error=errors["scale_err"],
            orientation_error_rad=errors["orient_err"],
            velocity_error_mps=errors["vel_err"],
            attribute_error=errors["attr_err"],
            class_ap=summary["mean_dist_aps"],
            remarks=(*_remarks_on_nothing(summary), *remarks_on(*_mean_errors_of_detected(summary))),
        )


def _remarks_on_nothing(summary: dict[str, Any]) -> tuple[str, ...]:
    if summary["mean_ap"] > 0:
        return ()
    return (
        "mAP is 0: no detection is near a box of its class; early in a training all scores may be below "
        "detector.head.decoding.score_threshold",
    )


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


def _mean_errors_of_detected(summary: dict[str, Any]) -> tuple[float, float]:
    """Mean scale and orientation error over the detected classes that have a heading.

    The devkit's own means count 1 for each class without detections.
    """
    errors = [of for name, of in summary["label_tp_errors"].items() if summary["mean_dist_aps"][name] > 0]
    headed = [(of["scale_err"], of["orient_err"]) for of in errors if np.isfinite(of["orient_err"])]
    scale_error, orientation_error_rad = np.mean(headed, axis=0) if headed else (np.nan, np.nan)
    return float(scale_error), float(orientation_error_rad)

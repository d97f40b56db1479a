"""What the official evaluation says of a detector."""

from dataclasses import dataclass

from cache.visualization.tables import Table


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

"""The golden cases of the distillation losses: where they are, and their parameters in our words."""

from pathlib import Path
from typing import Any

GOLDENS = Path(__file__).parents[1] / "data" / "goldens"
CRITERIA = {"MSELoss": "mse", "L1Loss": "l1", "SmoothL1Loss": "smooth_l1", "mse": "mse"}


def term_settings(kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """A term of ours from the public code's parameters."""
    match kind:
        case "fgd":
            return {
                "feature_criterion": CRITERIA[given["feat_criterion"]["type"]],
                "fg_weight": given["fg_feat_loss_weights"][0],
                "bg_weight": given["bg_feat_loss_weights"][0],
                "channel_weight": given["channel_loss_weights"][0],
                "spatial_weight": given["spatial_loss_weights"][0],
                "fp_weight": given["fp_weight"],
                "non_empty_weight": given["non_empty_weight"],
                "affinity_weight": given["affinity_weights"][0],
                "affinity_mode": given["affinity_mode"][0],
                "spatial_attention": given["spatial_attentions"][0],
                "channel_attention": given["channel_mask"],
                "spatial_temperature": given["spatial_t"],
                "channel_temperature": given["channel_t"],
                "student_ratio": given["spatial_student_ratio"],
                "foreground_mask": given["foreground_mask"],
                "background_mask": given["background_mask"],
                "scale_mask": given["scale_mask"],
                "radius": given.get("custom_radius_func", "maxwh"),
                "false_positives": given["fp_as_foreground"][0],
                "threshold": given["output_threshold"],
                "gt_threshold": given["groundtruth_threshold"],
                "fp_scale": given["fp_scale_mode"],
            }
        case "all":
            return {"p": given["p"], "weight": given["feat_loss_weights"][0]}
        case "linfengzhang":
            return {
                "spatial_temperature": given["spatial_t"],
                "channel_temperature": given["channel_t"],
                "feature_weight": given["feat_loss_weights"][0],
                "channel_weight": given["channel_loss_weights"][0],
                "spatial_weight": given["spatial_loss_weights"][0],
            }
        case "s2m2_ssd_feature":
            weights = {f"{name}_weight": given[f"{name}_weights"][0] for name in ("tp", "fp", "fn")}
            return {"mode": given["mode"], "threshold": given["output_threshold"], **weights}
        case "s2m2_ssd_heatmap":
            names = ("tp_weight", "fpfn_weight")
            return {"threshold": given["output_threshold"], **{name: given[name] for name in names}}
        case "foreground_background":
            return {"fg_weight": given["fg_feat_loss_weights"][0], "bg_weight": given["bg_feat_loss_weights"][0]}
        case "non_local":
            return {"weight": given["nonlocal_weights"][0]}
        case "affinity":
            return {"weight": given["affinity_weights"][0]}
    return {"weight": given["heatmap_weight"]}

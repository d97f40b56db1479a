"""First weights of an image backbone: torchvision's own, or those of a file that `import-checkpoint` reads."""

from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import torch
import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum

from cache.errors import ConfigError, DataError
from cache.teacher.checkpoint import read_checkpoint
from cache.teacher.state_dict import abridged, match_state_dict, not_finite
from cache.terminal.console import print_note
from student.config.student import DetectorConfig
from student.converters.formats import format_of
from student.models.detectors import BevDetector

PUBLIC_VERSION = "IMAGENET1K_V1"
"""torchvision's weights with which the public BEVDet, BEVDepth and DistillBEV students begin."""

_BACKBONE = "image_encoder.backbone."


def load_image_weights(detector: BevDetector) -> str:
    """Load a detector's `image_weights` into its image backbone, all of it.

    Returns:
        Where the backbone's weights come from, in a few words.

    Raises:
        ConfigError: torchvision has no such weights or they cannot be fetched; the file cannot be read or does not fit.
    """
    config = detector.config
    chosen = config.image_weights
    if chosen is None:
        return "random weights (detector.image_weights)"
    if isinstance(chosen, Path):
        state, origin = _backbone_state(chosen, "Change detector.image_weights"), str(chosen)
    else:
        weights = _torchvision_weights(config)
        path = _fetched(weights)
        state, origin = (
            _backbone_state(path, "Remove the file, so that it is fetched again"),
            f"torchvision's {weights}",
        )
    backbone = detector.image_encoder.backbone
    if match := match_state_dict(state, backbone.state_dict()):
        raise ConfigError(
            "the weights do not fit the image backbone",
            where=chosen,
            got=match,
            expected=f"the weights of torchvision's {config.image_backbone}, alone or in a public student's checkpoint",
            cure="Change detector.image_backbone or detector.image_weights",
        )
    if bad := not_finite(state):
        raise ConfigError("the image backbone's weights are not finite", where=chosen, got=abridged(bad))
    backbone.load_state_dict(state, strict=False)  # old files lack BatchNorm's counters
    return origin


def _backbone_state(path: Path, cure: str) -> dict[str, Tensor]:
    """The image backbone's tensors of a file, under the backbone's names."""
    try:
        weights = read_checkpoint(path, DataError).weights
        known = format_of(weights, path)
    except DataError as error:
        raise ConfigError(
            "the image backbone's weights cannot be read",
            where=path,
            got=error.got if error.expected is None else f"{error.what}: {error.got}",
            expected="torchvision's state dict of the network, or a public student's checkpoint",
            cure=cure,
        ) from error
    names = {name: rule(name) or "" for name in weights if (rule := known.rule(name)) is not None}
    return {ours.removeprefix(_BACKBONE): weights[name] for name, ours in names.items() if ours.startswith(_BACKBONE)}


def _torchvision_weights(config: DetectorConfig) -> WeightsEnum:
    versions = torchvision.models.get_model_weights(config.image_backbone)
    _, _, version = str(config.image_weights).partition(":")
    if (version or PUBLIC_VERSION) not in versions.__members__:
        raise ConfigError(
            f"torchvision has no such weights of {config.image_backbone}",
            where="detector.image_weights",
            got=config.image_weights if version else f"torchvision, which is {PUBLIC_VERSION}",
            expected=f"one of {', '.join(f'torchvision:{name}' for name in versions.__members__)}",
            cure="Change detector.image_weights or detector.image_backbone",
        )
    return versions[version or PUBLIC_VERSION]


def _fetched(weights: WeightsEnum) -> Path:
    """The file of torchvision's weights in torch.hub's cache, fetched where it is not there yet."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / Path(urlsplit(weights.url).path).name
    if path.exists():
        return path
    print_note(f"fetching torchvision's {weights} into {folder}")
    digest = torch.hub.HASH_REGEX.search(path.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(weights.url, str(path), digest[1] if digest else None, progress=False)
    except (
        OSError,
        HTTPException,
        RuntimeError,
    ) as error:  # RuntimeError: the bytes are others than the file's name says
        raise ConfigError(
            "torchvision's weights of the image backbone cannot be fetched",
            where="detector.image_weights",
            got=error,
            expected=path,
            cure=f"Fetch {path.name} where there is a network, from {weights.url}, and copy it to {folder}, "
            "or give detector.image_weights a file; null trains from random weights",
        ) from error
    return path

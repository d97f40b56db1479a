"""What a person sees of a store."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from cache.reader import TeacherSample


def figure(sample: TeacherSample, view: int = 0) -> Figure:
    """A picture of what is cached for one token: the energy of each layer, the heatmap's maximum, the canvas mask.

    Energy is the mean over channels of the absolute value, cell by cell. Row 0 (lowest y) is drawn at the bottom.
    """
    maps = {}
    for name, encoded in sample.features.items():
        shape = " x ".join(map(str, encoded.values.shape[-3:]))
        maps[f"{name}: {shape}"] = encoded.decode()[view].abs().mean(dim=0)
    maps["heatmap, max over classes"] = sample.heatmap[view].amax(dim=0) / 255
    maps["canvas mask"] = sample.canvas_mask[view]
    picture, axes = plt.subplots(1, len(maps), figsize=(3.3 * len(maps), 3.6), layout="constrained")
    for axis, (title, values) in zip(axes, maps.items(), strict=True):
        axis.imshow(values.float().numpy(), origin="lower", cmap="magma")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    picture.suptitle(f"token {sample.token}", fontsize=9)
    return picture

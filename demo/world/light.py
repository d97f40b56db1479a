"""The light of a scene: sun, sky and haze."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from demo.world.shapes import Rgb


@dataclass(frozen=True, kw_only=True)
class Light:
    """Lambertian shading: colour = albedo * tint * (ambient + diffuse * max(0, normal . sun)).

    sun: unit vector towards the sun in the map frame.
    yard: colour of the ground beside the road.
    """

    sun: tuple[float, float, float]
    ambient: float
    diffuse: float
    tint: tuple[float, float, float]
    horizon: Rgb
    zenith: Rgb
    yard: Rgb

    def sun_in(self, ego_yaw_rad: float) -> Float[np.ndarray, "3"]:
        """The direction towards the sun in the ego frame."""
        x, y, z = self.sun
        cos, sin = np.cos(ego_yaw_rad), np.sin(ego_yaw_rad)
        return np.asarray([cos * x + sin * y, cos * y - sin * x, z])


_CLEAR = (0.5, 0.6, (1.0, 0.99, 0.95), (206, 222, 236), (92, 146, 214))
_OVERCAST = (0.72, 0.16, (0.96, 0.98, 1.0), (204, 208, 212), (164, 170, 178))
_EVENING = (0.5, 0.5, (1.0, 0.9, 0.78), (236, 190, 150), (98, 104, 150))
_YARDS: tuple[Rgb, ...] = ((104, 132, 78), (160, 148, 124), (132, 128, 124), (126, 142, 92))


def draw_light(rng: np.random.Generator) -> Light:
    """One of three kinds of weather, with the sun anywhere above 30 degrees."""
    ambient, diffuse, tint, horizon, zenith = (_CLEAR, _OVERCAST, _EVENING)[int(rng.integers(3))]
    azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(np.pi / 6, np.pi / 3)
    exposure = rng.uniform(0.88, 1.08)
    return Light(
        sun=(
            float(np.cos(azimuth) * np.cos(elevation)),
            float(np.sin(azimuth) * np.cos(elevation)),
            float(np.sin(elevation)),
        ),
        ambient=float(ambient * exposure),
        diffuse=float(diffuse * exposure),
        tint=tint,
        horizon=horizon,
        zenith=zenith,
        yard=_YARDS[int(rng.integers(len(_YARDS)))],
    )

"""Light and colours: Lambertian shading of objects, ground and sky. Colours are RGB planes, 0 .. 255, float32."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from demo.world.config import WorldConfig
from demo.world.ray_casting import Surface
from demo.world.road import Pose2d, Road, Values, ground_cover
from demo.world.shapes import Material, Rgb

_HAZE_M = 250.0
_COVERS: tuple[Rgb, ...] = ((88, 88, 92), (226, 226, 218), (158, 154, 148))
"""Asphalt, markings, pavement; the verge's colour is the scene's."""
_VERGES: tuple[Rgb, ...] = ((104, 132, 78), (160, 148, 124), (132, 128, 124), (126, 142, 92))
_CLEAR = (0.5, 0.6, (1.0, 0.99, 0.95), (206, 222, 236), (92, 146, 214))
_OVERCAST = (0.72, 0.16, (0.96, 0.98, 1.0), (204, 208, 212), (164, 170, 178))
_EVENING = (0.5, 0.5, (1.0, 0.9, 0.78), (236, 190, 150), (98, 104, 150))

Colours = Float[np.ndarray, "3 N"]
Direction = Float[np.ndarray, "3"]


@dataclass(frozen=True, kw_only=True)
class Light:
    """Lambertian shading: colour = albedo * tint * (ambient + diffuse * max(0, normal . sun)).

    sun: unit vector towards the sun in the map frame.
    verge: colour of the ground beside the road.
    """

    sun: tuple[float, float, float]
    ambient: float
    diffuse: float
    tint: tuple[float, float, float]
    horizon: Rgb
    zenith: Rgb
    verge: Rgb

    def sun_in_ego(self, ego_yaw_rad: float) -> Direction:
        """The direction towards the sun in the ego frame."""
        x, y, z = self.sun
        cos, sin = np.cos(ego_yaw_rad), np.sin(ego_yaw_rad)
        return np.asarray([cos * x + sin * y, cos * y - sin * x, z])


def sample_light(world: WorldConfig, rng: np.random.Generator) -> Light:
    """One of three kinds of weather, with the sun and the exposure in the world's ranges."""
    ambient, diffuse, tint, horizon, zenith = (_CLEAR, _OVERCAST, _EVENING)[int(rng.integers(3))]
    azimuth, elevation = rng.uniform(-np.pi, np.pi), rng.uniform(*np.radians(world.sun_elevation_deg))
    exposure = rng.uniform(*world.exposure)
    sun = np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)
    return Light(
        sun=(float(sun[0]), float(sun[1]), float(sun[2])),
        ambient=float(ambient * exposure),
        diffuse=float(diffuse * exposure),
        tint=tint,
        horizon=horizon,
        zenith=zenith,
        verge=_VERGES[int(rng.integers(len(_VERGES)))],
    )


def object_colours(
    materials: tuple[Material, ...], parts: Int[np.ndarray, "N"], surface: Surface, light: Light, sun: Direction
) -> Colours:
    """Colours of points on objects; `materials` has one for each part of the scene, `sun` is in the ego frame."""
    palette = _palette([material.base for material in materials] + [material.accent for material in materials])
    colour = parts.copy()
    patterns = np.asarray([material.pattern for material in materials])
    periods = np.asarray([material.period_m for material in materials], dtype=np.float32)
    for name, pattern in _PATTERNS.items():
        chosen = np.flatnonzero((patterns == name)[parts] & (surface.axis != 2))
        along, up, height = surface.along[chosen], surface.up[chosen], surface.height[chosen]
        period = periods[parts[chosen]]
        colour[chosen] += len(materials) * pattern(along / period, up / period, up / height)
    towards_sun = (sun.astype(np.float32)[:, None] * surface.normal).sum(axis=0)
    return _shade(palette.take(colour, axis=1), np.maximum(towards_sun, 0), light)


_PATTERNS = {
    "ribs": lambda along, up, rise: np.mod(along, 1) < 0.5,
    "bands": lambda along, up, rise: np.mod(up, 1) < 0.45,
    "diagonal": lambda along, up, rise: np.mod(along + up, 1) < 0.5,
    "windows": lambda along, up, rise: (np.mod(along + 0.42, 1) < 0.84) & (rise > 0.42) & (rise < 0.88),
}


def ground_colours(
    points: Float[np.ndarray, "3 N"], in_sun: Bool[np.ndarray, "N"], ego: Pose2d, road: Road, light: Light
) -> Colours:
    """Colours of points on the ground, in the ego frame, with a grain that fades with the distance."""
    s_m, d_m = road.from_vehicle(ego, points[0], points[1])
    albedo = _palette([*_COVERS, light.verge]).take(ground_cover(s_m, d_m), axis=1)
    cells = [np.floor(axis * 12).astype(np.int32) & 255 for axis in (s_m, d_m)]
    fade = 20 / (1 + np.float32(0.02) * (points[0] ** 2 + points[1] ** 2))
    return _shade(albedo + _grain()[cells[0], cells[1]] * fade, in_sun * np.float32(light.sun[2]), light)


def sky_colours(directions: Float[np.ndarray, "3 N"], light: Light) -> Colours:
    """A gradient from the horizon's colour to the zenith's."""
    share = np.clip(2 * directions[2] / np.hypot(directions[0], directions[1]), 0, 1)
    horizon, zenith = _palette([light.horizon]), _palette([light.zenith])
    return horizon + share * (zenith - horizon)


def add_haze(colours: Colours, distance_m: Values, light: Light) -> Colours:
    """Blend colours into the horizon's by distance (Koschmieder's law)."""
    horizon = _palette([light.horizon])
    return horizon + np.exp(distance_m * np.float32(-1 / _HAZE_M)) * (colours - horizon)


def _shade(albedo: Colours, towards_sun: Values, light: Light) -> Colours:
    strength = np.float32(light.ambient) + np.float32(light.diffuse) * towards_sun
    return albedo * strength * np.asarray(light.tint, dtype=np.float32)[:, None]


def _palette(colours: list[Rgb]) -> Float[np.ndarray, "3 K"]:
    return np.ascontiguousarray(np.asarray(colours, dtype=np.float32).T)


@lru_cache(maxsize=1)
def _grain() -> Float[np.ndarray, "256 256"]:
    return np.random.default_rng(0).uniform(-1, 1, (256, 256)).astype(np.float32)

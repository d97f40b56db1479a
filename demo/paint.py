"""Colours: materials and ground under the light of a scene. All colours are RGB, 0 .. 255, as float32 rows."""

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from demo.light import Light
from demo.rays import Surface
from demo.road import Pose2d, Road, cover
from demo.shapes import Material, Rgb

_HAZE_M = 250.0
_COVERS: tuple[Rgb, ...] = ((88, 88, 92), (226, 226, 218), (158, 154, 148))
"""Asphalt, markings, pavement; the yard's colour is the scene's."""

Colours = Float[np.ndarray, "N 3"]
Values = Float[np.ndarray, "N"]


def object_colours(
    materials: tuple[Material, ...],
    parts: Int[np.ndarray, "N"],
    surface: Surface,
    light: Light,
    sun: Float[np.ndarray, "3"],
) -> Colours:
    """Points on objects; `materials` are those of all parts, `sun` is in the ego frame."""
    base = np.asarray([m.base for m in materials], dtype=np.float32)
    accent = np.asarray([m.accent for m in materials], dtype=np.float32)
    accented = np.zeros(len(parts), dtype=bool)
    period = np.asarray([m.period_m for m in materials], dtype=np.float32)[parts]
    names = np.asarray([m.pattern for m in materials])[parts]
    for name, pattern in _PATTERNS.items():
        chosen = (names == name) & (surface.axis != 2)
        along, up, height = surface.along[chosen], surface.up[chosen], surface.height[chosen]
        accented[chosen] = pattern(along / period[chosen], up / period[chosen], up / height)
    albedo = np.where(accented[:, None], accent[parts], base[parts])
    towards = (sun[:, None].astype(np.float32) * surface.normal).sum(axis=0)
    return _lit(albedo, np.maximum(towards, 0), light)


_PATTERNS = {
    "ribs": lambda along, up, rise: np.mod(along, 1) < 0.5,
    "bands": lambda along, up, rise: np.mod(up, 1) < 0.45,
    "diagonal": lambda along, up, rise: np.mod(along + up, 1) < 0.5,
    "windows": lambda along, up, rise: (np.mod(along + 0.42, 1) < 0.84) & (rise > 0.42) & (rise < 0.88),
}


def ground_colours(
    points: Float[np.ndarray, "3 N"], in_sun: Bool[np.ndarray, "N"], ego: Pose2d, road: Road, light: Light
) -> Colours:
    """Points on the ground, given in the ego frame; its grain fades with the distance."""
    s_m, d_m = road.from_vehicle(ego, points[0], points[1])
    albedo = np.asarray([*_COVERS, light.yard], dtype=np.float32)[cover(s_m, d_m)]
    cells = [np.floor(axis * 12).astype(np.int32) & 255 for axis in (s_m, d_m)]
    fade = 20 / (1 + 0.02 * (points[0] ** 2 + points[1] ** 2))
    grain = _grain()[cells[0], cells[1]] * fade
    return _lit(albedo + grain[:, None], in_sun * np.float32(light.sun[2]), light)


def sky_colours(directions: Float[np.ndarray, "3 N"], light: Light) -> Colours:
    """From the horizon's colour to the zenith's."""
    rise = directions[2] / np.hypot(directions[0], directions[1])
    share = np.clip(2 * rise, 0, 1)[:, None]
    horizon, zenith = np.asarray(light.horizon, dtype=np.float32), np.asarray(light.zenith, dtype=np.float32)
    return horizon + share * (zenith - horizon)


def hazy(colours: Colours, distance_m: Values, light: Light) -> Colours:
    """Distance blends a colour into the horizon's (Koschmieder's law)."""
    share = np.exp(distance_m * np.float32(-1 / _HAZE_M))[:, None]
    horizon = np.asarray(light.horizon, dtype=np.float32)
    return horizon + share * (colours - horizon)


def _lit(albedo: Colours, towards_sun: Values, light: Light) -> Colours:
    strength = np.float32(light.ambient) + np.float32(light.diffuse) * towards_sun.astype(np.float32)
    return albedo * strength[:, None] * np.asarray(light.tint, dtype=np.float32)


@lru_cache(maxsize=1)
def _grain() -> Float[np.ndarray, "256 256"]:
    return np.random.default_rng(0).uniform(-1, 1, (256, 256)).astype(np.float32)

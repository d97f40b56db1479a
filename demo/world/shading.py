"""Colours: materials and ground under the light of a scene. All are RGB planes, 0 .. 255, in float32."""

from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int

from demo.world.light import Light
from demo.world.ray_casting import Surface
from demo.world.road import Pose2d, Road, cover
from demo.world.shapes import Material, Rgb

_HAZE_M = 250.0
_COVERS: tuple[Rgb, ...] = ((88, 88, 92), (226, 226, 218), (158, 154, 148))
"""Asphalt, markings, pavement; the yard's colour is the scene's."""

Colours = Float[np.ndarray, "3 N"]
Values = Float[np.ndarray, "N"]


def object_colours(
    materials: tuple[Material, ...],
    parts: Int[np.ndarray, "N"],
    surface: Surface,
    light: Light,
    sun: Float[np.ndarray, "3"],
) -> Colours:
    """Points on objects; `materials` are those of all parts, `sun` is in the ego frame."""
    palette = _palette([material.base for material in materials] + [material.accent for material in materials])
    colour = parts.copy()
    patterns = np.asarray([material.pattern for material in materials])
    periods = np.asarray([material.period_m for material in materials], dtype=np.float32)
    for name, pattern in _PATTERNS.items():
        chosen = np.flatnonzero((patterns == name)[parts] & (surface.axis != 2))
        along, up, height = surface.along[chosen], surface.up[chosen], surface.height[chosen]
        period = periods[parts[chosen]]
        colour[chosen] += len(materials) * pattern(along / period, up / period, up / height)
    towards = (sun.astype(np.float32)[:, None] * surface.normal).sum(axis=0)
    return _lit(palette.take(colour, axis=1), np.maximum(towards, 0), light)


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
    albedo = _palette([*_COVERS, light.yard]).take(cover(s_m, d_m), axis=1)
    cells = [np.floor(axis * 12).astype(np.int32) & 255 for axis in (s_m, d_m)]
    fade = 20 / (1 + np.float32(0.02) * (points[0] ** 2 + points[1] ** 2))
    return _lit(albedo + _grain()[cells[0], cells[1]] * fade, in_sun * np.float32(light.sun[2]), light)


def sky_colours(directions: Float[np.ndarray, "3 N"], light: Light) -> Colours:
    """From the horizon's colour to the zenith's."""
    share = np.clip(2 * directions[2] / np.hypot(directions[0], directions[1]), 0, 1)
    horizon, zenith = _palette([light.horizon]), _palette([light.zenith])
    return horizon + share * (zenith - horizon)


def hazy(colours: Colours, distance_m: Values, light: Light) -> Colours:
    """Distance blends a colour into the horizon's (Koschmieder's law)."""
    horizon = _palette([light.horizon])
    return horizon + np.exp(distance_m * np.float32(-1 / _HAZE_M)) * (colours - horizon)


def _lit(albedo: Colours, towards_sun: Values, light: Light) -> Colours:
    strength = np.float32(light.ambient) + np.float32(light.diffuse) * towards_sun
    return albedo * strength * np.asarray(light.tint, dtype=np.float32)[:, None]


def _palette(colours: list[Rgb]) -> Float[np.ndarray, "3 K"]:
    return np.ascontiguousarray(np.asarray(colours, dtype=np.float32).T)


@lru_cache(maxsize=1)
def _grain() -> Float[np.ndarray, "256 256"]:
    return np.random.default_rng(0).uniform(-1, 1, (256, 256)).astype(np.float32)

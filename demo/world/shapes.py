"""Shapes of objects: axis-aligned boxes in the unit box of the object, each with a material.

x runs from -0.5 (rear) to 0.5 (front), y from -0.5 (right) to 0.5 (left), z from 0 (ground) to 1. The parts of a shape
together touch every face of the unit box, so that annotated boxes are tight.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

Rgb = tuple[int, int, int]
Span = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Material:
    """Appearance of a part to cameras and LiDAR.

    accent: the pattern's second colour, on the sides only.
    period_m: of the pattern.
    reflectivity: share of the LiDAR's light that is returned at normal incidence.
    """

    base: Rgb
    accent: Rgb = (0, 0, 0)
    pattern: Literal["plain", "ribs", "bands", "diagonal", "windows"] = "plain"
    period_m: float = 1.0
    reflectivity: float = 0.3


@dataclass(frozen=True)
class Part:
    """A box within the unit box of an object."""

    x: Span
    y: Span
    z: Span
    material: Material


Shape = tuple[Part, ...]
Build = Callable[[np.random.Generator], Shape]

_GLASS: Rgb = (38, 50, 64)
_RUBBER = Material(base=(30, 30, 32), reflectivity=0.06)
_STEEL = Material(base=(120, 122, 126), reflectivity=0.5)
_HEADLIGHT = Material(base=(250, 246, 220), reflectivity=0.9)
_TAILLIGHT = Material(base=(215, 16, 20), reflectivity=0.9)
_SKIN = Material(base=(214, 168, 138))
_CAR_PAINTS: tuple[Rgb, ...] = ((178, 26, 34), (28, 66, 150), (190, 194, 198), (60, 62, 66), (50, 110, 78))
_CAB_PAINTS: tuple[Rgb, ...] = ((196, 62, 30), (44, 84, 164), (70, 130, 70))
_BUS_PAINTS: tuple[Rgb, ...] = ((0, 128, 138), (20, 150, 110))
_RUST_PAINTS: tuple[Rgb, ...] = ((146, 76, 46), (120, 70, 58))
_CLOTHES: tuple[Rgb, ...] = ((200, 40, 50), (60, 90, 190), (120, 60, 140), (235, 235, 235), (70, 120, 60))
_WALL_PAINTS: tuple[Rgb, ...] = ((168, 150, 132), (140, 140, 146), (182, 172, 150))
_CYCLE_CLOTHES: tuple[Rgb, ...] = ((190, 235, 30), (240, 225, 40))


def _pick(colours: tuple[Rgb, ...], rng: np.random.Generator) -> Rgb:
    return colours[int(rng.integers(len(colours)))]


def _part(x: Span, half_width: float, z: Span, material: Material) -> Part:
    return Part(x, (-half_width, half_width), z, material)


def _lights(front_z: Span, rear_z: Span) -> Shape:
    return _part((0.495, 0.5), 0.44, front_z, _HEADLIGHT), _part((-0.5, -0.495), 0.44, rear_z, _TAILLIGHT)


def _axles(*centres: float, length: float, top: float) -> Shape:
    return tuple(_part((x - length / 2, x + length / 2), 0.485, (0.0, top), _RUBBER) for x in centres)


def car(rng: np.random.Generator) -> Shape:
    """A body, a cabin with windows, two axles."""
    paint = _pick(_CAR_PAINTS, rng)
    body = Material(base=paint, reflectivity=0.35)
    cabin = Material(base=paint, accent=_GLASS, pattern="windows", period_m=1.2, reflectivity=0.15)
    return (
        _part((-0.495, 0.495), 0.5, (0.16, 0.57), body),
        _part((-0.38, 0.22), 0.45, (0.57, 1.0), cabin),
        *_axles(-0.3, 0.31, length=0.15, top=0.38),
        *_lights((0.32, 0.46), (0.38, 0.52)),
    )


def truck(rng: np.random.Generator) -> Shape:
    """A coloured cab before a white, ribbed cargo box."""
    paint = _pick(_CAB_PAINTS, rng)
    cab = Material(base=paint, accent=_GLASS, pattern="windows", period_m=3.0, reflectivity=0.35)
    cargo = Material(base=(236, 236, 232), accent=(196, 198, 200), pattern="ribs", period_m=0.5, reflectivity=0.6)
    return (
        _part((0.26, 0.495), 0.47, (0.12, 0.8), cab),
        _part((-0.495, 0.23), 0.5, (0.28, 1.0), cargo),
        _part((-0.45, 0.26), 0.2, (0.16, 0.28), _STEEL),
        *_axles(-0.32, 0.36, length=0.13, top=0.27),
        *_lights((0.16, 0.26), (0.28, 0.34)),
    )


def bus(rng: np.random.Generator) -> Shape:
    """One long body with a row of windows."""
    skin = Material(base=_pick(_BUS_PAINTS, rng), accent=_GLASS, pattern="windows", period_m=1.4, reflectivity=0.4)
    return (
        _part((-0.495, 0.495), 0.5, (0.1, 1.0), skin),
        *_axles(-0.28, 0.3, length=0.09, top=0.26),
        *_lights((0.14, 0.24), (0.14, 0.28)),
    )


def trailer(rng: np.random.Generator) -> Shape:
    """A rusty, corrugated container on a drawbar, without a cab."""
    red, green, blue = rust = _pick(_RUST_PAINTS, rng)
    ribs = Material(base=rust, accent=(red // 2, green // 2, blue // 2), pattern="ribs", period_m=0.7)
    return (
        _part((-0.495, 0.4), 0.5, (0.3, 1.0), ribs),
        _part((0.4, 0.5), 0.1, (0.2, 0.3), _STEEL),
        *_axles(-0.36, -0.24, length=0.08, top=0.27),
        _part((-0.5, -0.495), 0.44, (0.3, 0.36), _TAILLIGHT),
    )


def construction_vehicle(rng: np.random.Generator) -> Shape:
    """A yellow excavator: tracks, engine, cab, boom and bucket."""
    yellow: Rgb = (250, 196, int(rng.integers(0, 20)))
    paint = Material(base=yellow, accent=(24, 24, 24), pattern="diagonal", period_m=1.2, reflectivity=0.45)
    arm = Material(base=yellow, reflectivity=0.45)
    cab = Material(base=yellow, accent=_GLASS, pattern="windows", period_m=2.0, reflectivity=0.2)
    return (
        _part((-0.42, 0.22), 0.5, (0.0, 0.26), _RUBBER),
        _part((-0.5, 0.0), 0.44, (0.3, 0.62), paint),
        Part((0.0, 0.2), (0.04, 0.44), (0.3, 0.88), cab),
        Part((-0.1, 0.46), (-0.22, 0.0), (0.86, 1.0), arm),
        Part((0.38, 0.46), (-0.2, -0.02), (0.3, 0.86), arm),
        Part((0.34, 0.5), (-0.36, 0.14), (0.06, 0.32), _STEEL),
    )


def barrier(rng: np.random.Generator) -> Shape:
    """Red and white boards across two feet; as in nuScenes, its width is its long side."""
    red: Rgb = (214, int(rng.integers(18, 36)), 36)
    boards = Material(base=(244, 244, 240), accent=red, pattern="diagonal", period_m=0.7, reflectivity=0.8)
    return (
        _part((-0.18, 0.18), 0.5, (0.3, 1.0), boards),
        Part((-0.5, 0.5), (-0.46, -0.34), (0.0, 0.3), _STEEL),
        Part((-0.5, 0.5), (0.34, 0.46), (0.0, 0.3), _STEEL),
    )


def traffic_cone(rng: np.random.Generator) -> Shape:
    """A base plate and four tiers, orange and white."""
    orange = Material(base=(255, int(rng.integers(92, 112)), 10), reflectivity=0.5)
    white = Material(base=(250, 250, 250), reflectivity=0.95)
    tiers = ((0.36, 0.06, 0.32, orange), (0.27, 0.32, 0.56, white), (0.19, 0.56, 0.8, orange), (0.11, 0.8, 1.0, white))
    return (
        _part((-0.5, 0.5), 0.5, (0.0, 0.06), orange),
        *(_part((-half, half), half, (low, high), material) for half, low, high, material in tiers),
    )


def pedestrian(rng: np.random.Generator) -> Shape:
    """Legs, torso with arms, head."""
    return (
        _part((-0.36, 0.36), 0.34, (0.0, 0.48), Material(base=(44, 48, 70), reflectivity=0.2)),
        _part((-0.5, 0.5), 0.5, (0.48, 0.84), Material(base=_pick(_CLOTHES, rng))),
        _part((-0.26, 0.28), 0.22, (0.84, 1.0), _SKIN),
    )


def bicycle(rng: np.random.Generator, *, rider: bool = True) -> Shape:
    """Two thin wheels and a frame, with a rider in signal colours."""
    top, bar = (0.4, (0.6, 0.66)) if rider else (0.68, (0.9, 1.0))
    frame = Material(base=(60, 200, 220), reflectivity=0.5)
    parts = (
        _part((0.12, 0.5), 0.07, (0.0, top), _RUBBER),
        _part((-0.5, -0.12), 0.07, (0.0, top), _RUBBER),
        _part((-0.3, 0.3), 0.05, (top * 0.75, top * 1.1), frame),
        _part((0.22, 0.28), 0.06, (top, bar[0]), frame),
        _part((0.2, 0.28), 0.5, bar, frame),
    )
    if not rider:
        return parts
    return (
        *parts,
        _part((-0.16, 0.0), 0.26, (0.3, 0.52), Material(base=(50, 50, 60), reflectivity=0.2)),
        _part((-0.18, 0.1), 0.42, (0.52, 0.84), Material(base=_pick(_CYCLE_CLOTHES, rng), reflectivity=0.6)),
        _part((-0.08, 0.1), 0.18, (0.84, 1.0), _SKIN),
    )


def motorcycle(rng: np.random.Generator, *, rider: bool = True) -> Shape:
    """Wide wheels and a heavy body, with a rider in black with a helmet."""
    scale = 0.62 if rider else 1.0
    body = Material(base=(150, int(rng.integers(0, 40)), 130), reflectivity=0.5)
    parts = (
        _part((0.18, 0.5), 0.16, (0.0, 0.62 * scale), _RUBBER),
        _part((-0.5, -0.18), 0.16, (0.0, 0.62 * scale), _RUBBER),
        _part((-0.42, 0.3), 0.28, (0.3 * scale, 0.84 * scale), body),
        _part((0.2, 0.3), 0.5, (0.84 * scale, 1.0 * scale), _STEEL),
    )
    if not rider:
        return parts
    return (
        *parts,
        _part((-0.24, 0.06), 0.44, (0.5, 0.83), Material(base=(34, 34, 40), reflectivity=0.1)),
        _part((-0.1, 0.1), 0.24, (0.83, 1.0), Material(base=(240, 60, 160), reflectivity=0.7)),
    )


def tree(rng: np.random.Generator) -> Shape:
    """Scenery: a trunk and a crown."""
    leaves = Material(base=(46, int(rng.integers(84, 116)), 44), reflectivity=0.4)
    return (
        _part((-0.07, 0.07), 0.07, (0.0, 0.4), Material(base=(92, 70, 52))),
        _part((-0.5, 0.5), 0.5, (0.38, 0.76), leaves),
        _part((-0.32, 0.32), 0.32, (0.76, 1.0), leaves),
    )


def building(rng: np.random.Generator) -> Shape:
    """Scenery: a block with rows of windows."""
    wall = _pick(_WALL_PAINTS, rng)
    walls = Material(base=wall, accent=(84, 92, 104), pattern="bands", period_m=3.2, reflectivity=0.35)
    return (_part((-0.5, 0.5), 0.5, (0.0, 1.0), walls),)

"""Rays against solids: the one geometry that cameras and the LiDAR both see.

Everything is in the ego frame (x forward, y left, z up, flat ground at z = 0). A ray is origin + depth * direction;
depth is in metres for the LiDAR, whose directions are unit vectors, and along the optical axis for cameras.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from demo.world.actors import Actor

Corners = Float[np.ndarray, "_ 3"]
Window = tuple[slice, slice | Int[np.ndarray, "_"]]
"""Rows and columns of a sensor's rays that can meet an object."""
ToWindow = Callable[[Corners], Window | None]
GROUND, SKY = -1, -2
_TINY = 1e-9


@dataclass(frozen=True, kw_only=True)
class Rays:
    """A sensor's rays in rows and columns, and which of them can meet what lies within some corners."""

    origin: Float[np.ndarray, "3"]
    directions: Float[np.ndarray, "3 H W"]
    window: ToWindow

    @cached_property
    def ground_depth(self) -> Float[np.ndarray, "H W"]:
        """Where each ray meets the ground, infinite for those that never do."""
        depth = np.full(self.directions.shape[1:], np.inf, dtype=self.directions.dtype)
        np.divide(-self.origin[2], self.directions[2], out=depth, where=self.directions[2] < -_TINY)
        return depth


@dataclass(frozen=True, kw_only=True)
class Solids:
    """The parts of all actors as oriented boxes.

    poses: x, y and yaw of each actor in the ego frame.
    low, high: opposite corners of each part in its actor's frame, whose origin is on the ground below its centre.
    owner: the actor of each part; the parts of an actor follow each other.
    """

    poses: Float[np.ndarray, "A 3"]
    low: Float[np.ndarray, "P 3"]
    high: Float[np.ndarray, "P 3"]
    owner: Int[np.ndarray, "P"]

    @classmethod
    def of(cls, actors: tuple[Actor, ...], poses: Float[np.ndarray, "A 3"]) -> "Solids":
        """The solids of actors that stand at these poses."""
        spans = [[(part.x, part.y, part.z) for part in actor.shape] for actor in actors]
        owner = np.repeat(np.arange(len(actors)), [len(parts) for parts in spans])
        unit = np.asarray([part for parts in spans for part in parts])
        metres = np.asarray([actor.solid_m for actor in actors])[owner][:, :, None] * unit
        return cls(poses=poses, low=metres[..., 0], high=metres[..., 1], owner=owner)

    @cached_property
    def first(self) -> Int[np.ndarray, "_"]:
        """Index of each actor's first part and, last, the number of parts."""
        return np.searchsorted(self.owner, np.arange(len(self.poses) + 1))

    def parts_of(self, actor: int) -> slice:
        """The parts of an actor."""
        return slice(int(self.first[actor]), int(self.first[actor + 1]))

    def corners(self, actor: int) -> Corners:
        """The corners of the hull of an actor's parts."""
        parts = self.parts_of(actor)
        low, high = self.low[parts].min(axis=0), self.high[parts].max(axis=0)
        pick = np.asarray([[i >> axis & 1 for axis in range(3)] for i in range(8)])
        x, y, yaw = self.poses[actor]
        return turned(np.where(pick, high, low).T, yaw).T + np.asarray([x, y, 0.0])


@dataclass(frozen=True, kw_only=True)
class Hits:
    """What each ray meets first.

    depth: infinite where it meets nothing.
    part: index into the solids' parts, GROUND or SKY.
    seen: rays that meet each actor.
    alone: rays that would if nothing stood before it.
    """

    depth: Float[np.ndarray, "H W"]
    part: Int[np.ndarray, "H W"]
    seen: Int[np.ndarray, "A"]
    alone: Int[np.ndarray, "A"]

    def points(self, rays: Rays, chosen: Int[np.ndarray, "N"]) -> Float[np.ndarray, "3 N"]:
        """Where some of the rays end; a ray's index is that in the flattened rows and columns."""
        directions = rays.directions.reshape(3, -1).take(chosen, axis=1)
        return rays.origin[:, None] + self.depth.ravel().take(chosen) * directions


def turned(vectors: Float[np.ndarray, "3 *n"], yaw_rad: float) -> Float[np.ndarray, "3 *n"]:
    """Vectors turned about z, without BLAS: its threads would make bytes depend on the machine's load."""
    cos, sin = vectors.dtype.type(np.cos(yaw_rad)), vectors.dtype.type(np.sin(yaw_rad))
    x, y, z = vectors
    return np.stack([cos * x - sin * y, sin * x + cos * y, z])


def trace(rays: Rays, solids: Solids) -> Hits:
    """The first hit of every ray, on solids or on the ground."""
    depth = rays.ground_depth.copy()
    part = np.where(np.isfinite(depth), GROUND, SKY).astype(np.int32)
    alone = np.zeros(len(solids.poses), dtype=np.int64)
    for actor, (x, y, yaw) in enumerate(solids.poses):
        window = rays.window(solids.corners(actor))
        if window is None:
            continue
        parts = solids.parts_of(actor)
        directions = turned(rays.directions[:, *window], -yaw)
        origin = turned(rays.origin - np.asarray([x, y, 0.0]), -yaw).astype(depth.dtype)
        shape = directions.shape[1:]
        hit, index = cast(origin[:, None], directions.reshape(3, -1), solids.low[parts], solids.high[parts])
        alone[actor] = np.isfinite(hit).sum()
        closer = hit.reshape(shape) < depth[window]
        depth[window] = np.where(closer, hit.reshape(shape), depth[window])
        part[window] = np.where(closer, index.reshape(shape) + parts.start, part[window])
    seen = np.bincount(solids.owner[part[part >= 0]], minlength=len(alone))
    return Hits(depth=depth, part=part, seen=seen, alone=alone)


def cast(
    origins: Float[np.ndarray, "3 #n"],
    directions: Float[np.ndarray, "3 #n"],
    low: Float[np.ndarray, "P 3"],
    high: Float[np.ndarray, "P 3"],
) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Depth of the first of some axis-aligned boxes, infinite where there is none, and its index.

    The slab method (Kay and Kajiya, Ray Tracing Complex Scenes, 1986): a ray is within the box while it is between
    all three pairs of planes.
    """
    kind = directions.dtype
    inverse = 1 / np.where(np.abs(directions) < _TINY, kind.type(_TINY), directions)
    count = np.broadcast_shapes(origins.shape, directions.shape)[1]
    depth, index = np.full(count, np.inf, dtype=kind), np.zeros(count, dtype=np.int32)
    for number, (lower, upper) in enumerate(zip(low.astype(kind), high.astype(kind), strict=True)):
        one, other = (lower[:, None] - origins) * inverse, (upper[:, None] - origins) * inverse
        enters, leaves = np.minimum(one, other).max(axis=0), np.maximum(one, other).min(axis=0)
        closer = (enters <= leaves) & (enters > 0) & (enters < depth)
        depth[closer], index[closer] = enters[closer], number
    return depth, index


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Where rays meet solids, N of them.

    along, up: metres along the face horizontally and above the part's lower edge.
    height: of the part, in metres.
    axis: of the face's normal, in its actor's frame.
    normal: in the ego frame.
    """

    along: Float[np.ndarray, "N"]
    up: Float[np.ndarray, "N"]
    height: Float[np.ndarray, "N"]
    axis: Int[np.ndarray, "N"]
    normal: Float[np.ndarray, "3 N"]


def surface(points: Float[np.ndarray, "3 N"], parts: Int[np.ndarray, "N"], solids: Solids) -> Surface:
    """The faces on which points of parts lie; the face is the one that a point is closest to."""
    kind, poses = points.dtype, solids.poses[solids.owner]
    table = [poses[:, :2], np.cos(poses[:, 2:]), np.sin(poses[:, 2:]), solids.low, solids.high]
    x, y, cos, sin, *walls = np.ascontiguousarray(np.concatenate(table, axis=1).T, dtype=kind).take(parts, axis=1)
    ahead, left = points[0] - x, points[1] - y
    local = (cos * ahead + sin * left, cos * left - sin * ahead, points[2])
    face = np.stack([np.abs(local[i % 3] - wall) for i, wall in enumerate(walls)]).argmin(axis=0)
    axis, sign = face % 3, np.where(face >= 3, 1, -1).astype(kind)
    flat = np.where(axis == 2, 0, sign)
    normal = np.stack(
        [np.where(axis == 0, cos, -sin) * flat, np.where(axis == 0, sin, cos) * flat, np.where(axis == 2, sign, 0)]
    )
    return Surface(
        along=np.where(axis == 0, local[1], local[0]),
        up=local[2] - walls[2],
        height=walls[5] - walls[2],
        axis=axis,
        normal=normal,
    )

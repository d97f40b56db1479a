"""Ray casting against oriented boxes and flat ground, shared by the cameras and the LiDAR.

Everything is in the ego frame (x forward, y left, z up, ground at z = 0). A ray is origin + depth * direction; depth is
metres along the ray for the LiDAR, whose directions are unit vectors, and along the optical axis for cameras.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int

from demo.world.actors import Actor

Corners = Float[np.ndarray, "_ 3"]
Window = tuple[slice, slice | Int[np.ndarray, "_"]]
"""Rows and columns of a sensor's rays that can hit an object."""
GROUND, SKY = -1, -2
_TINY = 1e-9


@dataclass(frozen=True, kw_only=True)
class Rays:
    """A sensor's rays in rows and columns; `window` maps an object's corners to the rays that can hit it."""

    origin: Float[np.ndarray, "3"]
    directions: Float[np.ndarray, "3 H W"]
    window: Callable[[Corners], Window | None]

    @cached_property
    def ground_depth(self) -> Float[np.ndarray, "H W"]:
        """Depth of the ground along each ray, infinite for rays that never hit it."""
        depth = np.full(self.directions.shape[1:], np.inf, dtype=self.directions.dtype)
        np.divide(-self.origin[2], self.directions[2], out=depth, where=self.directions[2] < -_TINY)
        return depth


@dataclass(frozen=True, kw_only=True)
class Solids:
    """The parts of all actors as oriented boxes.

    poses: x, y and yaw of each actor in the ego frame.
    low, high: opposite corners of each part in its actor's frame, whose origin is the centre of its footprint.
    owner: the actor of each part; the parts of an actor are consecutive.
    """

    poses: Float[np.ndarray, "A 3"]
    low: Float[np.ndarray, "P 3"]
    high: Float[np.ndarray, "P 3"]
    owner: Int[np.ndarray, "P"]

    @classmethod
    def of(cls, actors: tuple[Actor, ...], poses: Float[np.ndarray, "A 3"]) -> "Solids":
        """The solids of actors at these poses."""
        spans = [[(part.x, part.y, part.z) for part in actor.shape] for actor in actors]
        owner = np.repeat(np.arange(len(actors)), [len(parts) for parts in spans])
        unit = np.asarray([part for parts in spans for part in parts])
        metres = np.asarray([actor.solid_m for actor in actors])[owner][:, :, None] * unit
        return cls(poses=poses, low=metres[..., 0], high=metres[..., 1], owner=owner)

    @cached_property
    def _first_part(self) -> list[int]:
        return np.searchsorted(self.owner, np.arange(len(self.poses) + 1)).tolist()

    def parts_of(self, actor: int) -> slice:
        """The parts of an actor."""
        return slice(*self._first_part[actor : actor + 2])

    def corners(self, actor: int) -> Corners:
        """The corners of the hull of an actor's parts."""
        parts = self.parts_of(actor)
        low, high = self.low[parts].min(axis=0), self.high[parts].max(axis=0)
        pick = np.asarray([[i >> axis & 1 for axis in range(3)] for i in range(8)])
        x, y, yaw = self.poses[actor]
        return rotate_z(np.where(pick, high, low).T, yaw).T + np.asarray([x, y, 0.0])


@dataclass(frozen=True, kw_only=True)
class Hits:
    """The first hit of each ray.

    depth: infinite where a ray hits nothing.
    part: index into the solids' parts, GROUND or SKY.
    visible: number of rays whose first hit is each actor.
    unoccluded: the same if the actor were alone in the scene.
    """

    depth: Float[np.ndarray, "H W"]
    part: Int[np.ndarray, "H W"]
    visible: Int[np.ndarray, "A"]
    unoccluded: Int[np.ndarray, "A"]

    def points(self, rays: Rays, chosen: Int[np.ndarray, "N"]) -> Float[np.ndarray, "3 N"]:
        """End points of some rays, by their indices in the flattened rows and columns."""
        directions = rays.directions.reshape(3, -1).take(chosen, axis=1)
        return rays.origin[:, None] + self.depth.ravel().take(chosen) * directions


def rotate_z(vectors: Float[np.ndarray, "3 *n"], yaw_rad: float) -> Float[np.ndarray, "3 *n"]:
    """Vectors rotated about z, without BLAS, whose threads would make the bytes depend on the machine's load."""
    cos, sin = vectors.dtype.type(np.cos(yaw_rad)), vectors.dtype.type(np.sin(yaw_rad))
    x, y, z = vectors
    return np.stack([cos * x - sin * y, sin * x + cos * y, z])


def cast_rays(rays: Rays, solids: Solids) -> Hits:
    """The first hit of every ray, on solids or on the ground."""
    depth = rays.ground_depth.copy()
    part = np.where(np.isfinite(depth), GROUND, SKY).astype(np.int32)
    unoccluded = np.zeros(len(solids.poses), dtype=np.int64)
    for actor, (x, y, yaw) in enumerate(solids.poses):
        window = rays.window(solids.corners(actor))
        if window is None:
            continue
        parts = solids.parts_of(actor)
        directions = rotate_z(rays.directions[:, *window], -yaw)
        origin = rotate_z(rays.origin - np.asarray([x, y, 0.0]), -yaw).astype(depth.dtype)
        hit, index = intersect_boxes(origin[:, None], directions.reshape(3, -1), solids.low[parts], solids.high[parts])
        unoccluded[actor] = np.isfinite(hit).sum()
        hit, index = hit.reshape(directions.shape[1:]), index.reshape(directions.shape[1:])
        closer = hit < depth[window]
        depth[window] = np.where(closer, hit, depth[window])
        part[window] = np.where(closer, index + parts.start, part[window])
    visible = np.bincount(solids.owner[part[part >= 0]], minlength=len(unoccluded))
    return Hits(depth=depth, part=part, visible=visible, unoccluded=unoccluded)


def intersect_boxes(
    origins: Float[np.ndarray, "3 #n"],
    directions: Float[np.ndarray, "3 #n"],
    low: Float[np.ndarray, "P 3"],
    high: Float[np.ndarray, "P 3"],
) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Depth and index of the first axis-aligned box along each ray; infinite depth where there is none.

    The slab method (Kay and Kajiya, Ray Tracing Complex Scenes, 1986): a ray is within the box while it is between
    all three pairs of planes.
    """
    dtype = directions.dtype
    inverse = 1 / np.where(np.abs(directions) < _TINY, dtype.type(_TINY), directions)
    count = np.broadcast_shapes(origins.shape, directions.shape)[1]
    depth, index = np.full(count, np.inf, dtype=dtype), np.zeros(count, dtype=np.int32)
    for number, (lower, upper) in enumerate(zip(low.astype(dtype), high.astype(dtype), strict=True)):
        one, other = (lower[:, None] - origins) * inverse, (upper[:, None] - origins) * inverse
        enters, leaves = np.minimum(one, other).max(axis=0), np.maximum(one, other).min(axis=0)
        closer = (enters <= leaves) & (enters > 0) & (enters < depth)
        depth[closer], index[closer] = enters[closer], number
    return depth, index


@dataclass(frozen=True, kw_only=True)
class Surface:
    """The faces at N hit points.

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


def surface_at(points: Float[np.ndarray, "3 N"], parts: Int[np.ndarray, "N"], solids: Solids) -> Surface:
    """The face of its part that each point is closest to."""
    poses = solids.poses[solids.owner]
    table = [poses[:, :2], np.cos(poses[:, 2:]), np.sin(poses[:, 2:]), solids.low, solids.high]
    columns = np.ascontiguousarray(np.concatenate(table, axis=1).T, dtype=points.dtype)
    x, y, cos, sin, *walls = columns.take(parts, axis=1)
    ahead, left = points[0] - x, points[1] - y
    local = (cos * ahead + sin * left, cos * left - sin * ahead, points[2])
    face = np.stack([np.abs(local[i % 3] - wall) for i, wall in enumerate(walls)]).argmin(axis=0)
    axis, sign = face % 3, np.where(face >= 3, 1, -1).astype(points.dtype)
    flat = np.where(axis == 2, 0, sign)
    normal = [np.where(axis == 0, cos, -sin) * flat, np.where(axis == 0, sin, cos) * flat, np.where(axis == 2, sign, 0)]
    return Surface(
        along=np.where(axis == 0, local[1], local[0]),
        up=local[2] - walls[2],
        height=walls[5] - walls[2],
        axis=axis,
        normal=np.stack(normal),
    )

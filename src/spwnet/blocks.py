"""Geometry of volumes that are worked on part by part: working voxels, blocks, and how far they have to see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from spwnet.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    Triple = tuple[int, int, int]
    Region = tuple[slice, slice, slice]

NEARLY_WHOLE = 0.02
"""Relative difference by which 1/scale may miss an integer."""


@dataclass(frozen=True)
class Grid:
    """Working voxels of a volume and the lattice of its supervoxels, the same for every part of it.

    Attributes
    ----------
    shape : (int, int, int)
        Voxels as stored, along z, y, x.
    bins : (int, int, int)
        Stored voxels averaged to one working voxel, along each axis.
    scale : (float, float, float)
        Length of a working voxel along each axis over that along the shortest.
    cells : (int, int, int)
        Working voxels a side of the cells that evidence is worked out on.
    seeds : (int, int, int)
        Seeds of supervoxels along each axis.
    """

    shape: Triple
    bins: Triple
    scale: tuple[float, float, float]
    cells: Triple
    seeds: Triple

    @property
    def working(self) -> Triple:
        """Working voxels along each axis."""
        z, y, x = (-(-n // b) for n, b in zip(self.shape, self.bins, strict=True))
        return z, y, x

    def stored(self, region: Region) -> Region:
        """Stored voxels of a region of working voxels."""
        z, y, x = (
            slice(part.start * b, min(part.stop * b, n))
            for part, b, n in zip(region, self.bins, self.shape, strict=True)
        )
        return z, y, x

    def seeds_to_voxels(self, distances: float) -> Triple:
        """Working voxels along each axis that so many distances between seeds come to, rounded up."""
        z, y, x = (math.ceil(distances * n / k) for n, k in zip(self.working, self.seeds, strict=True))
        return z, y, x


def make_grid(
    shape: Sequence[int],
    spacing: Sequence[float] | None,
    *,
    scale: float | str,
    max_pixels: int,
    size: float,
    reduction: int,
) -> Grid:
    """Lay out the working voxels of a volume.

    Parameters
    ----------
    shape : three ints
        Voxels along z, y, x.
    spacing : three floats or None
        Distance of voxels along each axis in any unit; None takes them for cubes. Axes of coarser spacing are averaged
        over fewer voxels, so that working voxels come as near to cubes as whole numbers allow.
    scale : float or "auto"
        1, 1/2, 1/3 …: working voxels are so many stored ones a side along the finest axis; "auto": that of a slice of
        `max_pixels` working voxels at most, about.
    max_pixels : int
    size : float
        Working voxels in one supervoxel, on average.
    reduction : int
        Working voxels a side of the cells, along the finest axis.

    Raises
    ------
    SettingsError
        If 1/scale is not an integer.
    """
    depth, height, width = shape
    if scale == "auto":
        factor = max(1, round(math.sqrt(height * width / max_pixels)))
    else:
        factor = max(1, round(1 / float(scale)))
        if abs(factor * float(scale) - 1) > NEARLY_WHOLE:
            low = math.floor(1 / float(scale))
            near = " or ".join("1" if n == 1 else f"1/{n}" for n in (low, low + 1) if n)
            raise SettingsError(
                f"expected `images.scale` of a volume to be 1, 1/2, 1/3 … because whole voxels are averaged, but got "
                f"{float(scale):g}; use {near}"
            )
    sides = spacing or (1.0, 1.0, 1.0)
    finest = min(sides)
    bins = [max(1, round(factor * finest / side)) for side in sides]
    lengths = [side * b for side, b in zip(sides, bins, strict=True)]
    ratios = [length / min(lengths) for length in lengths]
    working = [-(-n // b) for n, b in zip((depth, height, width), bins, strict=True)]
    side = (size * math.prod(ratios)) ** (1 / 3)
    seeds = [max(1, round(n / max(1.0, side / ratio))) for n, ratio in zip(working, ratios, strict=True)]
    cells = [max(1, round(reduction / ratio)) for ratio in ratios]
    return Grid(
        shape=(depth, height, width),
        bins=(bins[0], bins[1], bins[2]),
        scale=(ratios[0], ratios[1], ratios[2]),
        cells=(cells[0], cells[1], cells[2]),
        seeds=(seeds[0], seeds[1], seeds[2]),
    )


def tiles(shape: Sequence[int], block: Sequence[int]) -> list[Region]:
    """Divide a volume into blocks, the last ones of each row smaller: each voxel is in exactly one."""
    spans = [[slice(k, min(k + b, n)) for k in range(0, n, b)] for n, b in zip(shape, block, strict=True)]
    return [(z, y, x) for z, y, x in product(*spans)]


def widened(region: Region, halo: Sequence[int], shape: Sequence[int], align: Sequence[int] = (1, 1, 1)) -> Region:
    """Widen a region by a halo on either side, and on to multiples of `align`, as far as the volume goes."""
    z, y, x = (
        slice(max(0, (part.start - h) // a * a), min(n, -(-(part.stop + h) // a) * a))
        for part, h, n, a in zip(region, halo, shape, align, strict=True)
    )
    return z, y, x


def within(inner: Region, outer: Region) -> Region:
    """Where a region lies within another that contains it."""
    z, y, x = (slice(i.start - o.start, i.stop - o.start) for i, o in zip(inner, outer, strict=True))
    return z, y, x

"""Neighbourhoods of pixels, in any number of dimensions."""

from __future__ import annotations

from itertools import product


def half_neighbourhood(ndim: int, radius: int = 1) -> list[tuple[int, ...]]:
    """Offsets of half the full neighbourhood: of each pair o, −o the one whose first non-zero component is positive."""
    cube = product(range(-radius, radius + 1), repeat=ndim)
    return [offset for offset in cube if offset > (0,) * ndim]


def shifted(shape: tuple[int, ...], offset: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of all pixels p with p + offset inside, and of those p + offset; of none if the offset is too long."""
    here = tuple(slice(max(0, -o), max(0, n - max(0, o))) for n, o in zip(shape, offset, strict=True))
    there = tuple(slice(max(0, o), max(0, n - max(0, -o))) for n, o in zip(shape, offset, strict=True))
    return here, there

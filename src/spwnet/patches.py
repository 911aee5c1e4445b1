"""Patch schedules and the sampling of random patches."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from spwnet.errors import SettingsError

if TYPE_CHECKING:
    import numpy as np

    from spwnet.config import PatchSettings

Span = tuple[int, int]


def make_schedule(settings: PatchSettings) -> list[tuple[int, int, int]]:
    """Return the schedule, given or generated, as a list of (height, width, count per mini-batch).

    Generated: every pair of `sides` within a factor of two, with as many patches as the budget of
    pixels holds (at least one). Sides 64 and 96 give 64×64×9, 64×96×6, 96×64×6, 96×96×4.
    """
    if settings.schedule is not None:
        return list(settings.schedule)
    if not settings.sides:
        return []
    budget = settings.budget or 4 * max(settings.sides) ** 2
    pairs = product(sorted(set(settings.sides)), repeat=2)
    return [(h, w, max(1, budget // (h * w))) for h, w in pairs if max(h, w) <= 2 * min(h, w)]


def patch_region(shape: tuple[int, int], settings: PatchSettings) -> tuple[Span, Span]:
    """Return (start, stop) of the rows and of the columns of a working image that patches come from."""
    rows, columns = (
        slice(*span).indices(size)[:2] for span, size in zip((settings.rows, settings.columns), shape, strict=True)
    )
    return rows, columns


def check_schedule(
    settings: PatchSettings, shape: tuple[int, int], name: str, smallest: int = 1, reduction: int = 1
) -> None:
    """Check that every patch fits an image, and that the network's innermost level sees more than one pixel.

    `smallest` is the side that the network reduces to one pixel, 2^n_blocks · `reduction`; patches are of whole cells
    of `reduction` pixels a side.

    Raises
    ------
    SettingsError
        Naming the image, its region and the first patch that does not fit.
    """
    (top, bottom), (left, right) = patch_region(shape, settings)
    height, width = max(0, bottom - top), max(0, right - left)
    for h, w, count in make_schedule(settings):
        if count == 1 and max(h, w) <= smallest:
            raise SettingsError(
                f"expected more than one patch of {h}×{w} in a mini-batch, because the network reduces each to one "
                "pixel; use larger patches, more of them, or fewer `model.n_blocks`"
            )
        if h > height or w > width:
            raise SettingsError(
                f"expected patches that fit the image, but a patch of {h}×{w} is larger than the {height}×{width} "
                f"working pixels of '{name}' that patches are drawn from; use smaller `patches.sides` or a larger "
                "`images.scale`, or set `losses.patches = 0`"
            )
        if any(end // reduction == start // reduction for start, end in ((top, bottom), (left, right))):
            raise SettingsError(
                f"expected a region for patches of at least {reduction} pixels a side (`model.reduction`), but that of "
                f"'{name}' is {height}×{width}; use larger `patches.rows` and `patches.columns`, or set "
                "`losses.patches = 0`"
            )


def sample_patches(
    image: Tensor, height: int, width: int, count: int, rng: np.random.Generator, region: tuple[Span, Span]
) -> Tensor:
    """Draw patches at random places, flipped and turned by quarters at random.

    Parameters
    ----------
    image : (C, H, W) tensor
    height, width, count : int
        Size and number of patches.
    rng : numpy Generator
    region : ((top, bottom), (left, right))
        Rows and columns to draw from.

    Returns
    -------
    (count, C, height, width) tensor
    """
    (top, bottom), (left, right) = region
    patches = []
    for _ in range(count):
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        h, w = (width, height) if turns % 2 else (height, width)
        if h > bottom - top or w > right - left:
            # A quarter turn of an oblong patch does not fit a narrow region: a half turn does.
            turns, h, w = turns - 1, height, width
        y = int(rng.integers(top, bottom - h + 1))
        x = int(rng.integers(left, right - w + 1))
        patch = torch.rot90(image[:, y : y + h, x : x + w], turns, (1, 2))
        patches.append(patch.flip(2) if flip else patch)
    return torch.stack(patches)

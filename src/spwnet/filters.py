"""Blur, and means over cells of pixels and back, of channels-first tensors with any number of spatial axes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence

LINEAR = {2: "bilinear", 3: "trilinear"}
REDUCE_FROM = 4.0
"""Gaussians from this width on are taken on a smaller image, where they are half as wide at least."""
TRUNCATE = 3.0
"""Gaussians end after so many standard deviations."""


def averaged(images: Tensor, reduction: int | Sequence[int]) -> Tensor:
    """Average (B, C, *spatial) over cells of `reduction` pixels a side, or along each axis; fewer at far borders."""
    sides = [reduction] * (images.ndim - 2) if isinstance(reduction, int) else reduction
    # Sums of strided views, whole rows first: twice as fast as pooling on a CPU.
    for axis, side in enumerate(sides, start=2):
        if side == 1:
            continue
        size = images.shape[axis]
        slices = [slice(None)] * axis
        sums = images[(*slices, slice(0, None, side))].clone()
        for offset in range(1, min(side, size)):
            more = images[(*slices, slice(offset, None, side))]
            sums.narrow(axis, 0, more.shape[axis]).add_(more)
        cells = sums.shape[axis]
        sums.narrow(axis, 0, size // side).div_(side)
        if size % side:
            sums.narrow(axis, cells - 1, 1).div_(size % side)
        images = sums
    return images


def interpolated(maps: Tensor, reduction: int, shape: Sequence[int]) -> Tensor:
    """Bring (C, *reduced) from cells of `reduction` pixels a side to (C, *shape), linearly between their centres."""
    if reduction == 1:
        return maps
    mode = LINEAR[len(shape)]
    wide = functional.interpolate(maps[None], scale_factor=reduction, mode=mode, align_corners=False)[0]
    return wide[(slice(None), *(slice(size) for size in shape))]


def reach(sigma: float) -> int:
    """Pixels on either side that a Gaussian of less than `REDUCE_FROM` takes in."""
    return int(TRUNCATE * sigma + 0.5)


def gaussian(image: Tensor, sigma: float | Sequence[float]) -> Tensor:
    """Blur (C, *spatial) by a Gaussian, mirrored at the borders.

    Parameters
    ----------
    image : (C, *spatial) float tensor
    sigma : float or sequence of float
        Standard deviation in pixels: one for all axes, taken on a smaller image from `REDUCE_FROM` on, or one for each.
    """
    if isinstance(sigma, float | int) and sigma >= REDUCE_FROM:
        factor = 2 ** math.floor(math.log2(2 * sigma / REDUCE_FROM))
        size = [max(1, round(n / factor)) for n in image.shape[1:]]
        small = functional.interpolate(image[None], size=size, mode="area")[0]
        wide = gaussian(small, sigma / factor)
        mode = LINEAR[len(size)]
        return functional.interpolate(wide[None], size=image.shape[1:], mode=mode, align_corners=False)[0]
    widths = [float(sigma)] * (image.ndim - 1) if isinstance(sigma, float | int) else sigma
    for axis, width in enumerate(widths, start=1):
        radius = reach(width)
        if radius == 0:
            continue
        weights = [math.exp(-0.5 * (k / width) ** 2) for k in range(radius + 1)]
        total = weights[0] + 2 * sum(weights[1:])
        length = image.shape[axis]
        # Positions that mirror the image, however small: … 2 1 0 | 0 1 2 … n−1 | n−1 n−2 …
        period = torch.arange(-radius, length + radius, device=image.device) % (2 * length)
        padded = image.index_select(axis, torch.minimum(period, 2 * length - 1 - period))
        image = padded.narrow(axis, radius, length) * (weights[0] / total)
        # In-place sums of shifted views: several times faster than a depthwise convolution on a CPU.
        for k in range(1, radius + 1):
            image.add_(padded.narrow(axis, radius - k, length), alpha=weights[k] / total)
            image.add_(padded.narrow(axis, radius + k, length), alpha=weights[k] / total)
    return image

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


def averaged(images: Tensor, reduction: int) -> Tensor:
    """Average (B, C, *spatial) over cells of `reduction` pixels a side, fewer at the far borders."""
    if reduction == 1:
        return images
    # Sums of strided views, whole rows first: twice as fast as pooling on a CPU.
    for axis in range(2, images.ndim):
        size = images.shape[axis]
        slices = [slice(None)] * axis
        sums = images[(*slices, slice(0, None, reduction))].clone()
        for offset in range(1, min(reduction, size)):
            more = images[(*slices, slice(offset, None, reduction))]
            sums.narrow(axis, 0, more.shape[axis]).add_(more)
        cells = sums.shape[axis]
        sums.narrow(axis, 0, size // reduction).div_(reduction)
        if size % reduction:
            sums.narrow(axis, cells - 1, 1).div_(size % reduction)
        images = sums
    return images


def interpolated(maps: Tensor, reduction: int, shape: Sequence[int]) -> Tensor:
    """Bring (C, *reduced) from cells of `reduction` pixels a side to (C, *shape), linearly between their centres."""
    if reduction == 1:
        return maps
    mode = LINEAR[len(shape)]
    wide = functional.interpolate(maps[None], scale_factor=reduction, mode=mode, align_corners=False)[0]
    return wide[(slice(None), *(slice(size) for size in shape))]


def gaussian(image: Tensor, sigma: float) -> Tensor:
    """Blur (C, *spatial) by a Gaussian of standard deviation `sigma` in pixels, mirrored at the borders."""
    if sigma >= REDUCE_FROM:
        factor = 2 ** math.floor(math.log2(2 * sigma / REDUCE_FROM))
        size = [max(1, round(n / factor)) for n in image.shape[1:]]
        small = functional.interpolate(image[None], size=size, mode="area")[0]
        wide = gaussian(small, sigma / factor)
        mode = LINEAR[len(size)]
        return functional.interpolate(wide[None], size=image.shape[1:], mode=mode, align_corners=False)[0]
    radius = int(TRUNCATE * sigma + 0.5)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    for axis in range(1, image.ndim):
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

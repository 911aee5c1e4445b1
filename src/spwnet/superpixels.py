"""Superpixels (in 3-D, supervoxels): an oversegmentation of a prepared image."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spwnet.errors import InputError
from spwnet.filters import gaussian
from spwnet.preparation import perceptual

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from spwnet.config import SuperpixelSettings


ITERATIONS = 3
"""Of SLIC; more iterations do not improve the labels made on the superpixels."""
CACHED = 40_000
"""Pixels that are compared with their seeds at a time, about as many as fit the processor's cache."""


@dataclass(frozen=True)
class Superpixels:
    """Label of each pixel.

    Attributes
    ----------
    labels : (*spatial) int32 array
        Superpixel of each pixel, 0 … `count` − 1, none of them empty.
    count : int
        Number of superpixels N.
    """

    labels: NDArray[np.int32]
    count: int


def make_superpixels(
    unit: NDArray[np.float32],
    settings: SuperpixelSettings,
    *,
    rgb: bool = False,
    smooth: Tensor | None = None,
    labels: NDArray[Any] | None = None,
    whole: Sequence[int] | None = None,
    part: Sequence[slice] | None = None,
) -> Superpixels | None:
    """Oversegment one prepared image, or a part of one, as the settings say.

    Parameters
    ----------
    unit : (*spatial, C) float32 array
        Prepared image, range 0…1.
    settings : SuperpixelSettings
    rgb : bool
        Whether the channels are red, green and blue.
    smooth : (C, *spatial) float32 tensor, optional
        `perceptual` of the image after the Gaussian of `settings.sigma`, where it is known already.
    labels : (*spatial) int array, optional
        The user's own superpixels, for the method "labels".
    whole : sequence of int, optional
        Shape of the image that `unit` is a part of: superpixels are then those that the whole has there, but near the
        borders of the part. All of it by default.
    part : sequence of slice, optional
        Where `unit` lies in it.

    Returns
    -------
    Superpixels or None
        None in dense mode (method "none").

    Raises
    ------
    InputError
        If the method is "labels" and there are none, or they have another shape.
    """
    if settings.method == "none":
        return None
    if settings.method == "labels":
        if labels is None:
            raise InputError(
                "expected label images for `superpixels.method = 'labels'`, but got none; "
                "pass `superpixels=` or set `superpixels.labels`"
            )
        return superpixels_from_labels(labels, unit.shape[:-1])
    whole, part = whole or unit.shape[:-1], part or [slice(0, size) for size in unit.shape[:-1]]
    count = settings.count or max(1, round(math.prod(whole) / settings.size))
    if smooth is None:
        smooth = _smoothed(unit, settings.sigma, rgb=rgb)
    return _slic(smooth, count, settings.compactness, whole, part)


def slic(
    unit: NDArray[np.float32],
    count: int,
    *,
    compactness: float = 10.0,
    sigma: float = 1.0,
    rgb: bool = False,
) -> Superpixels:
    """Simple linear iterative clustering on CIELAB (RGB input) or on the channels as they are [1]_.

    Parameters
    ----------
    unit : (*spatial, C) float32 array
        Image in the range 0…1.
    count : int
        Superpixels asked for; about as many come, see the result's `count`.
    compactness : float
        Weight of position against colour on CIELAB's scale, the same for every image: no image is
        stretched to its own darkest and brightest pixel first.
    sigma : float
        Gaussian smoothing in pixels.
    rgb : bool
        Whether the channels are red, green and blue.

    Returns
    -------
    Superpixels

    References
    ----------
    .. [1] R. Achanta et al., SLIC superpixels compared to state-of-the-art superpixel methods,
       IEEE TPAMI 34 (11), 2012.
    """
    shape = unit.shape[:-1]
    return _slic(_smoothed(unit, sigma, rgb=rgb), count, compactness, shape, [slice(0, size) for size in shape])


def _smoothed(unit: NDArray[np.float32], sigma: float, *, rgb: bool) -> Tensor:
    features = torch.from_numpy(np.ascontiguousarray(np.moveaxis(perceptual(unit, rgb=rgb), -1, 0)))
    return gaussian(features, sigma) if sigma > 0 else features


def _slic(features: Tensor, count: int, compactness: float, shape: Sequence[int], part: Sequence[slice]) -> Superpixels:
    """Divide (C, *spatial), a part of an image that has about `count` superpixels, into those."""
    side = (math.prod(shape) / min(count, math.prod(shape))) ** (1 / len(shape))
    thick = [size for size in shape if 2 * size > side]
    if thick and len(thick) < len(shape):  # a thin axis has one seed all the same: the others need fewer
        side = (math.prod(thick) / min(count, math.prod(thick))) ** (1 / len(thick))
    counts = [max(1, round(size / side)) if 2 * size > side else 1 for size in shape]
    axes = [Seeds(size, n, along.start, along.stop) for size, n, along in zip(shape, counts, part, strict=True)]
    return relabelled(lattice_slic(features, axes, compactness).cpu().numpy())


@dataclass(frozen=True)
class Seeds:
    """Seeds of the superpixels along one axis: evenly spaced over the whole image, wherever a part of it begins.

    Attributes
    ----------
    size : int
        Pixels of the whole image along the axis.
    count : int
        Seeds along it.
    start, stop : int
        The part of the image that there is; all of it if `stop` is None.
    """

    size: int
    count: int
    start: int = 0
    stop: int | None = None

    @property
    def positions(self) -> NDArray[np.float64]:
        """Centres of the part's pixels, in distances between seeds: seed k is at k + ½."""
        stop = self.size if self.stop is None else self.stop
        return (np.arange(self.start, stop) + 0.5) * self.count / self.size

    @property
    def near(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The nearest seed before, and that behind each pixel of the part, the same one beyond the first and last."""
        before = np.floor(self.positions - 0.5).astype(np.int64)
        return np.maximum(before, 0), np.minimum(before + 1, self.count - 1)

    @property
    def present(self) -> range:
        """Seeds that are near to a pixel of the part."""
        before, behind = self.near
        return range(int(before[0]), int(behind[-1]) + 1)


def lattice_slic(features: Tensor, axes: Sequence[Seeds], compactness: float, iterations: int = ITERATIONS) -> Tensor:
    r"""Cluster pixels around seeds on a regular lattice.

    Each pixel p joins one of the seeds around it, two along each axis, whose mean is nearest:

    .. math:: s_p = \arg\min_i |x_p - \bar x_i|^2 + c^2 |u_p - \bar u_i|^2

    with colours x, and positions u in distances between seeds. That is SLIC [1]_ with windows that stay where the seeds
    are, not where the means move: half the distances to compare, and what a label depends on lies within
    1.5 + 2 (`iterations` − 1) distances, wherever the image is cut.

    Parameters
    ----------
    features : (C, *spatial) float32 tensor
        Colours of the part of the image that `axes` tell.
    axes : sequence of Seeds
        One for each spatial axis.
    compactness : float
        c.
    iterations : int

    Returns
    -------
    (*spatial) int32 tensor
        Seed of each pixel: its place among those `present`, row by row. Not every seed needs to have a pixel.

    References
    ----------
    .. [1] R. Achanta et al., SLIC superpixels compared to state-of-the-art superpixel methods,
       IEEE TPAMI 34 (11), 2012.
    """
    channels, shape, ndim = features.shape[0], features.shape[1:], len(axes)
    device = features.device

    def along(values: NDArray[Any], axis: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.from_numpy(values).to(device, dtype).view([-1 if a == axis else 1 for a in range(ndim)])

    sizes = [len(seeds.present) for seeds in axes]
    strides = [math.prod(sizes[axis + 1 :]) for axis in range(ndim)]
    near = [[side - seeds.present.start for side in seeds.near] for seeds in axes]
    choices = list(product((0, 1), repeat=ndim))
    # Position from each of the near seeds: from the image's corner, its square would drown the colours.
    away = [
        [along((seeds.positions - side - 0.5) * compactness, axis) for side in seeds.near]
        for axis, seeds in enumerate(axes)
    ]
    places = [
        [along(side * stride, axis, torch.int32) for side in sides]
        for axis, (sides, stride) in enumerate(zip(near, strides, strict=True))
    ]
    columns = [[torch.from_numpy(side).to(device) for side in sides] for sides in near]
    rows = torch.ones((*shape, channels + ndim + 1), device=device)
    rows[..., :channels] = features.movedim(0, -1)
    means = torch.zeros((channels + ndim, *sizes), device=device)
    homes: Tensor = torch.zeros((), dtype=torch.int32, device=device)
    for axis, seeds in enumerate(axes):
        rows[..., channels + axis] = along(seeds.positions * compactness, axis)
        home = np.minimum(np.floor(seeds.positions).astype(np.int64), seeds.count - 1) - seeds.present.start
        homes = homes + along(home * strides[axis], axis, torch.int32)
        means[channels + axis] = along((np.array(seeds.present) + 0.5) * compactness, axis)
    origin = means[channels:].clone()
    flat, labels = rows.flatten(0, -2), homes.expand(shape)
    step = max(1, CACHED // max(1, math.prod(shape[1:])))
    for _ in range(iterations):
        sums = _sums(flat, labels.flatten(), math.prod(sizes)).T.reshape(-1, *sizes)
        # A seed that has no pixel keeps its mean.
        means = torch.where(sums[-1] > 0, sums[:-1] / sums[-1].clamp(min=1), means)
        local = torch.cat([means[:channels], means[channels:] - origin])
        # |x − m|² less the |x|² that all seeds have in common.
        table = torch.cat([-2 * local, local.square().sum(0, keepdim=True)])
        wide: dict[tuple[int, ...], Tensor] = {}
        labels = torch.empty(shape, dtype=torch.int32, device=device)
        for start in range(0, shape[0], step):
            some = slice(start, start + step)
            found, best = labels[some], None
            rows_of = [int(side[start]) for side in near[0]]
            for key in [key for key in wide if step == 1 and key[0] < rows_of[0]]:
                del wide[key]
            for choice in choices:
                # A single layer of pixels has a single row of seeds: they stay in the cache for the layers behind it.
                key = (rows_of[choice[0]] if step == 1 else 0, *choice[1:])
                if key not in wide:
                    seeds_of = table[:, key[0] : key[0] + 1] if step == 1 else table
                    for axis, side in enumerate(choice[1:], start=1):
                        seeds_of = seeds_of.index_select(axis + 1, columns[axis][side])
                    wide[key] = seeds_of
                seeds_of = wide[key] if step == 1 else wide[key].index_select(1, columns[0][choice[0]][some])
                score = torch.addcmul(seeds_of[-1], seeds_of[0], features[0, some])
                for channel in range(1, channels):
                    score.addcmul_(seeds_of[channel], features[channel, some])
                place = torch.zeros((), dtype=torch.int32, device=device)
                for axis, side in enumerate(choice):
                    offset, more = (x[some] if axis == 0 else x for x in (away[axis][side], places[axis][side]))
                    score.addcmul_(seeds_of[channels + axis] + offset, offset)
                    place = place + more
                if best is None:
                    best = score
                    found.copy_(place)
                else:
                    found.copy_(torch.where(score < best, place, found))
                    best = torch.minimum(best, score)
    return labels


def _sums(rows: Tensor, labels: Tensor, count: int) -> Tensor:
    """Add up the rows (P, D) of each label, in their order: (count, D)."""
    if rows.device.type != "cpu":
        return rows.new_zeros((count, rows.shape[1])).index_add_(0, labels, rows)
    from scipy.sparse import csc_array

    # A matrix of one entry a column: ten times as fast on few values a row.
    places = (np.ones(len(rows), np.float32), labels.numpy(), np.arange(len(rows) + 1, dtype=np.int32))
    return torch.from_numpy(csc_array(places, shape=(count, len(rows))) @ rows.numpy())


def superpixels_from_labels(labels: NDArray[Any], shape: tuple[int, ...]) -> Superpixels:
    """Take a label image as superpixels, whatever its numbering.

    Parameters
    ----------
    labels : (*spatial) array of integers
        Any ids, with gaps and in any order; pixels of one id are one superpixel, in one piece or not.
    shape : tuple of int
        Shape the labels must have.

    Raises
    ------
    InputError
        If the labels are not integers or have another shape.
    """
    labels = np.asarray(labels)
    if labels.ndim == len(shape) + 1 and labels.shape[-1] == 1:
        labels = labels[..., 0]
    if labels.shape != tuple(shape):
        raise InputError(
            f"expected superpixels of the image's shape {tuple(shape)}, but got {labels.shape}; "
            "make them from the same image, in its input or its working size"
        )
    if not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool):
        raise InputError(f"expected superpixels as integers, but got {labels.dtype}; convert them first")
    return relabelled(labels)


def relabelled(labels: NDArray[Any]) -> Superpixels:
    """Number the labels 0 … N − 1 without gaps."""
    low = int(labels.min(initial=0))
    span = int(labels.max(initial=0)) - low + 1
    if span > 4 * labels.size:  # sorting is slower, but a table of widely spread ids would be large
        ids, compact = np.unique(labels, return_inverse=True)
        return Superpixels(compact.reshape(labels.shape).astype(np.int32), len(ids))
    # narrow signed types do not hold the difference of their ends
    shifted = (labels.astype(np.int64) if low < 0 else labels) - low
    present = np.zeros(span, bool)
    present[shifted.ravel()] = True
    return Superpixels((np.cumsum(present, dtype=np.int32) - 1)[shifted], int(present.sum()))

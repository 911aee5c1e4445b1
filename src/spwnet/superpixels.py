"""Superpixels (in 3-D, supervoxels): an oversegmentation of a prepared image."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import InputError
from spwnet.preparation import perceptual

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spwnet.config import SuperpixelSettings


ITERATIONS = 5
"""Of SLIC: more move no superpixel of this size by enough to change a label."""


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
    smooth: NDArray[np.float32] | None = None,
    labels: NDArray[Any] | None = None,
) -> Superpixels | None:
    """Oversegment one prepared image as the settings say.

    Parameters
    ----------
    unit : (*spatial, C) float32 array
        Prepared image, range 0…1.
    settings : SuperpixelSettings
    rgb : bool
        Whether the channels are red, green and blue.
    smooth : (*spatial, C) float32 array, optional
        `perceptual` of the image after the Gaussian of `settings.sigma`, where it is known already.
    labels : (*spatial) int array, optional
        The user's own superpixels, for the method "labels".

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
    pixels = int(np.prod(unit.shape[:-1]))
    count = settings.count or max(1, round(pixels / settings.size))
    if smooth is not None:
        return slic(smooth, count, compactness=settings.compactness, sigma=0.0, is_perceptual=True)
    return slic(unit, count, compactness=settings.compactness, sigma=settings.sigma, rgb=rgb)


def slic(
    unit: NDArray[np.float32],
    count: int,
    *,
    compactness: float = 10.0,
    sigma: float = 1.0,
    rgb: bool = False,
    is_perceptual: bool = False,
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
    is_perceptual : bool
        Whether `unit` is what `perceptual` gives already.

    Returns
    -------
    Superpixels

    References
    ----------
    .. [1] R. Achanta et al., SLIC superpixels compared to state-of-the-art superpixel methods,
       IEEE TPAMI 34 (11), 2012.
    """
    from skimage import segmentation

    features = unit if is_perceptual else perceptual(unit, rgb=rgb)
    # scikit-image divides each image by its own range: dividing compactness by it, too, undoes that.
    spread = float(features.max() - features.min()) or 1.0
    labels = segmentation.slic(
        features,
        n_segments=min(count, int(np.prod(unit.shape[:-1]))),
        compactness=compactness / spread,
        sigma=sigma,
        start_label=0,
        channel_axis=features.ndim - 1,
        convert2lab=False,
        max_num_iter=ITERATIONS,
    )
    return _numbered(labels)


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
    return _numbered(labels)


def _numbered(labels: NDArray[Any]) -> Superpixels:
    """Number the labels 0 … N − 1 without gaps."""
    low = int(labels.min(initial=0))
    span = int(labels.max(initial=0)) - low + 1
    if span > 4 * labels.size:  # sorting is slower, but a table of widely spread ids would be large
        ids, compact = np.unique(labels, return_inverse=True)
        return Superpixels(compact.reshape(labels.shape).astype(np.int32), len(ids))
    present = np.zeros(span, bool)
    present[labels.ravel() - low] = True
    return Superpixels((np.cumsum(present, dtype=np.int32) - 1)[labels - low], int(present.sum()))


def half_neighbourhood(ndim: int, radius: int = 1) -> list[tuple[int, ...]]:
    """Offsets of one half of the full neighbourhood: of each pair o, −o the one that is positive first."""
    cube = product(range(-radius, radius + 1), repeat=ndim)
    return [offset for offset in cube if offset > (0,) * ndim]


def shifted(shape: tuple[int, ...], offset: tuple[int, ...]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices of all pixels p with p + offset inside, and of those p + offset."""
    here = tuple(slice(max(0, -o), n - max(0, o)) for n, o in zip(shape, offset, strict=True))
    there = tuple(slice(max(0, o), n - max(0, -o)) for n, o in zip(shape, offset, strict=True))
    return here, there

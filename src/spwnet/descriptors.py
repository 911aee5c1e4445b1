"""Hand-crafted evidence at every pixel: colour, colour around it, and local contrast at several scales."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spwnet.superpixels import perceptual

if TYPE_CHECKING:
    from numpy.typing import NDArray

SURROUNDING = 4.0
"""Standard deviation of the Gaussian that colour is smoothed by, in working pixels."""
CONTRAST_SCALES = (2.0, 4.0, 8.0)
FAINT = 1.0
"""Contrast, on the scale 0…100, below which differences hardly count."""


class Kind(NamedTuple):
    """Values of a descriptor that are one kind of evidence, and the weight of that kind."""

    size: int
    weight: float


LEARNED_WEIGHT = 0.5
"""Of the network's last hidden layer, against 1 for colour."""


def kinds(learned: int, channels: int) -> list[Kind]:
    """Return the kinds of evidence in a descriptor, in order: learned, then those of `handcrafted`."""
    contrasts = [Kind(channels, 0.3) for _ in CONTRAST_SCALES]
    return [Kind(learned, LEARNED_WEIGHT), Kind(channels, 1.0), Kind(channels, 0.7), *contrasts]


def handcrafted(unit: NDArray[np.float32], *, rgb: bool) -> NDArray[np.float32]:
    """Compute hand-crafted evidence of a prepared image.

    Parameters
    ----------
    unit : (*spatial, C) float32 array
        Range 0…1.
    rgb : bool
        Whether the channels are red, green and blue.

    Returns
    -------
    (*spatial, 5·C) float32 array
        CIELAB (or the channels in 0…100); the same smoothed; the logarithm of the local standard deviation
        at three scales.
    """
    colour = perceptual(unit, rgb=rgb)
    square = np.square(colour)
    evidence = [colour, _smoothed(colour, SURROUNDING)]
    for scale in CONTRAST_SCALES:
        variance = _smoothed(square, scale) - np.square(_smoothed(colour, scale))
        evidence.append(np.log(np.sqrt(np.maximum(variance, 0)) + np.float32(FAINT)))
    return np.concatenate(evidence, axis=-1)


def _smoothed(image: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    from scipy.ndimage import gaussian_filter

    smoothed: NDArray[np.float32] = gaussian_filter(image, (*[sigma] * (image.ndim - 1), 0), truncate=3)
    return smoothed

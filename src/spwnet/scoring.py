"""A score of labels without a truth: how little they cut through what looks alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SCORED_CLASSES = 16
"""Number of classes, at most, that runs are scored at: only runs with as many can be compared."""


def cut_score(labels: Sequence[NDArray[np.integer[Any]]], images: Sequence[NDArray[np.floating[Any]]]) -> float:
    r"""Average share of the ties of a class that stay within it: one minus the normalised cut [1]_ of the labels.

    .. math:: \frac{1}{K} \sum_k \frac{\sum_{p,q \in k} w_{pq}}{\sum_{p \in k} \sum_q w_{pq}},
              \quad w_{pq} = \exp(-|I_p - I_q| / \bar{d})

    over adjacent pixels of all the images, with the mean difference between neighbours as :math:`\bar{d}`.

    Parameters
    ----------
    labels : sequence of (*spatial) int arrays
        Class ids; those that do not occur do not count.
    images : sequence of (*spatial, C) arrays
        CIELAB, or channels in any range.

    Returns
    -------
    float
        0…1; higher is better, among labels of the same images with the same number of classes.

    References
    ----------
    .. [1] J. Shi, J. Malik, Normalized cuts and image segmentation, IEEE TPAMI 22 (8), 2000.
    """
    differences = [
        [np.sqrt(np.square(np.diff(image, axis=axis)).sum(-1)) for axis in range(image.ndim - 1)] for image in images
    ]
    usual = float(np.mean(np.concatenate([d.ravel() for several in differences for d in several])))
    count = max(int(found.max()) for found in labels) + 1
    within, ties = np.zeros(count), np.zeros(count)
    for found, several in zip(labels, differences, strict=True):
        for axis, difference in enumerate(several):
            weights = np.exp(-difference / usual) if usual > 0 else np.ones_like(difference)
            one, other = np.delete(found, -1, axis), np.delete(found, 0, axis)
            same = one == other
            within += 2 * np.bincount(one[same], weights[same], count)
            ties += np.bincount(one.ravel(), weights.ravel(), count) + np.bincount(
                other.ravel(), weights.ravel(), count
            )
    there = ties > 0
    return float((within[there] / ties[there]).mean())

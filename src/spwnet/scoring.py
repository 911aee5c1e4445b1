"""A score of labels without a truth: how little they cut through what looks alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SCORED_CLASSES = 16
"""Number of classes, at most, that runs are scored at: only runs with as many can be compared."""


class Neighbours(NamedTuple):
    """Superpixels that touch, of one image.

    Attributes
    ----------
    edges : (2, E) int array
        Each pair in both directions.
    distances : (E,) float array
        Of the mean colours of both.
    """

    edges: NDArray[np.integer[Any]]
    distances: NDArray[np.floating[Any]]


def cut_score(labels: Sequence[NDArray[np.integer[Any]]], images: Sequence[Neighbours]) -> float:
    r"""Average share of the ties of a class that stay within it: one minus the normalised cut [1]_ of the labels.

    .. math:: \frac{1}{K} \sum_k \frac{\sum_{i,j \in k} A_{ij}}{\sum_{i \in k} \sum_j A_{ij}},
              \quad A_{ij} = \exp(-d_{ij} / \bar{d})

    over the edges of the region adjacency graphs of all the images, with the mean distance :math:`\bar{d}` of
    neighbours.

    Parameters
    ----------
    labels : sequence of (N,) int arrays
        Class of each superpixel; those that do not occur do not count.
    images : sequence of Neighbours

    Returns
    -------
    float
        0…1; higher is better, among labels of the same superpixels with the same number of classes.

    References
    ----------
    .. [1] J. Shi, J. Malik, Normalized cuts and image segmentation, IEEE TPAMI 22 (8), 2000.
    """
    every = np.concatenate([image.distances for image in images])
    usual = float(every.mean()) if every.size else 0.0
    count = max(int(found.max()) for found in labels) + 1
    within, ties = np.zeros(count), np.zeros(count)
    for found, (edges, distances) in zip(labels, images, strict=True):
        weights = np.exp(-distances / usual) if usual > 0 else np.ones(len(distances))
        one, other = found[edges]
        within += np.bincount(one, weights * (one == other), count)
        ties += np.bincount(one, weights, count)
    there = ties > 0
    return float((within[there] / ties[there]).mean()) if there.any() else 1.0

"""A score of labels without a truth: how well their boundaries fit the image."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

SCORED_CLASSES = 32
"""Number of classes, at most, that runs are scored at: only runs with as many can be compared."""


LEAST_SHARE = 1e-6
"""Keeps the score of one class alone finite."""


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


def label_score(labels: Sequence[NDArray[np.integer[Any]]], images: Sequence[Neighbours], n_classes: int) -> float:
    r"""Score labels without a truth: how little they cut through what looks alike, and how clear their boundaries are.

    .. math:: \log \frac{a}{1 - a} + \frac{1}{2} \log \frac{d_{between}}{d_{within}}, \quad
              a = \frac{1}{K} \sum_k \frac{\sum_{i,j \in k} A_{ij}}{\sum_{i \in k} \sum_j A_{ij}}, \quad
              A_{ij} = \exp(-d_{ij} / \bar{d})

    over the edges of the region adjacency graphs of all the images: 1 − a is the normalised cut [1]_ of the labels,
    with the mean distance of neighbours as :math:`\bar{d}`; the other term compares the mean distances of neighbours
    of two classes and of one.

    Parameters
    ----------
    labels : sequence of (N,) int arrays
        Class of each superpixel.
    images : sequence of Neighbours
    n_classes : int
        K; a class that does not occur keeps none of its ties.

    Returns
    -------
    float
        Finite; higher is better, among labels of the same superpixels with the same number of classes.

    References
    ----------
    .. [1] J. Shi, J. Malik, Normalized cuts and image segmentation, IEEE TPAMI 22 (8), 2000.
    """
    distances = np.concatenate([image.distances for image in images])
    usual = float(distances.mean()) if distances.size else 0.0
    within, ties = np.zeros(n_classes), np.zeros(n_classes)
    cut = []
    for found, image in zip(labels, images, strict=True):
        weights = np.exp(-image.distances / usual) if usual > 0 else np.ones(len(image.distances))
        one, other = found[image.edges]
        within += np.bincount(one, weights * (one == other), n_classes)
        ties += np.bincount(one, weights, n_classes)
        cut.append(one != other)
    shares = np.divide(within, ties, out=np.zeros(n_classes), where=ties > 0)
    kept = float(np.clip(shares.mean(), LEAST_SHARE, 1 - LEAST_SHARE))
    across = np.concatenate(cut)
    contrast = 1.0
    if across.any() and not across.all() and distances[~across].any() and distances[across].any():
        contrast = float(distances[across].mean() / distances[~across].mean())
    return math.log(kept / (1 - kept)) + 0.5 * math.log(contrast)

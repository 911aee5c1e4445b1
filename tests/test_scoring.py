from __future__ import annotations

import numpy as np
import pytest

from spwnet.graph import build_graph
from spwnet.scoring import Neighbours, cut_score
from spwnet.superpixels import superpixels_from_labels


def tiles(image):
    """Neighbours among tiles of 2×2 pixels."""
    h, w = image.shape[:2]
    labels = np.arange(h)[:, None] // 2 * 100 + np.arange(w) // 2
    graph = build_graph(superpixels_from_labels(labels, (h, w)), image)
    return Neighbours(graph.edges.numpy(), graph.distances.numpy())


def test_equals_the_definition():
    rng = np.random.default_rng(0)
    images = [tiles(rng.random((8, 12, 2))), tiles(rng.random((6, 4, 2)))]
    labels = [rng.integers(0, 4, int(image.edges.max()) + 1) for image in images]
    usual = np.concatenate([image.distances for image in images]).mean()
    within, ties = np.zeros(4), np.zeros(4)
    for found, image in zip(labels, images, strict=True):
        for (i, j), d in zip(image.edges.T, image.distances, strict=True):
            ties[found[i]] += np.exp(-d / usual)
            within[found[i]] += np.exp(-d / usual) * (found[i] == found[j])
    assert cut_score(labels, images) == pytest.approx((within / ties).mean())


def test_boundaries_where_the_image_has_some_are_best():
    image = np.zeros((20, 32, 1))
    image[:, 16:] = 50
    image += np.random.default_rng(0).normal(0, 1, image.shape)
    neighbours = tiles(image)
    y, x = (part.ravel() for part in np.mgrid[:10, :16])
    best, elsewhere, across = (cut_score([part.astype(int)], [neighbours]) for part in (x >= 8, x >= 4, y >= 5))
    assert best > 0.99
    assert best > elsewhere
    assert best > across
    assert cut_score([np.random.default_rng(0).integers(0, 2, 160)], [neighbours]) < 0.6


def test_one_class_a_constant_image_and_a_lone_superpixel():
    constant = tiles(np.ones((4, 6, 1)))
    assert cut_score([np.zeros(6, int)], [constant]) == 1
    assert cut_score([np.full(6, 7)], [constant]) == 1
    alone = Neighbours(np.zeros((2, 0), int), np.zeros(0))
    assert cut_score([np.zeros(1, int)], [alone]) == 1

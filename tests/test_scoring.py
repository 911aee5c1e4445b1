from __future__ import annotations

import numpy as np
import pytest

from spwnet.graph import build_graph
from spwnet.scoring import Neighbours, label_score
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
    within, ties = np.zeros(5), np.zeros(5)
    between, inside = [], []
    for found, image in zip(labels, images, strict=True):
        for (i, j), d in zip(image.edges.T, image.distances, strict=True):
            ties[found[i]] += np.exp(-d / usual)
            within[found[i]] += np.exp(-d / usual) * (found[i] == found[j])
            (inside if found[i] == found[j] else between).append(d)
    kept = np.mean([w / t if t else 0 for w, t in zip(within, ties, strict=True)])
    expected = np.log(kept / (1 - kept)) + 0.5 * np.log(np.mean(between) / np.mean(inside))
    assert label_score(labels, images, 5) == pytest.approx(expected)


def test_boundaries_where_the_image_has_some_are_best():
    image = np.zeros((20, 32, 1))
    image[:, 16:] = 50
    image += np.random.default_rng(0).normal(0, 1, image.shape)
    neighbours = tiles(image)
    y, x = (part.ravel() for part in np.mgrid[:10, :16])
    best, elsewhere, across, anywhere = (
        label_score([part.astype(int)], [neighbours], 2)
        for part in (x >= 8, x >= 4, y >= 5, np.random.default_rng(0).integers(0, 2, 160))
    )
    assert best > max(elsewhere, across) > min(elsewhere, across) > anywhere
    # a class that died counts
    assert label_score([(x >= 8).astype(int)], [neighbours], 4) < best


def test_one_class_a_constant_image_and_a_lone_superpixel_are_finite():
    constant = tiles(np.ones((4, 6, 1)))
    assert np.isfinite(label_score([np.zeros(6, int)], [constant], 1))
    assert label_score([np.full(6, 3)], [constant], 4) == pytest.approx(np.log(1 / 3))
    alone = Neighbours(np.zeros((2, 0), int), np.zeros(0))
    assert np.isfinite(label_score([np.zeros(1, int)], [alone], 2))

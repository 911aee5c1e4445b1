from __future__ import annotations

import numpy as np
import pytest

from spwnet.scoring import cut_score


def two_halves(noise=0.0):
    image = np.zeros((20, 30, 1))
    image[:, 15:] = 50
    return image + np.random.default_rng(0).normal(0, noise, image.shape)


def brute_force(labels, images):
    """The definition, pixel by pixel."""
    pairs = [
        (labels[n][p], labels[n][q], np.linalg.norm(images[n][p] - images[n][q]))
        for n in range(len(images))
        for p in np.ndindex(labels[n].shape)
        for q in ((p[0] + 1, p[1]), (p[0], p[1] + 1))
        if q[0] < labels[n].shape[0] and q[1] < labels[n].shape[1]
    ]
    usual = np.mean([d for *_, d in pairs])
    shares = []
    for k in np.unique(np.concatenate([found.ravel() for found in labels])):
        ties = sum((int(a == k) + int(b == k)) * np.exp(-d / usual) for a, b, d in pairs)
        within = sum(2 * (a == k == b) * np.exp(-d / usual) for a, b, d in pairs)
        shares.append(within / ties)
    return np.mean(shares)


def test_equals_the_definition():
    rng = np.random.default_rng(0)
    images = [rng.random((6, 9, 2)), rng.random((5, 4, 2))]
    labels = [rng.integers(0, 4, image.shape[:2]) for image in images]
    assert cut_score(labels, images) == pytest.approx(brute_force(labels, images))


def test_boundaries_where_the_image_has_some_are_best():
    image = two_halves(1.0)
    right = np.zeros((20, 30), int)
    right[:, 15:] = 1
    elsewhere, across = np.zeros_like(right), np.zeros_like(right)
    elsewhere[:, 8:] = 1
    across[10:] = 1
    best = cut_score([right], [image])
    assert best > 0.99
    assert best > cut_score([elsewhere], [image]) > cut_score([across], [image])
    assert cut_score([np.random.default_rng(0).integers(0, 2, right.shape)], [image]) < 0.6


def test_one_class_and_a_constant_image_and_a_volume():
    assert cut_score([np.zeros((4, 5), int)], [np.ones((4, 5, 1))]) == 1
    assert cut_score([np.full((4, 5), 7)], [np.ones((4, 5, 1))]) == 1
    volume = np.zeros((4, 5, 6), int)
    volume[2:] = 1
    assert 0.5 < cut_score([volume], [np.random.default_rng(0).random((4, 5, 6, 2))]) < 1

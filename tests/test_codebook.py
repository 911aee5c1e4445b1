from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from spwnet import codebook as module
from spwnet.codebook import Codebook, fit_codebook
from spwnet.errors import RunError


def clouds(seed=0, sizes=(300, 200, 100, 50), dimensions=5):
    """Well separated clouds, and which of them each point is of."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 10, (len(sizes), dimensions))
    truth = np.repeat(np.arange(len(sizes)), sizes)
    return (centres[truth] + rng.normal(0, 0.3, (len(truth), dimensions))).astype(np.float32), truth


def test_separate_clouds_are_found_and_numbered_by_size():
    points, truth = clouds()
    book = fit_codebook(points, [(5, 1.0)], 4)
    np.testing.assert_array_equal(book.assign(points), truth)


def test_as_good_as_scikit_learn_on_overlapping_points():
    points = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    book = fit_codebook(points, [(3, 1.0)], 8)
    scaled = (points - book.mean) / book.scale
    ours = np.square(scaled - book.centres[book.assign(points)]).sum()
    theirs = KMeans(8, n_init=4, random_state=0).fit(scaled).inertia_
    assert ours < 1.02 * theirs


def test_each_block_has_its_weight_whatever_its_size_and_units():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(5, 100, (500, 8)), rng.normal(0, 0.01, (500, 2))], axis=1).astype(np.float32)
    book = fit_codebook(points, [(8, 1.0), (2, 0.5)], 4)
    scaled = (points - book.mean) / book.scale
    assert scaled[:, :8].var(0).sum() == pytest.approx(1, rel=1e-3)
    assert scaled[:, 8:].var(0).sum() == pytest.approx(0.25, rel=1e-3)


def test_the_seed_decides_and_a_block_without_spread_is_left_alone():
    points, truth = clouds()
    points[:, 4] = 7
    a, b = (fit_codebook(points, [(4, 1.0), (1, 1.0)], 4, seed) for seed in (1, 1))
    np.testing.assert_array_equal(a.centres, b.centres)
    assert a.scale[4] == 1
    assert adjusted_rand_score(truth, a.assign(points)) == 1


def test_fewer_different_points_than_classes():
    points = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    book = fit_codebook(points, [(3, 1.0)], 8)
    assert len(book.centres) == 3
    assert len(np.unique(book.assign(points))) == 3


def test_more_classes_than_clouds_with_hardly_any_spread():
    rng = np.random.default_rng(0)
    points = rng.normal(0, 10, (4, 30))[rng.integers(0, 4, 400)] + rng.normal(0, 1e-4, (400, 30))
    book = fit_codebook(points.astype(np.float32), [(30, 1.0)], 32)
    assert book.centres.shape == (32, 30)
    assert np.isfinite(book.centres).all()


def test_many_points_are_thinned(monkeypatch):
    monkeypatch.setattr(module, "MOST_POINTS", 200)
    points, truth = clouds()
    assert adjusted_rand_score(truth, fit_codebook(points, [(5, 1.0)], 4).assign(points)) == 1


def test_round_trip():
    book = fit_codebook(clouds()[0], [(5, 1.0)], 4)
    again = Codebook.from_tensors(book.tensors(), 5)
    for name, array in book.tensors().items():
        np.testing.assert_array_equal(array, again.tensors()[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": None}, "expected finite 'mean' of shape .5,. in the codebook, but got none"),
        ({"scale": np.ones(4)}, "expected finite 'scale' .* but got .4,."),
        ({"centres": np.ones((2, 3))}, "expected finite 'centres' of shape .None, 5."),
        ({"centres": np.ones((0, 5))}, "expected finite 'centres'"),
        ({"centres": np.full((2, 5), np.nan)}, "expected finite 'centres'"),
        ({"scale": np.zeros(5)}, "expected a 'scale' above 0"),
    ],
)
def test_a_codebook_that_does_not_fit(changes, message):
    tensors = fit_codebook(clouds()[0], [(5, 1.0)], 4).tensors() | changes
    with pytest.raises(RunError, match=message):
        Codebook.from_tensors({name: array for name, array in tensors.items() if array is not None}, 5)

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from spwnet import codebook as module
from spwnet.codebook import Codebook, Descriptors, coarser, fit_codebook
from spwnet.errors import RunError, SettingsError


def clouds(seed=0, sizes=(300, 200, 100, 50), dimensions=5):
    """Well separated clouds, and which of them each point is of."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 10, (len(sizes), dimensions))
    truth = np.repeat(np.arange(len(sizes)), sizes)
    return (centres[truth] + rng.normal(0, 0.3, (len(truth), dimensions))).astype(np.float32), truth


def classes_of(book, points, n_classes=None):
    return book.assign(Descriptors(points), coarser(book.parents, n_classes or book.finest)).classes


def test_separate_clouds_are_found():
    points, truth = clouds()
    book = fit_codebook([Descriptors(points)], [(5, 1.0)], 4)
    assert adjusted_rand_score(truth, classes_of(book, points)) == 1
    assert (classes_of(book, points)[truth == 0] == 0).all()  # the largest is the root's


def test_as_good_as_scikit_learn_on_overlapping_points():
    points = np.random.default_rng(0).normal(size=(2000, 3)).astype(np.float32)
    book = fit_codebook([Descriptors(points)], [(3, 1.0)], 8)
    scaled = (points - book.mean) / book.scale
    ours = np.square(scaled - book.centres[classes_of(book, points)]).sum()
    theirs = KMeans(8, n_init=4, random_state=0).fit(scaled).inertia_
    assert ours < 1.02 * theirs


def test_each_kind_has_its_weight_whatever_its_size_and_units():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(5, 100, (500, 8)), rng.normal(0, 0.01, (500, 2))], axis=1).astype(np.float32)
    book = fit_codebook([Descriptors(points)], [(8, 1.0), (2, 0.5)], 4)
    scaled = (points - book.mean) / book.scale
    assert scaled[:, :8].var(0).sum() == pytest.approx(1, rel=1e-3)
    assert scaled[:, 8:].var(0).sum() == pytest.approx(0.25, rel=1e-3)


def test_the_seed_decides_and_a_kind_without_spread_is_left_alone():
    points, truth = clouds()
    points[:, 4] = 7
    a, b = (fit_codebook([Descriptors(points)], [(4, 1.0), (1, 1.0)], 4, seed) for seed in (1, 1))
    np.testing.assert_array_equal(a.centres, b.centres)
    assert a.scale[4] == 1
    assert adjusted_rand_score(truth, classes_of(a, points)) == 1


def test_fewer_different_points_than_classes():
    points = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    book = fit_codebook([Descriptors(points)], [(3, 1.0)], 8)
    assert len(book.centres) == book.finest == 3
    assert len(np.unique(classes_of(book, points))) == 3


def test_more_classes_than_clouds_with_hardly_any_spread():
    rng = np.random.default_rng(0)
    points = rng.normal(0, 10, (4, 30))[rng.integers(0, 4, 400)] + rng.normal(0, 1e-4, (400, 30))
    book = fit_codebook([Descriptors(points.astype(np.float32))], [(30, 1.0)], 32)
    assert 4 <= book.finest <= 32
    assert np.isfinite(book.centres).all()


def test_many_points_are_thinned(monkeypatch):
    monkeypatch.setattr(module, "MOST_POINTS", 200)
    points, truth = clouds()
    book = fit_codebook([Descriptors(points)], [(5, 1.0)], 4)
    assert adjusted_rand_score(truth, classes_of(book, points)) == 1


def test_round_trip():
    book = fit_codebook([Descriptors(clouds()[0])], [(5, 1.0)], 4)
    again = Codebook.from_tensors(book.tensors(), 5)
    for name, array in book.tensors().items():
        np.testing.assert_array_equal(array, again.tensors()[name])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": None}, "expected finite 'mean' of shape .5,. in the codebook, but got none"),
        ({"scale": np.ones(4)}, "expected finite 'scale' .* but got .4,."),
        ({"centres": np.ones((2, 3))}, "expected finite 'centres' of shape .K, 5."),
        ({"centres": np.ones((0, 5))}, "expected finite 'centres'"),
        ({"centres": np.full((2, 5), np.nan)}, "expected finite 'centres'"),
        ({"scale": np.zeros(5)}, "expected 'scale' above 0"),
        ({"near": np.zeros(1)}, "expected 'near' above 0"),
        ({"parents": np.zeros(3, np.int32)}, "expected finite 'parents' of shape .K,. "),
        ({"parents": np.array([0, 0, 2, 1], np.int32)}, "expected 'parents' of smaller ids"),
        ({"parents": np.array([1, 0, 0, 1], np.int32)}, "expected 'parents' of smaller ids"),
        ({"parents": np.array([0, -1, 0, 1], np.int32)}, "expected 'parents' of smaller ids"),
        ({"parents": np.zeros(4, np.float32)}, "expected 'parents' of smaller ids"),
        ({"heights": np.zeros(3, np.float32)}, "expected finite 'heights'"),
    ],
)
def test_a_codebook_that_does_not_fit(changes, message):
    tensors = fit_codebook([Descriptors(clouds()[0])], [(5, 1.0)], 4).tensors() | changes
    with pytest.raises(RunError, match=message):
        Codebook.from_tensors({name: array for name, array in tensors.items() if array is not None}, 5)


def chain(n):
    """Edges of n superpixels in a row, both directions."""
    i = np.arange(n - 1)
    return np.stack([np.concatenate([i, i + 1]), np.concatenate([i + 1, i])])


def test_diffusion_equals_the_definition():
    x0 = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    near = 2.0
    x = x0.astype(float)
    for _ in range(module.DIFFUSION_STEPS):
        mixed = []
        for i in range(6):
            around = [j for j in (i - 1, i + 1) if 0 <= j < 6]
            w = [np.exp(-np.square(x0[i] - x0[j]).sum() / near) for j in around]
            top = x0[i] + module.DIFFUSION * np.mean([a * x[j] for a, j in zip(w, around, strict=True)], axis=0)
            mixed.append(top / (1 + module.DIFFUSION * np.mean(w)))
        x = np.array(mixed)
    np.testing.assert_allclose(module._diffused(x0, module._likeness(x0, chain(6), near)), x, rtol=1e-5, atol=1e-6)


def test_diffusion_evens_out_noise_and_keeps_a_superpixel_unlike_its_neighbours():
    rng = np.random.default_rng(0)
    rows = np.repeat([0.0, 10.0], 50)[:, None] + rng.normal(0, 0.5, (100, 1))
    rows[20] = 30
    book = fit_codebook([Descriptors(rows.astype(np.float32), chain(100))], [(1, 1.0)], 3)
    labels = book.assign(Descriptors(rows.astype(np.float32), chain(100)), np.arange(3)).classes
    expected = np.repeat([0, 1], 50)
    expected[20] = 2
    assert adjusted_rand_score(expected, labels) == 1
    points = rows.astype(np.float32)
    smooth = module._diffused(points, module._likeness(points, chain(100), 1.0))
    assert smooth[50:].std() < 0.7 * rows[50:].std()
    assert smooth[20] == pytest.approx(30, abs=0.1)


def test_superpixels_without_neighbours():
    points, truth = clouds()
    none = np.zeros((2, 0), np.int64)
    book = fit_codebook([Descriptors(points, none)], [(5, 1.0)], 4)
    assert adjusted_rand_score(truth, book.assign(Descriptors(points, none), np.arange(4)).classes) == 1


def nested_clouds():
    """Two far groups: one of three clouds, one of two; which cloud, which group."""
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [0, 4], [4, 0], [100, 0], [100, 3]], float)
    cloud = np.repeat(np.arange(5), [50, 60, 70, 40, 30])
    return (centres[cloud] + rng.normal(0, 0.1, (250, 2))).astype(np.float32), cloud, (cloud > 2).astype(int)


def test_the_tree_merges_what_is_near_first():
    points, cloud, group = nested_clouds()
    book = fit_codebook([Descriptors(points)], [(2, 1.0)], 5)
    assert adjusted_rand_score(cloud, classes_of(book, points)) == 1
    assert adjusted_rand_score(group, classes_of(book, points, 2)) == 1
    assert set(classes_of(book, points, 1)) == {0}


def test_a_class_keeps_its_id_at_every_number_of_classes():
    points = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32)
    book = fit_codebook([Descriptors(points)], [(4, 1.0)], 20)
    finer = classes_of(book, points)
    assert set(finer) == set(range(20))
    for k in range(19, 0, -1):
        labels = classes_of(book, points, k)
        assert set(labels) == set(range(k))
        moved = labels != finer
        assert set(finer[moved]) == {k}
        assert set(labels[moved]) == {book.parents[k]}
        finer = labels


def test_heights_are_the_variance_that_each_split_explains():
    points, _, group = nested_clouds()
    book = fit_codebook([Descriptors(points)], [(2, 1.0)], 5)
    x = (points - book.mean) / book.scale
    means = np.stack([x[group == g].mean(0) for g in (0, 1)])
    explained = 1 - np.square(x - means[group]).sum() / np.square(x - x.mean(0)).sum()
    assert book.heights[1] == pytest.approx(explained, rel=1e-4)
    assert (np.diff(book.heights) <= 0).all()
    assert 0.99 < book.heights[1:].sum() < 1


def test_numbers_of_classes_that_there_are_not():
    book = fit_codebook([Descriptors(clouds()[0])], [(5, 1.0)], 4)
    for wrong in (0, 5):
        with pytest.raises(SettingsError, match=f"expected 1 to 4 classes.* but got {wrong}"):
            coarser(book.parents, wrong)


def test_uncertainty_is_boundary_to_others_and_distance(monkeypatch):
    points = np.array([[0.0], [9.0], [1.0], [10.0]] * 20, np.float32)
    book = fit_codebook([Descriptors(points)], [(1, 1.0)], 2)
    rows = np.array([[0.5], [1.5], [9.5], [9.5]], np.float32)
    # Of superpixel 1, two thirds of the boundary are to 0, which is of its class, a third to 2; of 2, half is to 1.
    edges = np.array([[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]])
    contacts = np.array([20, 20, 10, 10, 10, 10], np.float32)
    _, alone = book.assign(Descriptors(rows), np.arange(2))
    np.testing.assert_allclose(alone, [0, 0.6, 0, 0], atol=1e-3)  # the usual distance is 0.5, and 1.5 is 2 of it off
    monkeypatch.setattr(module, "AGREEMENT", 0.0)
    described = Descriptors(rows, edges, contacts)
    classes, doubt = book.assign(described, np.arange(2))
    assert classes.tolist() == [classes[0], classes[0], classes[2], classes[2]]
    assert classes[0] != classes[2]
    distance = np.sqrt(book.energies(described).values[np.arange(4), classes] / 2)
    np.testing.assert_allclose(doubt, 0.3 * distance + 0.5 * np.array([0, 1 / 3, 1 / 2, 0]), rtol=1e-5)


def test_neighbours_agree_as_the_mean_field_says():
    rng = np.random.default_rng(0)
    energy = rng.random((5, 3)).astype(np.float32) * 4
    ties = np.zeros((5, 5))
    for i in range(4):
        ties[i, i + 1] = ties[i + 1, i] = 0.5
    total = energy.astype(float)
    for _ in range(module.AGREEMENT_STEPS):
        q = np.exp(-total) / np.exp(-total).sum(1, keepdims=True)
        total = np.stack([energy[i] - module.AGREEMENT * sum(ties[i, j] * q[j] for j in range(5)) for i in range(5)])
    np.testing.assert_allclose(module.agreed(module.Energies(energy, csr_array(ties))), total, rtol=1e-4)


def test_a_doubtful_superpixel_goes_with_its_neighbours_and_a_clear_one_does_not():
    points = np.array([[0.0], [9.0], [1.0], [10.0]] * 20, np.float32)
    book = fit_codebook([Descriptors(points)], [(1, 1.0)], 2)
    rows = np.full((9, 1), 0.5, np.float32)
    rows[4] = 9.5
    assert len(set(book.assign(Descriptors(rows, chain(9)), np.arange(2)).classes)) == 2
    # Energies of 0.5 and 1 are overruled by both neighbours, those of 0.5 and 9 are not.
    for other, expected in ((1.0, 0), (20.0, 1)):
        energy = np.array([[0.1, 9], [other, 0.5], [0.1, 9]], np.float32)
        ties = csr_array(np.array([[0, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0]]))
        assert module.agreed(module.Energies(energy, ties)).argmin(1).tolist() == [0, expected, 0]


def test_assignment_goes_by_the_nearest_centre_of_any_member():
    points, _, _ = nested_clouds()
    book = fit_codebook([Descriptors(points)], [(2, 1.0)], 5)
    together = np.array([7, 9, 7, 9, 9])
    classes, _ = book.assign(Descriptors(points), together)
    np.testing.assert_array_equal(classes, together[classes_of(book, points)])


def test_the_suggested_number_is_that_of_clear_clouds():
    points, _, _ = nested_clouds()
    book = fit_codebook([Descriptors(points)], [(2, 1.0)], 32)
    assert book.finest == 32
    assert book.suggested == 2
    points, _ = clouds(sizes=(300, 200, 100, 250, 150))
    assert fit_codebook([Descriptors(points)], [(5, 1.0)], 32).suggested == 5
    assert fit_codebook([Descriptors(np.ones((9, 2), np.float32))], [(2, 1.0)], 4).suggested == 1


@pytest.mark.parametrize("seed", range(6))
def test_merges_are_those_of_a_search_through_all_pairs(seed):
    rng = np.random.default_rng(seed)
    # on a grid many pairs cost alike
    centres = rng.integers(0, 4, (60, 3)).astype(np.float32) if seed % 2 else rng.random((60, 3)).astype(np.float32)
    counts = rng.integers(1, 4, 60)
    means, mass, left = centres.astype(np.float64), counts.astype(np.float64), list(range(60))
    expected = []
    while len(left) > 5:
        pairs = [(p, q) for p in left for q in left if p != q]
        costs = [np.square(means[p] - means[q]).sum(-1) * (mass[p] * mass[q] / (mass[p] + mass[q])) for p, q in pairs]
        (a, b), cost = pairs[int(np.argmin(costs))], min(costs)
        if (mass[b], -b) > (mass[a], -a):
            a, b = b, a
        expected.append((a, b, cost))
        means[a] = (mass[a] * means[a] + mass[b] * means[b]) / (mass[a] + mass[b])
        mass[a] += mass[b]
        left.remove(b)
    merges, found = module._ward(centres, counts, 5)
    assert merges == expected
    np.testing.assert_array_equal(found, means[left])

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from skimage.metrics import variation_of_information as skimage_voi

from spwnet import metrics
from spwnet.errors import InputError

ORACLES = {
    "rand": sk.rand_score,
    "adjusted_rand": sk.adjusted_rand_score,
    "adjusted_mutual_information": sk.adjusted_mutual_info_score,
    "homogeneity": sk.homogeneity_score,
    "completeness": sk.completeness_score,
    "v_measure": sk.v_measure_score,
    "fowlkes_mallows": sk.fowlkes_mallows_score,
    "variation_of_information": lambda truth, predicted: voi_oracle(truth, predicted),
}

PARTITIONS = {
    "one": np.zeros(12, int),
    "singletons": np.arange(12),
    "halves": np.repeat([0, 1], 6),
    "alternating": np.tile([0, 1], 6),
    "one apart": np.repeat([0, 1], [11, 1]),
}


def label_pairs():
    """Two label vectors of one length, few or many labels, with gaps and negative numbers."""
    labels = st.integers(1, 60).flatmap(
        lambda n: st.tuples(
            *[st.integers(1, 40).flatmap(lambda k: hnp.arrays(np.int64, n, elements=st.integers(-k, k))) for _ in "ab"]
        )
    )
    return labels.map(lambda pair: (pair[0] * 1_000_003, pair[1] - 7))


def voi_oracle(truth, predicted):
    """scikit-image's, which takes no negative labels."""
    return sum(skimage_voi(*(np.unique(labels, return_inverse=True)[1] for labels in (truth, predicted))))


def naive_table(a, b):
    return np.array([[np.sum((a == i) & (b == j)) for j in np.unique(b)] for i in np.unique(a)])


def naive_covering(segmentation, annotations):
    covered = size = 0.0
    for truth in annotations:
        for region in np.unique(truth):
            inside = truth == region
            pieces = [segmentation == label for label in np.unique(segmentation)]
            covered += inside.sum() * max((inside & piece).sum() / (inside | piece).sum() for piece in pieces)
            size += inside.sum()
    return covered / size


def is_same_partition(a, b):
    return np.array_equal(a[:, None] == a, b[:, None] == b)


# Counting


@settings(max_examples=60)
@given(label_pairs())
def test_contingency_equals_counting(pair):
    table = metrics.contingency(*pair)
    np.testing.assert_array_equal(table.table, naive_table(*pair))
    np.testing.assert_array_equal(table.predicted, np.unique(pair[0]))
    np.testing.assert_array_equal(table.truth, np.unique(pair[1]))
    np.testing.assert_array_equal(table.predicted_sizes, table.table.sum(1))
    np.testing.assert_array_equal(table.truth_sizes, table.table.sum(0))
    assert table.total == pair[0].size
    assert table.table.dtype == np.int64


@pytest.mark.parametrize(
    "labels",
    [
        np.array([-128, 127, -128], np.int8),
        np.array([0, 255, 255], np.uint8),
        np.array([True, False, True]),
        np.array([-(2**63), 2**63 - 1, 0]),
        np.array([2**63 - 1, 2**63 - 2, 5], np.uint64),
        np.array([2**62, 2**62 + 1, 2**62]),
    ],
    ids=str,
)
def test_contingency_of_extreme_labels(labels):
    table = metrics.contingency(labels, labels)
    np.testing.assert_array_equal(table.predicted, np.unique(labels).astype(np.int64))
    np.testing.assert_array_equal(table.table, np.diag(np.unique(labels, return_counts=True)[1]))


def test_contingency_of_any_shape():
    a = np.random.default_rng(0).integers(0, 4, (3, 4, 5))
    np.testing.assert_array_equal(metrics.contingency(a, a[::-1]).table, naive_table(a, a[::-1]))
    assert metrics.contingency(np.asfortranarray(a), a).counts.size == 4
    assert metrics.contingency(3, 4).table.tolist() == [[1]]


def test_contingency_of_many_regions_needs_no_dense_table():
    labels = np.arange(100_000).reshape(250, 400)
    table = metrics.contingency(labels, labels[::-1])
    assert table.counts.size == labels.size
    assert metrics.score_table(table)["rand"] == 1.0


@pytest.mark.parametrize(
    ("ignore", "expected"), [(None, [[1, 1, 1], [1, 0, 1]]), (0, [[1, 1], [0, 1]]), ((0, 255), [[1]])]
)
def test_ignored_truth_is_left_out(ignore, expected):
    predicted = np.array([1, 1, 1, 2, 2], np.uint8)
    truth = np.array([0, 7, 255, 0, 255], np.uint8)
    assert metrics.contingency(predicted, truth, ignore).table.tolist() == expected


def test_ignoring_what_does_not_occur_changes_nothing():
    a, b = np.array([0, 1, 1]), np.array([0, 0, 1])
    assert metrics.score(a, b, ignore=[255, -1]) == metrics.score(a, b)


def test_pooled_equals_concatenated():
    rng = np.random.default_rng(1)
    frames = [(rng.integers(0, 9, shape), rng.integers(0, 4, shape)) for shape in [(5, 6), (3, 2), (8, 8)]]
    pooled = metrics.pooled(metrics.contingency(*frame, ignore=2) for frame in frames)
    joined = metrics.contingency(*(np.concatenate([f[i].ravel() for f in frames]) for i in (0, 1)), ignore=2)
    for name in ("predicted", "truth", "rows", "columns", "counts"):
        np.testing.assert_array_equal(getattr(pooled, name), getattr(joined, name))


def test_a_frame_of_void_adds_nothing():
    frames = [([1, 2], [0, 0]), ([1, 2], [5, 6])]
    tables = [metrics.contingency(*frame, ignore=0) for frame in frames]
    assert tables[0].table.shape == (0, 0)
    assert metrics.pooled(tables).table.tolist() == [[1, 0], [0, 1]]
    assert metrics.naming(metrics.pooled([])) == {}


def test_user_errors():
    with pytest.raises(InputError, match=r"one shape, but got \(2, 3\) and \(3, 2\); compare"):
        metrics.contingency(np.zeros((2, 3), int), np.zeros((3, 2), int))
    with pytest.raises(InputError, match="integer labels, but got float64; convert"):
        metrics.contingency(np.zeros(3), np.zeros(3, int))
    with pytest.raises(InputError, match=r"labels below 2\*\*63, but got 9223372036854775808; renumber"):
        metrics.contingency(np.zeros(1, int), np.array([2**63], np.uint64))
    for several in (metrics.segmentation_covering, metrics.probabilistic_rand, metrics.mean_variation_of_information):
        with pytest.raises(InputError, match="at least one annotation to compare with, but got none"):
            several(np.zeros(3, int), [])


@pytest.mark.parametrize("metric", [*metrics.METRICS.values(), metrics.covering_parts, metrics.score_table])
def test_no_metric_without_pixels(metric):
    with pytest.raises(InputError, match="one pixel to compare, but got none; check the label images and the values"):
        metric(metrics.contingency(np.zeros(3, int), np.full(3, 3), ignore=3))
    with pytest.raises(InputError, match="one pixel to compare, but got none"):
        metric(metrics.contingency(np.zeros((0, 4), int), np.zeros((0, 4), int)))


# Two segmentations


@pytest.mark.filterwarnings("ignore:The number of unique classes:UserWarning")
@settings(max_examples=80)
@given(label_pairs())
def test_score_equals_oracles(pair):
    predicted, truth = pair
    scores = metrics.score(predicted, truth)
    for name, oracle in ORACLES.items():
        # For equal partitions the oracle divides rounding errors by each other.
        if name == "adjusted_mutual_information" and is_same_partition(predicted, truth):
            assert scores[name] == 1.0
        else:
            assert scores[name] == pytest.approx(oracle(truth, predicted), rel=1e-7, abs=1e-7), name


@pytest.mark.parametrize("a", PARTITIONS)
@pytest.mark.parametrize("b", PARTITIONS)
def test_score_of_degenerate_partitions(a, b):
    scores = metrics.score(PARTITIONS[a], PARTITIONS[b])
    for name, oracle in ORACLES.items():
        if (a, b, name) == ("singletons", "singletons", "adjusted_mutual_information"):
            assert scores[name] == 1.0
        else:
            assert scores[name] == pytest.approx(oracle(PARTITIONS[b], PARTITIONS[a]), abs=1e-9), name
    assert all(type(value) is float and np.isfinite(value) for value in scores.values())


@pytest.mark.parametrize("label", [0, -5])
def test_one_pixel_agrees_with_itself(label):
    scores = metrics.score([label], [3])
    assert scores.pop("variation_of_information") == 0
    assert scores.pop("fowlkes_mallows") == 0  # no pair, as in scikit-learn
    assert set(scores.values()) == {1.0}


@settings(max_examples=40)
@given(label_pairs(), st.integers(0, 2**32 - 1))
def test_score_is_invariant_under_renumbering(pair, seed):
    predicted, truth = pair
    labels, ids = np.unique(predicted, return_inverse=True)
    renumbered = np.random.default_rng(seed).permutation(labels.size)[ids]
    expected = metrics.score(predicted, truth)
    assert metrics.score(renumbered, truth) == pytest.approx(expected, abs=1e-9)


def test_score_names_all_metrics_with_ignored_pixels_left_out():
    rng = np.random.default_rng(2)
    predicted, truth = rng.integers(0, 6, (20, 30)), rng.integers(0, 4, (20, 30))
    scores = metrics.score(predicted, truth, ignore=[1, 3])
    assert list(scores) == list(metrics.METRICS)
    kept = (truth != 1) & (truth != 3)
    assert scores == metrics.score(predicted[kept], truth[kept])


@pytest.mark.parametrize("n_pixels", [5_000, 200_000])
def test_expected_mutual_information_of_regions_of_all_sizes(n_pixels):
    """The sums are cut off where the terms vanish: with large and with small regions nothing may be missing."""
    rng = np.random.default_rng(3)
    predicted = np.minimum(rng.geometric(0.05, n_pixels), 60)
    truth = np.where(rng.random(n_pixels) < 0.3, predicted, (rng.random(n_pixels) ** 6 * 40).astype(int))
    value = metrics.adjusted_mutual_information(metrics.contingency(predicted, truth))
    assert value == pytest.approx(sk.adjusted_mutual_info_score(truth, predicted), rel=1e-8)


def test_large_counts_do_not_overflow():
    sizes = np.array([3_000_000_000, 5_000_000_000])
    ids = np.arange(2)
    table = metrics.Contingency(ids, ids, ids, ids, sizes)
    scores = metrics.score_table(table)
    assert scores.pop("variation_of_information") == 0
    assert list(scores.values()) == pytest.approx([1.0] * len(scores))


# Several annotators


@settings(max_examples=40)
@given(label_pairs(), st.integers(0, 2**32 - 1))
def test_several_annotators_equal_naive_loops(pair, seed):
    segmentation, first = pair
    second = np.random.default_rng(seed).integers(0, 3, first.size)
    annotations = [first, second]
    covering = metrics.segmentation_covering(segmentation, annotations)
    assert covering == pytest.approx(naive_covering(segmentation, annotations))
    pri = metrics.probabilistic_rand(segmentation, (truth for truth in annotations))
    assert pri == pytest.approx(np.mean([sk.rand_score(truth, segmentation) for truth in annotations]))
    voi = metrics.mean_variation_of_information(segmentation, annotations)
    expected = np.mean([voi_oracle(truth, segmentation) for truth in annotations])
    assert voi == pytest.approx(expected, abs=1e-9)


def test_annotators_ignored_pixels_are_left_out():
    rng = np.random.default_rng(6)
    segmentation, truth = rng.integers(0, 5, (9, 8)), rng.integers(0, 4, (9, 8))
    kept = truth != 3
    for several in (metrics.segmentation_covering, metrics.probabilistic_rand, metrics.mean_variation_of_information):
        assert several(segmentation, [truth], ignore=3) == several(segmentation[kept], [truth[kept]])


def test_covering_by_hand():
    segmentation = np.array([0, 0, 0, 1])
    truth = np.array([0, 0, 1, 1])
    # Left region: 2 of the 3 pixels of its union; right region: 1 of 2.
    assert metrics.covering_parts(metrics.contingency(segmentation, truth)) == (pytest.approx(2 * 2 / 3 + 2 / 2), 4)
    # Covering weighs the annotators' regions, so it changes when the two swap roles.
    assert metrics.segmentation_covering(truth, [segmentation]) == pytest.approx((3 * 2 / 3 + 1 / 2) / 4)


def test_covering_is_pooled_by_its_parts():
    rng = np.random.default_rng(4)
    images = [(rng.integers(0, 5, shape), rng.integers(0, 3, shape)) for shape in [(9, 4), (6, 11)]]
    parts = [metrics.covering_parts(metrics.contingency(*image)) for image in images]
    apart = [(a, b + 10 * i) for i, (a, b) in enumerate(images)]
    joined = np.concatenate([(a + 100 * i).ravel() for i, (a, _) in enumerate(apart)])
    whole = naive_covering(joined, [np.concatenate([b.ravel() for _, b in apart])])
    assert sum(n for n, _ in parts) / sum(d for _, d in parts) == pytest.approx(whole)


# Naming


def test_naming_takes_the_largest_overlap_and_the_smaller_class_of_a_tie():
    predicted = np.array([9, 9, 9, 4, 4, 5, 5, 7])
    truth = np.array([1, 2, 2, 3, 1, 255, 255, 0])
    names = metrics.naming(metrics.contingency(predicted, truth, ignore=255))
    assert names == {4: 1, 7: 0, 9: 2}  # 5 lies on ignored pixels only: void


def test_mean_iou_by_hand():
    predicted = np.array([4, 4, 4, 9, 9, 6])
    truth = np.array([0, 0, 1, 1, 1, 0])
    mean, ious = metrics.mean_iou(metrics.contingency(predicted, truth), {4: 0, 9: 1})
    assert ious == {0: pytest.approx(2 / 4), 1: pytest.approx(2 / 3)}  # 6 has no name: wrong for class 0
    assert mean == pytest.approx((2 / 4 + 2 / 3) / 2)


def test_mean_iou_without_names_equals_jaccard():
    rng = np.random.default_rng(5)
    predicted, truth = rng.integers(0, 4, 300), rng.integers(0, 4, 300)
    mean, ious = metrics.mean_iou(metrics.contingency(predicted, truth))
    np.testing.assert_allclose(list(ious.values()), sk.jaccard_score(truth, predicted, average=None))
    assert mean == pytest.approx(sk.jaccard_score(truth, predicted, average="macro"))


def test_mean_iou_over_given_classes():
    table = metrics.contingency([0, 0, 1, 2], [0, 0, 1, 1])
    mean, ious = metrics.mean_iou(table, classes=[0, 2, 3])
    assert ious[0] == 1.0
    assert ious[2] == 0.0  # predicted but never true
    assert np.isnan(ious[3])
    assert mean == 0.5
    with pytest.raises(InputError, match=r"pixels of the classes \[8, 9\], but got \[0, 1\]; check the class ids"):
        metrics.mean_iou(table, classes=(8, 9))
    for classes in (None, [1]):
        with pytest.raises(InputError, match="but got none; check the class ids and the values to ignore"):
            metrics.mean_iou(metrics.contingency([1], [0], ignore=0), classes=classes)


@settings(max_examples=40)
@given(label_pairs())
def test_naming_protocol_equals_a_naive_loop(pair):
    predicted, truth = pair
    half = predicted.size // 2 + 1
    names = metrics.naming(metrics.contingency(predicted[:half], truth[:half]))
    naive = {}
    for label in np.unique(predicted[:half]):
        below = truth[:half][predicted[:half] == label]
        naive[label] = max(np.unique(below), key=lambda value: np.sum(below == value))
    assert names == naive
    _, ious = metrics.mean_iou(metrics.contingency(predicted, truth), names)
    void = -(10**15)
    named = np.array([naive.get(label, void) for label in predicted])
    for label, iou in ious.items():
        union = (named == label) | (truth == label)
        assert iou == pytest.approx(((named == label) & (truth == label)).sum() / union.sum())
    assert list(ious) == np.unique(truth).tolist()

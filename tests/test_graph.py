from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from skimage.segmentation import watershed

from spwnet.geometry import half_neighbourhood
from spwnet.graph import adjacent_pairs, build_graph
from spwnet.superpixels import superpixels_from_labels

shapes = st.one_of(st.tuples(st.integers(1, 7), st.integers(1, 7)), st.tuples(*[st.integers(1, 4)] * 3))
label_images = shapes.flatmap(lambda shape: arrays(np.int64, shape, elements=st.integers(0, 9)))


def make(labels, channels=3):
    image = np.random.default_rng(1).random((*labels.shape, channels))
    superpixels = superpixels_from_labels(labels, labels.shape)
    return build_graph(superpixels, image), superpixels, image


def naive_pairs(labels):
    """Every pixel against every pixel at most one step away in each axis."""
    pairs = set()
    for p in np.ndindex(labels.shape):
        for q in np.ndindex(labels.shape):
            near = max(abs(a - b) for a, b in zip(p, q, strict=True)) == 1
            if near and labels[p] < labels[q]:
                pairs.add((int(labels[p]), int(labels[q])))
    return pairs


@given(label_images)
@settings(max_examples=60)
def test_edges_equal_a_naive_search_in_2d_and_3d(labels):
    graph, superpixels, image = make(labels)
    first, second, _ = adjacent_pairs(superpixels.labels, superpixels.count)
    pairs = naive_pairs(superpixels.labels)
    assert set(zip(first.tolist(), second.tolist(), strict=True)) == pairs
    edges = list(zip(*graph.edges.tolist(), strict=True))
    assert edges == sorted(pairs | {(j, i) for i, j in pairs})
    means = [image[superpixels.labels == i].mean(0) for i in range(superpixels.count)]
    expected = [np.linalg.norm(means[i] - means[j]) for i, j in edges]
    np.testing.assert_allclose(graph.distances.numpy(), expected, rtol=1e-5, atol=1e-7)


@given(label_images)
@settings(max_examples=40)
def test_contacts_count_the_pixels_that_touch(labels):
    graph, superpixels, _ = make(labels)
    first, second, counts = adjacent_pairs(superpixels.labels, superpixels.count)
    naive = Counter()
    for p in np.ndindex(labels.shape):
        for q in np.ndindex(labels.shape):
            a, b = superpixels.labels[p], superpixels.labels[q]
            if max(abs(x - y) for x, y in zip(p, q, strict=True)) == 1 and a < b:
                naive[int(a), int(b)] += 1
    assert dict(zip(zip(first.tolist(), second.tolist(), strict=True), counts.tolist(), strict=True)) == naive
    expected = [naive[min(pair), max(pair)] for pair in zip(*graph.edges.tolist(), strict=True)]
    assert graph.contacts.tolist() == expected
    assert graph.sizes.tolist() == np.bincount(superpixels.labels.ravel()).tolist()
    assert (graph.shape, graph.count) == (labels.shape, superpixels.count)


@given(label_images, st.data())
@settings(max_examples=40)
def test_a_part_has_the_superpixels_and_edges_in_it(labels, data):
    graph, superpixels, _ = make(labels)
    box = tuple(
        slice(*sorted(data.draw(st.lists(st.integers(0, n), min_size=2, max_size=2, unique=True))))
        for n in labels.shape
    )
    pixels = np.arange(labels.size).reshape(labels.shape)[box]
    part, nodes = graph.part(torch.from_numpy(pixels))
    inside = superpixels.labels[box]
    assert nodes.tolist() == np.unique(inside).tolist()
    assert part.shape == inside.shape
    np.testing.assert_array_equal(nodes[part.labels].numpy(), inside.ravel())
    assert part.sizes.tolist() == np.unique(inside, return_counts=True)[1].tolist()
    np.testing.assert_array_equal(part.means, graph.means[nodes])
    there = set(nodes.tolist())
    whole = zip(*graph.edges.tolist(), graph.contacts.tolist(), strict=True)
    expected = [(a, b, contact) for a, b, contact in whole if {a, b} <= there]
    assert list(zip(*nodes[part.edges].tolist(), part.contacts.tolist(), strict=True)) == expected


def test_full_neighbourhood():
    assert len(half_neighbourhood(2)) == 4
    assert len(half_neighbourhood(3)) == 13
    diagonal = np.array([[0, 1], [2, 0]])
    assert naive_pairs(diagonal) == {(0, 1), (0, 2), (1, 2)}


@given(label_images, st.integers(1, 5))
@settings(max_examples=40)
def test_pooling_is_the_mean_of_each_superpixel(labels, channels):
    graph, superpixels, _ = make(labels)
    features = np.random.default_rng(2).standard_normal((channels, *labels.shape))
    pooled = graph.pool(torch.from_numpy(features)).numpy()
    for i in range(superpixels.count):
        np.testing.assert_allclose(pooled[i], features[:, superpixels.labels == i].mean(1), atol=1e-12)


@pytest.mark.parametrize("mode", ["argmax_of_mean", "max_count_of_argmax"])
def test_labels_of_watershed_numbering_equal_a_loop(mode, rng):
    image = rng.random((30, 40))
    labels = watershed(image)[::-1]  # neither from 0 nor in scan order
    graph, superpixels, _ = make(labels)
    features = torch.from_numpy(rng.standard_normal((6, 30, 40)))
    nodes = graph.node_labels(features, graph.pool(features), mode)
    for i in range(superpixels.count):
        inside = features.numpy()[:, superpixels.labels == i]
        votes = np.bincount(inside.argmax(0), minlength=6)
        assert nodes[i] == (inside.mean(1).argmax() if mode == "argmax_of_mean" else votes.argmax())


def test_where_classes_tie_the_smallest_wins():
    graph, _, _ = make(np.array([[0, 0, 0, 0, 1]]))
    features = torch.zeros(3, 1, 5)
    for pixel, k in enumerate((2, 1, 1, 2, 0)):
        features[k, 0, pixel] = 1
    assert graph.max_count_of_argmax(features).tolist() == [1, 0]
    assert graph.argmax_of_mean(graph.pool(features)).tolist() == [1, 0]


def test_weights_equal_their_equations(rng):
    graph, _, _ = make(rng.integers(0, 12, (9, 10)))
    source, distances = graph.edges[0].numpy(), graph.distances.numpy()
    for tau in (-2.0, 0.5, 7.0):
        np.testing.assert_allclose(graph.cut_weights(tau), np.exp(tau * distances), rtol=1e-5)
        logits = np.exp(tau * distances.astype(float))
        sums = np.array([logits[source == i].sum() for i in source])
        np.testing.assert_allclose(graph.continuity_weights(tau), logits / sums, rtol=1e-4)


@given(st.permutations(range(8)))
@settings(max_examples=20)
def test_renumbering_superpixels_renumbers_the_graph(order):
    labels = np.arange(64).reshape(8, 8) // 8
    plain, _, _ = make(labels)
    renamed, _, _ = make(np.array(order)[labels])
    order = torch.tensor(order)

    def dense(graph, values):
        return torch.zeros(8, 8).index_put((graph.edges[0], graph.edges[1]), values)

    for name, tau in (("cut_weights", -2.0), ("continuity_weights", 3.0)):
        expected = dense(plain, getattr(plain, name)(tau))
        assert torch.allclose(dense(renamed, getattr(renamed, name)(tau))[order][:, order], expected, atol=1e-6)


def test_continuity_weights_of_each_superpixel_add_up_to_one_even_at_extreme_temperatures(rng):
    graph, _, _ = make(rng.integers(0, 20, (12, 12)))
    for tau in (0.0, 1e4, -1e4):
        weights = graph.continuity_weights(tau)
        sums = torch.zeros(graph.count).index_add(0, graph.edges[0], weights)
        assert torch.allclose(sums, torch.ones(graph.count), atol=1e-5)


def test_one_superpixel_has_no_edges():
    graph, _, _ = make(np.zeros((5, 5), int))
    assert graph.edges.shape == (2, 0)
    assert graph.cut_weights(-1.0).shape == graph.continuity_weights(1.0).shape == (0,)
    assert graph.pool(torch.ones(2, 5, 5)).tolist() == [[1, 1]]


@given(label_images, st.lists(st.integers(1, 3), min_size=3, max_size=3), st.booleans(), st.integers(1, 12))
@settings(max_examples=60)
def test_averaging_counts_cells_by_the_pixels_in_them(labels, sides, alike, channels):
    graph, superpixels, _ = make(labels)
    sides = [sides[0]] * labels.ndim if alike else sides[: labels.ndim]
    reduced = tuple(-(-size // side) for size, side in zip(labels.shape, sides, strict=True))
    maps = np.random.default_rng(2).standard_normal((channels, *reduced)).astype(np.float32)
    wide = maps
    for axis, (size, side) in enumerate(zip(labels.shape, sides, strict=True), start=1):
        wide = np.repeat(wide, side, axis).take(range(size), axis)
    averages = graph.average(torch.from_numpy(maps), sides[0] if alike else sides)
    assert averages.dtype == np.float32
    for i in range(superpixels.count):
        np.testing.assert_allclose(averages[i], wide[:, superpixels.labels == i].mean(1), rtol=1e-4, atol=1e-5)

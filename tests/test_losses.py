from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy.special import softmax

from spwnet import losses
from spwnet.graph import build_graph
from spwnet.superpixels import superpixels_from_labels

LABELS = np.random.default_rng(0).integers(0, 12, (10, 14))
IMAGE = np.random.default_rng(1).random((10, 14, 3))
FEATURES = np.random.default_rng(2).standard_normal((4, 10, 14))


def graph_of(labels=LABELS, image=IMAGE):
    graph = build_graph(superpixels_from_labels(labels, labels.shape), image)
    return graph, graph.cut_weights(-2.0).double(), graph.continuity_weights(1.0).double()


def matrix(graph, values):
    return torch.zeros(graph.count, graph.count, dtype=torch.double).index_put(tuple(graph.edges), values).numpy()


def test_superpixel_losses_equal_dense_matrices():
    graph, cut, continuity = graph_of()
    pooled = graph.pool(torch.from_numpy(FEATURES))
    F, A, C = pooled.numpy(), matrix(graph, cut), matrix(graph, continuity)
    p = softmax(F, axis=1)
    expected = 1 - np.mean([p[:, k] @ A @ p[:, k] / (A.sum(1) @ p[:, k]) for k in range(4)])
    np.testing.assert_allclose(losses.normalised_cut(pooled, graph.edges, cut).item(), expected, rtol=1e-7)
    expected = np.abs(F - C @ F).mean()
    np.testing.assert_allclose(losses.continuity(pooled, graph.edges, continuity).item(), expected, rtol=1e-9)


def test_similarity_equals_the_definition(rng):
    labels = rng.integers(0, 4, 140)
    log_p = np.log(softmax(FEATURES.reshape(4, -1), axis=0))
    expected = -log_p[labels, np.arange(140)].mean()
    ours = losses.similarity(torch.from_numpy(FEATURES), torch.from_numpy(labels))
    np.testing.assert_allclose(ours.item(), expected)


def test_reconstruction(rng):
    a, b = rng.random((2, 3, 5)), rng.random((2, 3, 5))
    ours = losses.reconstruction(torch.from_numpy(a), torch.from_numpy(b))
    np.testing.assert_allclose(ours.item(), np.square(a - b).mean())


def test_cut_of_two_cliques_in_closed_form():
    """Two cliques of n joined by one edge of weight w: L = w / (n (n - 1) + w) when each is one class."""
    n, w = 5, 0.3
    pairs = [(i, j) for clique in (range(n), range(n, 2 * n)) for i, j in itertools.permutations(clique, 2)]
    edges = torch.tensor([*pairs, (0, n), (n, 0)]).T
    weights = torch.tensor([1.0] * len(pairs) + [w, w], dtype=torch.double)
    pooled = torch.full((2 * n, 2), -40.0, dtype=torch.double)
    pooled[:n, 0] = pooled[n:, 1] = 40
    loss = losses.normalised_cut(pooled, edges, weights)
    np.testing.assert_allclose(loss.item(), w / (n * (n - 1) + w), rtol=1e-6)


def dense_cut_by_loops(p, image, radius=5, sigma_colour=10.0, sigma_position=4.0):
    n_classes, height, width = p.shape
    within, total = np.zeros(n_classes), np.zeros(n_classes)
    for a in np.ndindex(height, width):
        for b in np.ndindex(height, width):
            gap = (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
            if gap >= radius**2:
                continue
            colour = np.square(255 * (image[:, a[0], a[1]] - image[:, b[0], b[1]])).sum()
            w = np.exp(-colour / sigma_colour**2 - gap / sigma_position**2)
            within += w * p[:, a[0], a[1]] * p[:, b[0], b[1]]
            total += w * p[:, a[0], a[1]]
    return 1 - np.mean(within / total)


def test_dense_cut_equals_all_pairs_and_its_weights_discriminate(rng):
    image = rng.random((3, 9, 8)) * 0.1
    p = softmax(rng.standard_normal((3, 9, 8)), axis=0)
    weights, offsets = losses.dense_cut_weights(torch.from_numpy(image))
    ours = losses.dense_cut(torch.from_numpy(p), weights, offsets)
    np.testing.assert_allclose(ours.item(), dense_cut_by_loops(p, image), rtol=1e-6)
    assert weights.min() < 0.01
    assert all(np.hypot(*offset) < 5 for offset in offsets)


@pytest.mark.parametrize("shape", [(side, 40) for side in range(1, 6)] + [(40, 2), (3, 3)])
def test_dense_cut_of_thin_images(shape):
    rng = np.random.default_rng(0)
    image, p = rng.random((1, *shape), dtype=np.float32) / 20, rng.dirichlet(np.ones(3), shape).transpose(2, 0, 1)
    weights, offsets = losses.dense_cut_weights(torch.from_numpy(image))
    found = losses.dense_cut(torch.from_numpy(p.astype(np.float32)), weights, offsets)
    assert found.item() == pytest.approx(dense_cut_by_loops(p, image), abs=1e-4)


@pytest.mark.parametrize(
    "part", [(slice(0, 9), slice(0, 9)), (slice(2, 12), slice(5, 14)), (slice(3, 5), slice(0, 14))]
)
def test_cropped_weights_are_those_of_the_part_alone(rng, part):
    image = torch.from_numpy(rng.random((3, 12, 14), dtype=np.float32) / 20)
    weights, offsets = losses.cropped_cut_weights(*losses.dense_cut_weights(image), part)
    expected, of = losses.dense_cut_weights(image[(slice(None), *part)].contiguous())
    assert offsets == of
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=0)
    assert expected.count_nonzero() > 0


def test_dense_continuity_in_2d_and_3d(rng):
    f = rng.standard_normal((2, 6, 7))
    expected = (np.abs(np.diff(f, axis=1)).mean() + np.abs(np.diff(f, axis=2)).mean()) / 2
    np.testing.assert_allclose(losses.dense_continuity(torch.from_numpy(f)).item(), expected)
    g = rng.standard_normal((2, 4, 5, 6))
    expected = sum(np.abs(np.diff(g, axis=axis)).mean() for axis in (1, 2, 3)) / 3
    np.testing.assert_allclose(losses.dense_continuity(torch.from_numpy(g)).item(), expected)
    assert losses.dense_continuity(torch.ones(2, 1, 1)).item() == 0


def test_constant_features_have_no_continuity_loss():
    graph, _, continuity = graph_of()
    constant = torch.full((graph.count, 4), 1.7, dtype=torch.double)
    assert losses.continuity(constant, graph.edges, continuity).item() == pytest.approx(0, abs=1e-6)
    assert losses.dense_continuity(torch.full((3, 5, 5), 2.0)).item() == 0


def test_permuting_classes_changes_no_loss():
    graph, cut, continuity = graph_of()
    for order in itertools.islice(itertools.permutations(range(4)), 1, 6):
        a, b = (graph.pool(torch.from_numpy(f)) for f in (FEATURES, FEATURES[list(order)]))
        for loss, weights in ((losses.normalised_cut, cut), (losses.continuity, continuity)):
            np.testing.assert_allclose(loss(a, graph.edges, weights), loss(b, graph.edges, weights), rtol=1e-12)


def test_renumbering_superpixels_changes_no_loss():
    a = graph_of()
    b = graph_of(np.random.default_rng(3).permutation(12)[LABELS] * 7 + 3)
    for index, loss in ((1, losses.normalised_cut), (2, losses.continuity)):
        values = [loss(g[0].pool(torch.from_numpy(FEATURES)), g[0].edges, g[index]).item() for g in (a, b)]
        np.testing.assert_allclose(*values, rtol=1e-6)


def test_an_empty_class_or_a_single_superpixel_gives_no_nan():
    graph, cut, _ = graph_of()
    pooled = torch.zeros(graph.count, 3, dtype=torch.double)
    pooled[:, 1] = 4000  # the softmax of the others is exactly zero
    pooled.requires_grad_()
    loss = losses.normalised_cut(pooled, graph.edges, cut)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(pooled.grad).all()

    alone, cut, continuity = graph_of(np.zeros((4, 4), int), IMAGE[:4, :4])
    one = torch.randn(1, 3, dtype=torch.double, requires_grad=True)
    loss = losses.normalised_cut(one, alone.edges, cut) + losses.continuity(one, alone.edges, continuity)
    loss.backward()
    assert torch.isfinite(loss)
    assert losses.continuity(one, alone.edges, continuity).item() == 0

    p = torch.zeros(2, 6, 6, dtype=torch.double)
    p[0] = 1
    weights, offsets = losses.dense_cut_weights(torch.from_numpy(IMAGE[:6, :6].transpose(2, 0, 1)))
    assert torch.isfinite(losses.dense_cut(p, weights, offsets))


def test_gradients(rng):
    graph, cut, continuity = graph_of(LABELS[:5, :6], IMAGE[:5, :6])
    f = torch.from_numpy(FEATURES[:3, :5, :6]).requires_grad_()
    labels = torch.from_numpy(rng.integers(0, 3, 30))
    target = torch.randn(3, 5, 6, dtype=torch.double)
    weights, offsets = losses.dense_cut_weights(torch.from_numpy(IMAGE[:5, :6].transpose(2, 0, 1)), radius=3)
    for loss in (
        lambda f: losses.normalised_cut(graph.pool(f), graph.edges, cut),
        lambda f: losses.continuity(graph.pool(f), graph.edges, continuity),
        lambda f: losses.similarity(f, labels),
        lambda f: losses.reconstruction(f, target),
        lambda f: losses.dense_cut(f.softmax(0), weights, offsets),
        losses.dense_continuity,
    ):
        assert torch.autograd.gradcheck(loss, (f,))


def test_weighted_sum():
    terms = {"a": torch.tensor(2.0), "b": torch.tensor(3.0)}
    assert losses.weighted_sum(terms, {"a": 0.5, "b": 2.0, "unused": 9.0}).item() == 7

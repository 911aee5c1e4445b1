from __future__ import annotations

import numpy as np
import pytest
import torch

from spwnet import losses
from spwnet.graph import build_graph
from spwnet.superpixels import superpixels_from_labels
from tests.reference.published import load

GOLDEN = load("superpixel_graph_and_losses.npz")
IMAGE = GOLDEN["image"]


@pytest.fixture
def graph():
    superpixels = superpixels_from_labels(GOLDEN["superpixels"], IMAGE.shape[:2])
    return build_graph(superpixels, IMAGE)


@pytest.fixture
def features():
    return torch.from_numpy(GOLDEN["features"]).requires_grad_()


def dense(graph, values):
    matrix = torch.zeros(graph.count, graph.count)
    matrix[graph.edges[0], graph.edges[1]] = values
    return matrix.numpy()


def check(loss, features, name):
    loss.backward()
    np.testing.assert_allclose(loss.item(), GOLDEN[f"loss/{name}"], rtol=1e-5)
    expected = GOLDEN[f"grad/{name}"]
    np.testing.assert_allclose(features.grad.numpy(), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_pooled_means_and_labels(graph, features):
    pooled = graph.pool(features)
    np.testing.assert_allclose(pooled.detach().numpy().T, GOLDEN["features_mean"], rtol=1e-5, atol=1e-6)
    for mode in ("argmax_of_mean", "max_count_of_argmax"):
        labels = graph.node_labels(features, pooled, mode)[graph.labels].reshape(IMAGE.shape[:2])
        np.testing.assert_array_equal(labels.numpy(), GOLDEN[f"labels_{mode}"])


@pytest.mark.parametrize("tau", [-1, -10])
def test_cut_adjacency(graph, tau):
    np.testing.assert_allclose(
        dense(graph, graph.cut_weights(tau)), GOLDEN[f"cut_adjacency/tau_cut={tau}"], rtol=1e-5, atol=1e-8
    )


@pytest.mark.parametrize("tau", [-1, 0, 2])
def test_continuity_adjacency(graph, tau):
    np.testing.assert_allclose(
        dense(graph, graph.continuity_weights(tau)), GOLDEN[f"continuity_adjacency/tau_con={tau}"], rtol=1e-5, atol=1e-8
    )


def test_cut(graph, features):
    loss = losses.normalised_cut(graph.pool(features), graph.edges, graph.cut_weights(-1))
    check(loss, features, "cut/tau_cut=-1")


@pytest.mark.parametrize("mode", ["argmax_of_mean", "max_count_of_argmax"])
def test_similarity(graph, features, mode):
    labels = graph.node_labels(features, graph.pool(features), mode)
    check(losses.similarity(features, labels[graph.labels]), features, f"similarity/{mode}")


def test_continuity(graph, features):
    loss = losses.continuity(graph.pool(features), graph.edges, graph.continuity_weights(2))
    check(loss, features, "continuity/tau_con=2")


def test_dense_similarity(features):
    labels = features.detach().flatten(1).argmax(0)
    check(losses.similarity(features, labels), features, "dense_similarity")


def test_dense_continuity(features):
    check(losses.dense_continuity(features), features, "dense_continuity")

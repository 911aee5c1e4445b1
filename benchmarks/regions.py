"""Pooling with labels, and the region adjacency graph, against the plain loop over superpixels."""

from __future__ import annotations

import time

import numpy as np
import torch

from spwnet.graph import build_graph
from spwnet.superpixels import slic

HEIGHT, WIDTH, CLASSES, COUNT = 352, 624, 32, 14_700
REPEATS = 5
LOOP_SHARE = 0.02
"""Share of the superpixels that the plain loop is run on; its time is proportional to their number."""


def texture() -> np.ndarray:
    """Smooth blobs with noise, RGB in 0…1."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    blobs = np.stack([gaussian_filter(rng.standard_normal((HEIGHT, WIDTH)), 12) for _ in range(3)], axis=-1)
    image = blobs / np.abs(blobs).max() * 0.4 + 0.5 + rng.normal(0, 0.02, blobs.shape)
    return np.clip(image, 0, 1).astype(np.float32)


def best(function) -> float:
    function()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def loop_pooling(features: torch.Tensor, labels: torch.Tensor, count: int) -> float:
    """Mask each superpixel, average, take its label; forward and backward. Returns seconds for all superpixels."""
    some = max(1, int(count * LOOP_SHARE))
    start = time.perf_counter()
    means = torch.stack([features[:, labels == i].mean(1) for i in range(some)])
    nodes = means.argmax(1)
    out = torch.zeros_like(labels)
    for i in range(some):
        out[labels == i] = nodes[i]
    means.square().sum().backward()
    return (time.perf_counter() - start) * count / some


def loop_graph(labels: np.ndarray, image: np.ndarray, count: int) -> float:
    """Dilate each superpixel to find its neighbours, average its colour. Returns seconds for all superpixels."""
    from scipy.ndimage import binary_dilation

    some = max(1, int(count * LOOP_SHARE))
    start = time.perf_counter()
    for i in range(some):
        mask = labels == i
        np.unique(labels[binary_dilation(mask, np.ones((3, 3))) & ~mask])
        image[mask].mean(0)
    return (time.perf_counter() - start) * count / some


def main() -> None:
    image = texture()
    superpixels = slic(image, COUNT, rgb=True)
    labels = torch.from_numpy(superpixels.labels.astype(np.int64))
    stored = torch.randn(1, CLASSES, HEIGHT, WIDTH).to(memory_format=torch.channels_last)

    graph = build_graph(superpixels, image)

    def pool() -> None:
        features = stored.clone(memory_format=torch.preserve_format).requires_grad_()
        pooled = graph.pool(features[0])
        graph.node_labels(features[0], pooled, "argmax_of_mean")[graph.labels]
        pooled.square().sum().backward()

    ours_pool = best(pool)
    plain_pool = loop_pooling(stored[0].clone().requires_grad_(), labels, superpixels.count)
    ours_graph = best(lambda: build_graph(superpixels, image))
    plain_graph = loop_graph(superpixels.labels, image, superpixels.count)

    print(f"{CLASSES}×{HEIGHT}×{WIDTH}, {superpixels.count} superpixels, {torch.get_num_threads()} threads\n")
    print("| | ours, s | plain loop, s | ratio |")
    print("| --- | --- | --- | --- |")
    print(f"| pooling, labels, gradient | {ours_pool:.3f} | {plain_pool:.1f} | {plain_pool / ours_pool:.0f} |")
    print(f"| region adjacency graph | {ours_graph:.3f} | {plain_graph:.1f} | {plain_graph / ours_graph:.0f} |")
    print(f"\nThe plain loop ran on {LOOP_SHARE:.0%} of the superpixels; its time is scaled up.")

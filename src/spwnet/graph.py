"""The region adjacency graph of superpixels, and the one place that pools pixels into them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from spwnet.geometry import half_neighbourhood, shifted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_array

    from spwnet.superpixels import Superpixels


FEW_MAPS = 8
"""So many maps of whole pixels are added up one by one faster than by a sparse matrix."""


@dataclass(frozen=True)
class RegionGraph:
    """Superpixels as nodes, adjacent superpixels as edges.

    Attributes
    ----------
    shape : tuple of int
        Of the image.
    labels : (P,) int64 tensor
        Superpixel of each pixel, in the order of the flattened image.
    sizes : (N,) float32 tensor
        Pixels in each superpixel.
    edges : (2, E) int64 tensor
        Adjacent superpixels (i, j), each pair in both directions, sorted by i then j.
    means : (N, C) float32 tensor
        Mean colour of each superpixel.
    contacts : (E,) float32 tensor
        Pairs of adjacent pixels, one in i and one in j: the length of the boundary between them.
    """

    shape: tuple[int, ...]
    labels: Tensor
    sizes: Tensor
    edges: Tensor
    means: Tensor
    contacts: Tensor

    @property
    def count(self) -> int:
        """Number of superpixels N."""
        return self.sizes.shape[0]

    @cached_property
    def distances(self) -> Tensor:
        """d_ij of each edge, the Euclidean distance of the mean colours of i and j, (E,) float32."""
        return (self.means[self.edges[0]] - self.means[self.edges[1]]).square().sum(1).sqrt()

    def part(self, pixels: Tensor) -> tuple[RegionGraph, Tensor]:
        """Return the graph of a part of the image: the superpixels in it and the edges between them.

        Parameters
        ----------
        pixels : (*spatial) int64 tensor
            Places of the part's pixels in the order of the flattened image.

        Returns
        -------
        graph : RegionGraph
            Of n superpixels, its labels in the order of the flattened part.
        nodes : (n,) int64 tensor
            Which superpixels of the whole they are.
        """
        nodes, labels, counts = torch.unique(self.labels[pixels.flatten()], return_inverse=True, return_counts=True)
        place = self.edges.new_full((self.count,), -1)
        place[nodes] = torch.arange(len(nodes), device=place.device)
        edges = place[self.edges]
        inside = (edges >= 0).all(0)
        part = RegionGraph(
            shape=tuple(pixels.shape),
            labels=labels,
            sizes=counts.to(self.sizes.dtype),
            edges=edges[:, inside],
            means=self.means[nodes],
            contacts=self.contacts[inside],
        )
        return part, nodes

    def pool(self, features: Tensor) -> Tensor:
        """Average over each superpixel: F_i = mean of f over {p : s_p = i}.

        Parameters
        ----------
        features : (K, *spatial) float tensor

        Returns
        -------
        (N, K) tensor of the input's type
        """
        # Rows are pixels: for channels-last features this is a view, and each pixel adds one contiguous row.
        rows = features.flatten(1).T
        sums = rows.new_zeros((self.count, rows.shape[1])).index_add(0, self.labels, rows)
        return sums / self.sizes[:, None].to(rows.dtype)

    def average(self, maps: Tensor, reduction: int | Sequence[int] = 1) -> NDArray[np.float32]:
        """Average maps over each superpixel, as `pool` does but on the processor and without gradient.

        Parameters
        ----------
        maps : (K, *reduced) float32 tensor
            A value for each cell of `reduction` pixels a side.
        reduction : int or sequence of int
            One for all axes, or one for each.

        Returns
        -------
        (N, K) float32 array
            A cell counts by how many pixels of the superpixel are in it.
        """
        from scipy.sparse import csr_array

        owners = self.labels.cpu().numpy()
        sides = [reduction] * len(self.shape) if isinstance(reduction, int) else reduction
        if set(sides) == {1} and len(maps) <= FEW_MAPS:
            sums = [np.bincount(owners, one, self.count) for one in maps.flatten(1).cpu().numpy()]
            means: NDArray[np.float32] = (np.stack(sums, 1) / self.sizes.cpu().numpy()[:, None]).astype(np.float32)
            return means
        # The axis of the maps to the end before the others are joined: both at once would turn memory over twice.
        rows = maps.movedim(0, -1).reshape(-1, len(maps)).contiguous().cpu().numpy()
        cells = np.zeros((), np.int32)
        for size, side in zip(self.shape, sides, strict=True):
            cells = cells[..., None] * -(-size // side) + (np.arange(size, dtype=np.int32) // side)
        weights = (1 / self.sizes.cpu().numpy())[owners]
        shares = csr_array((weights, (owners, cells.ravel())), shape=(self.count, len(rows)))
        averages: NDArray[np.float32] = shares @ rows
        return averages

    def argmax_of_mean(self, pooled: Tensor) -> Tensor:
        """Return (N,) labels arg max_k F_ik, without gradient."""
        return pooled.detach().argmax(1)

    def max_count_of_argmax(self, features: Tensor) -> Tensor:
        """Majority over each superpixel of its pixels' arg max_k f, the smallest class where two tie.

        Parameters
        ----------
        features : (K, *spatial) float tensor

        Returns
        -------
        (N,) int64 tensor, without gradient
        """
        n_classes = features.shape[0]
        winners = features.detach().flatten(1).argmax(0)
        votes = torch.bincount(self.labels * n_classes + winners, minlength=self.count * n_classes)
        return votes.view(self.count, n_classes).argmax(1)

    def node_labels(self, features: Tensor, pooled: Tensor, mode: str) -> Tensor:
        """Label of each superpixel, (N,) int64: the majority of its pixels, or else the arg max of its mean."""
        return self.max_count_of_argmax(features) if mode == "max_count_of_argmax" else self.argmax_of_mean(pooled)

    def cut_weights(self, tau: float) -> Tensor:
        """Return A_ij = exp(τ·d_ij) for each edge, (E,)."""
        return torch.exp(tau * self.distances)

    def continuity_weights(self, tau: float) -> Tensor:
        """Return C_ij = softmax over the neighbours j of i of (τ·d_ij), for each edge, (E,)."""
        source = self.edges[0]
        logits = tau * self.distances
        highest = logits.new_full((self.count,), -torch.inf).scatter_reduce(0, source, logits, "amax")
        weights = torch.exp(logits - highest[source])
        sums = weights.new_zeros(self.count).index_add(0, source, weights)
        return weights / sums[source]


def build_graph(superpixels: Superpixels, unit: NDArray[Any], device: torch.device | str = "cpu") -> RegionGraph:
    """Join superpixels that touch, corners included (8 neighbours in 2-D, 26 in 3-D).

    Parameters
    ----------
    superpixels : Superpixels
    unit : (*spatial, C) float array
        The image whose mean colours give the distances d_ij; any number of channels.
    device : torch device
        Where the tensors are made.

    Returns
    -------
    RegionGraph
    """
    channels = np.asarray(unit).reshape(superpixels.labels.size, -1).T
    return joined(superpixels, _adjacency(superpixels.labels, superpixels.count), channels, device)


def joined(
    superpixels: Superpixels, pairs: csr_array, channels: NDArray[Any], device: torch.device | str = "cpu"
) -> RegionGraph:
    """Make a graph of superpixels that are known to touch.

    Parameters
    ----------
    superpixels : Superpixels
    pairs : (N, N) sparse array
        Contact of each i and j, in one of its two places.
    channels : (C, P) array
        Colours of the pixels.
    device : torch device
    """
    count, flat = superpixels.count, superpixels.labels.reshape(-1)
    sizes = np.bincount(flat, minlength=count)
    means = np.stack([np.bincount(flat, weights=c, minlength=count) / sizes for c in channels], axis=1)
    both = pairs + pairs.T
    edges = np.stack([np.repeat(np.arange(count), np.diff(both.indptr)), both.indices.astype(np.int64)])
    return RegionGraph(
        shape=superpixels.labels.shape,
        labels=torch.from_numpy(flat.astype(np.int64)).to(device),
        sizes=torch.from_numpy(sizes.astype(np.float32)).to(device),
        edges=torch.from_numpy(edges).to(device),
        means=torch.from_numpy(means.astype(np.float32)).to(device),
        contacts=torch.from_numpy(both.data.astype(np.float32)).to(device),
    )


def adjacent_pairs(
    labels: NDArray[np.int32], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Pairs (i, j), i < j, of labels 0 … `count` − 1 that touch, in ascending order, and the pixel pairs of each."""
    pairs = _adjacency(labels, count)
    first = np.repeat(np.arange(count), np.diff(pairs.indptr))
    return first, pairs.indices.astype(np.int64), pairs.data


def _adjacency(labels: NDArray[np.int32], count: int) -> csr_array:
    """Pixel pairs between each i and j > i that touch, (N, N): adding up in a sparse matrix is faster than sorting."""
    from scipy.sparse import csr_array

    lower, upper = [], []
    for offset in half_neighbourhood(labels.ndim):
        here, there = shifted(labels.shape, offset)
        a, b = labels[here], labels[there]
        apart = a != b
        a, b = a[apart], b[apart]
        lower.append(np.minimum(a, b))
        upper.append(np.maximum(a, b))
    places = (np.concatenate(lower), np.concatenate(upper))
    pairs = csr_array((np.ones(len(places[0]), np.int64), places), shape=(count, count))
    pairs.sum_duplicates()
    return pairs

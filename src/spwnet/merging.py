"""From evidence to a tree of regions: leaves between edges, then the most alike neighbours merged, over and over."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spwnet.edges import DIRECTIONS, WORDS, at_full_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spwnet.edges import Evidence

    Doubles = NDArray[np.float64]
    Ints = NDArray[np.int64]

TEXTURE_SCALES = (0.0, 0.5, 1.0)
"""Weights of texture edges by scale: half-discs of few pixels hold too few words."""
LEAF_SIGMA, LEAF_WINDOW = 1.0, 5
"""Smoothing of the edge map, and the window in which its minima become the leaves, in pixels."""
SPECTRAL_VECTORS, SPECTRAL_EDGE, LONGEST_ARC = 16, 0.3, 40
"""Eigenvectors of the graph of leaves; edge strength at which its weights fall to 1/e; cracks that count at most."""
DENSE_LEAVES = 350
"""Graphs of fewer leaves are decomposed whole, which is as fast and needs no iteration."""
LEAST_EIGENVALUE = 1e-4


@dataclass(frozen=True)
class Arcs:
    """Borders between adjacent leaves.

    Attributes
    ----------
    first, second : (A,) int64 arrays
        The leaves on the two sides, first < second.
    length : (A,) float64 array
        Pairs of pixels that face each other across it.
    edges : (A, 2) float64 array
        Mean strength of colour and of texture edges along it, in its own direction.
    """

    first: Ints
    second: Ints
    length: Doubles
    edges: Doubles


def find_leaves(evidence: Evidence) -> NDArray[np.int32]:
    """Flood the strongest edges from their minima: (H, W) labels 0 … L − 1, each in one piece."""
    from scipy import ndimage
    from skimage.segmentation import watershed

    shape = evidence.words.shape
    strongest = sum(_summed(evidence, shape)).max(0)
    smooth = ndimage.gaussian_filter(strongest, LEAF_SIGMA)
    minima = smooth == ndimage.minimum_filter(smooth, size=LEAF_WINDOW)
    markers, _ = ndimage.label(minima, np.ones((3, 3)))
    leaves: NDArray[np.int32] = watershed(smooth, markers).astype(np.int32) - 1
    return leaves


def find_arcs(leaves: NDArray[np.int32], evidence: Evidence) -> Arcs:
    """Measure every border between two leaves."""
    height, width = leaves.shape
    flat, count = leaves.ravel().astype(np.int64), int(leaves.max()) + 1
    index = np.arange(flat.size).reshape(leaves.shape)
    here = np.concatenate([index[:, :-1].ravel(), index[:-1].ravel()])
    there = np.concatenate([index[:, 1:].ravel(), index[1:].ravel()])
    upright = np.arange(here.size) < height * (width - 1)
    apart = flat[here] != flat[there]
    here, there, upright = here[apart], there[apart], upright[apart]
    pairs = np.sort([flat[here], flat[there]], axis=0)
    codes, arc = np.unique(pairs[0] * count + pairs[1], return_inverse=True)
    length = np.bincount(arc, minlength=codes.size).astype(float)

    def mean(values: NDArray[np.generic]) -> Doubles:
        average: Doubles = np.bincount(arc, values, codes.size) / length
        return average

    y, x = (here // width + there // width) / 2, (here % width + there % width) / 2
    dy, dx = y - mean(y)[arc], x - mean(x)[arc]
    # A crack between two pixels has an extent of its own: one pixel along it, of variance 1/12.
    yy, xx, xy = mean(dy * dy + upright / 12), mean(dx * dx + ~upright / 12), mean(dx * dy)
    turns = (np.arctan2(2 * xy, xx - yy) / 2 % np.pi) / np.pi * DIRECTIONS
    lower, share = np.floor(turns).astype(int) % DIRECTIONS, (turns % 1)[arc]
    upper = (lower + 1) % DIRECTIONS
    strengths = []
    for kind in _summed(evidence, leaves.shape):
        rows = kind.reshape(DIRECTIONS, -1)
        near, far = (np.maximum(rows[side[arc], here], rows[side[arc], there]) for side in (lower, upper))
        strengths.append(mean((1 - share) * near + share * far))
    return Arcs(codes // count, codes % count, length, np.stack(strengths, axis=1))


def pool(leaves: NDArray[np.int32], values: NDArray[np.generic]) -> Doubles:
    """Average (H, W, D) values over each leaf: (L, D)."""
    flat = leaves.ravel()
    rows = values.reshape(flat.size, -1)
    sums = np.stack([np.bincount(flat, column) for column in rows.T], axis=1)
    return sums / np.bincount(flat)[:, None]


def word_shares(leaves: NDArray[np.int32], words: Ints) -> Doubles:
    """Share of each texture word in each leaf, (L, WORDS)."""
    count = int(leaves.max()) + 1
    table = np.bincount(leaves.ravel() * WORDS + words.ravel(), minlength=count * WORDS).reshape(count, WORDS)
    return table / table.sum(1, keepdims=True)


def spectral_positions(arcs: Arcs, sizes: Ints) -> Doubles:
    """Coordinates of the leaves by the normalised cut's eigenvectors [1]_, slow ones weighing most: (L, vectors).

    References
    ----------
    .. [1] P. Arbeláez et al., Contour detection and hierarchical image segmentation, IEEE TPAMI 33 (5), 2011.
    """
    from scipy.sparse import coo_array, diags_array, eye_array
    from scipy.sparse.linalg import eigsh

    count = sizes.size
    vectors = min(SPECTRAL_VECTORS, count - 1)
    if vectors < 1:
        return np.zeros((count, 0))
    weights = np.exp(-arcs.edges.sum(1) / SPECTRAL_EDGE) * np.minimum(arcs.length, LONGEST_ARC)
    graph = coo_array((weights, (arcs.first, arcs.second)), shape=(count, count)).tocsr()
    graph = graph + graph.T + 1e-6 * eye_array(count)
    degree = np.asarray(graph.sum(1)).ravel()
    scaled = diags_array(degree**-0.5) @ graph @ diags_array(degree**-0.5)
    if count < DENSE_LEAVES:
        values, found = np.linalg.eigh(scaled.toarray())
    else:
        values, found = eigsh(scaled, k=vectors + 1, which="LA", tol=1e-3, v0=np.ones(count))
    order = np.argsort(-values)[1 : vectors + 1]
    slowness = np.maximum(1 - values[order], LEAST_EIGENVALUE)
    positions = found[:, order] / np.sqrt(degree)[:, None]
    spread = np.sqrt((positions**2 * sizes[:, None]).sum(0) / sizes.sum())
    weighted: Doubles = positions / np.maximum(spread, 1e-12) / np.sqrt(slowness / slowness[0])
    return weighted


def _summed(evidence: Evidence, shape: tuple[int, ...]) -> list[NDArray[np.float32]]:
    """Colour and texture edges added up over the scales at full size, (DIRECTIONS, H, W) each."""
    size = (shape[0], shape[1])
    colour = sum(at_full_size(edges, size) for edges in evidence.colour_edges)
    texture = sum(
        np.float32(weight) * at_full_size(edges, size)
        for edges, weight in zip(evidence.texture_edges, TEXTURE_SCALES, strict=True)
        if weight
    )
    return [np.asarray(colour), np.asarray(texture)]

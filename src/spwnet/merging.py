"""From evidence to a tree of regions: leaves between edges, then the most alike neighbours merged, over and over."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from spwnet.edges import DIRECTIONS, WORDS, at_full_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spwnet.edges import Evidence

    Doubles = NDArray[np.float64]
    Ints = NDArray[np.int64]
    Borders = dict[int, tuple[float, float, float]]

TEXTURE_SCALES = (0.0, 0.5, 1.0)
"""Weights of texture edges by scale: half-discs of few pixels hold too few words."""
LEAF_SIGMA = 1.0
"""Standard deviation of the smoothing of the edge map, in pixels."""
LEAF_WINDOW = 5
"""Side of the window in which its minima become the leaves, in pixels."""
SPECTRAL_VECTORS = 16
"""Eigenvectors of the graph of leaves."""
SPECTRAL_EDGE = 0.3
"""Edge strength at which its weights fall to 1/e."""
LONGEST_ARC = 40
"""Cracks between two leaves that count at most."""
DENSE_LEAVES = 2000
"""Graphs of fewer leaves are decomposed directly, without iteration."""
LEAST_EIGENVALUE = 1e-4
CLEAR_DIFFERENCE = 20.0
"""Distance of mean colours, on the scale 0…100, that counts half of what the largest can count."""
FAINT_SHARE = 1e-6
"""Keeps the distance of two empty bins finite."""


class Weights(NamedTuple):
    """Weight of each difference between two regions in the log odds that they are two, not one.

    They were chosen on natural images with several human segmentations each, by logistic regression. Edges count by
    their square root and positions in the spectrum by the fourth root of their squared distance: strong evidence that
    is twice as strong is not twice as sure.
    """

    colour_edges: float
    texture_edges: float
    colour: float
    words: float
    spectral: float
    learned: float
    size: float
    offset: float


HAND_MADE = Weights(2.23, 0.97, 1.58, 1.85, 0.43, 0.0, 0.38, -2.93)
WITH_LEARNED = Weights(1.78, 1.92, 1.31, 1.57, 0.62, 0.74, 0.42, -3.53)
"""For hierarchies without and with a network."""


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
    colour, texture = _summed(evidence, shape)
    strongest = (colour + texture).max(0)
    smooth = ndimage.gaussian_filter(strongest, LEAF_SIGMA)
    minima = smooth == ndimage.minimum_filter(smooth, size=LEAF_WINDOW)
    markers, _ = ndimage.label(minima, np.ones((3, 3)))
    leaves: NDArray[np.int32] = watershed(smooth, markers).astype(np.int32) - 1  # type: ignore[no-untyped-call]
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
    means: Doubles = sums / np.bincount(flat)[:, None]
    return means


def word_shares(leaves: NDArray[np.int32], words: Ints) -> Doubles:
    """Share of each texture word in each leaf, (L, WORDS)."""
    count = int(leaves.max()) + 1
    table = np.bincount(leaves.ravel() * WORDS + words.ravel(), minlength=count * WORDS).reshape(count, WORDS)
    shares: Doubles = table / table.sum(1, keepdims=True)
    return shares


def spectral_positions(arcs: Arcs, sizes: Ints) -> Doubles:
    """Coordinates of the leaves by the normalised cut's eigenvectors [1]_, slow ones weighing most: (L, vectors).

    References
    ----------
    .. [1] P. Arbeláez et al., Contour detection and hierarchical image segmentation, IEEE TPAMI 33 (5), 2011.
    """
    from scipy.linalg import eigh
    from scipy.sparse import coo_array, diags_array, eye_array
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

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
        values, found = eigh(scaled.toarray(), subset_by_index=[count - vectors - 1, count - 1])
    else:
        try:
            values, found = eigsh(scaled, k=vectors + 1, which="LA", tol=1e-3, v0=np.ones(count))
        except ArpackNoConvergence as error:
            # Those that did converge separate what they separate; the others add nothing.
            values, found = error.eigenvalues, error.eigenvectors
    if values.size < 2:
        return np.zeros((count, 0))
    order = np.argsort(-values)[1 : vectors + 1]
    slowness = np.maximum(1 - values[order], LEAST_EIGENVALUE)
    positions = found[:, order] / np.sqrt(degree)[:, None]
    spread = np.sqrt((positions**2 * sizes[:, None]).sum(0) / sizes.sum())
    weighted: Doubles = positions / np.maximum(spread, 1e-12) / np.sqrt(slowness / slowness[0])
    return weighted


@dataclass(frozen=True)
class Description:
    """What each leaf looks like, averaged over its pixels; a union's description is the mean of its parts'.

    Attributes
    ----------
    sizes : (L,) int64 array
        Pixels.
    colour : (L, C) float64 array
        On the scale 0…100.
    words : (L, WORDS) float64 array
        Share of each texture word.
    spectral : (L, V) float64 array
        As `spectral_positions` gives it.
    learned : (L, F) float64 array
        What a network made of it; F is 0 without one.
    """

    sizes: Ints
    colour: Doubles
    words: Doubles
    spectral: Doubles
    learned: Doubles


def merge(arcs: Arcs, description: Description, weights: Weights) -> tuple[NDArray[np.int32], Doubles]:
    """Merge the two adjacent regions that are least likely to be two, until one is left.

    Parameters
    ----------
    arcs : Arcs
        All leaves must hang together by them.
    description : Description
    weights : Weights

    Returns
    -------
    merges : (L − 1, 2) int32 array
        The two regions that become region L + k in step k.
    heights : (L − 1,) float64 array
        Probability that they are two regions, in 0…1; where merging made regions more alike than those before
        them, that of those before: heights never fall.
    """
    count = description.sizes.size
    compare = _Comparison(description, weights)
    odds = compare(arcs.first, arcs.second, arcs.edges)
    # {neighbour: length of the border, sums of colour and texture edges along it} of each region.
    borders: list[Borders] = [{} for _ in range(2 * count - 1)]
    heap = list(zip(odds.tolist(), arcs.first.tolist(), arcs.second.tolist(), strict=True))
    for (_, a, b), length, edges in zip(heap, arcs.length.tolist(), arcs.edges.tolist(), strict=True):
        borders[a][b] = borders[b][a] = (length, length * edges[0], length * edges[1])
    heapq.heapify(heap)
    gone = np.zeros(2 * count - 1, bool)
    merges, heights = np.empty((count - 1, 2), np.int32), np.empty(count - 1)
    new = count
    while new < 2 * count - 1:
        height, a, b = heapq.heappop(heap)
        if gone[a] or gone[b]:
            continue
        merges[new - count], heights[new - count] = (a, b), height
        gone[a] = gone[b] = True
        compare.unite(a, b, new)
        around = _joined(borders, a, b, new)
        if around:
            others = np.fromiter(around, np.int64, len(around))
            sums = np.array(list(around.values()))
            odds = compare(np.array([new]), others, sums[:, 1:] / sums[:, :1])
            for value, other in zip(odds.tolist(), others.tolist(), strict=True):
                heapq.heappush(heap, (value, other, new))
        new += 1
    return merges, 1 / (1 + np.exp(-np.maximum.accumulate(heights)))


def _joined(borders: list[Borders], a: int, b: int, new: int) -> Borders:
    """Hand the borders of `a` and `b` over to `new` and return them."""
    around = borders[a]
    for other, (length, colour, texture) in borders[b].items():
        before = around.get(other, (0.0, 0.0, 0.0))
        around[other] = (before[0] + length, before[1] + colour, before[2] + texture)
    del around[a], around[b]
    for other, border in around.items():
        borders[other].pop(a, None)
        borders[other].pop(b, None)
        borders[other][new] = border
    borders[a] = borders[b] = {}
    borders[new] = around
    return around


class _Comparison:
    """The log odds that regions are two and not one, with the descriptions of all regions so far."""

    def __init__(self, description: Description, weights: Weights) -> None:
        parts = (description.colour, description.words, description.spectral, description.learned)
        ends = np.cumsum([0, *(part.shape[1] for part in parts)])
        self.colour, self.words, self.spectral, self.learned = (slice(*pair) for pair in pairwise(ends.tolist()))
        count = description.sizes.size
        self.rows = np.zeros((2 * count - 1, ends[-1]))
        self.rows[:count] = np.concatenate(parts, axis=1)
        self.sizes = np.zeros(2 * count - 1)
        self.sizes[:count] = description.sizes
        self.total = float(description.sizes.sum())
        self.weights = weights

    def unite(self, a: int, b: int, new: int) -> None:
        pair = [a, b]
        self.sizes[new] = self.sizes[pair].sum()
        self.rows[new] = self.sizes[pair] @ self.rows[pair] / self.sizes[new]

    def __call__(self, one: Ints, other: Ints, edges: Doubles) -> Doubles:
        """Compare `one` with `other`, (n,) each or of length 1; `edges` are the means along their borders, (n, 2)."""
        mine, theirs, w = self.rows[one], self.rows[other], self.weights
        difference = mine - theirs
        squares = difference * difference
        colour = np.sqrt(squares[:, self.colour].sum(1))
        words = (squares[:, self.words] / (mine[:, self.words] + theirs[:, self.words] + FAINT_SHARE)).sum(1) / 2
        smaller = np.minimum(self.sizes[one], self.sizes[other]) / self.total
        odds: Doubles = (
            np.sqrt(edges) @ [w.colour_edges, w.texture_edges]
            + w.colour * colour / (colour + CLEAR_DIFFERENCE)
            + w.words * words
            + w.spectral * squares[:, self.spectral].sum(1) ** 0.25
            + w.learned * np.sqrt(squares[:, self.learned].sum(1))
            + w.size * np.log(smaller)
            + w.offset
        )
        return odds


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

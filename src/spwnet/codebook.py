"""Sparse labelling: class centres fitted on the training images, the nearest everywhere else, a tree of merges."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spwnet.errors import RunError, SettingsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Ids = NDArray[np.int32]

MOST_POINTS = 20_000
"""Points that centres are fitted on; more change nothing but the time."""
STARTS = 16
CANDIDATES = 3
"""Points drawn for each next centre of a start, of which the best is taken."""
ITERATIONS = 40
SETTLED = 1e-4
"""k-means ends when the squared error falls by less than this share."""
LEAST_SPREAD = 1e-6
DIFFUSION = 3.0
DIFFUSION_STEPS = 3
ENOUGH = 0.9
"""Share of what the finest classes explain of the variance that the suggested number has to."""
CHUNK = 65_536
"""Rows whose distances to all centres are in memory at a time."""
TINY = 1e-12
NEAR = 0.5
"""Squared distance at which a neighbour's weight falls to 1/e, over the mean of it between neighbours."""


class Descriptors(NamedTuple):
    """What describes the superpixels, or pixels, of one image.

    Attributes
    ----------
    rows : (N, D) float32 array
    edges : (2, E) int array or None
        Adjacent superpixels, each pair in both directions; None leaves each row to itself.
    """

    rows: Floats
    edges: NDArray[np.int64] | None = None


class Assignment(NamedTuple):
    """Classes of the superpixels, or pixels, of one image.

    Attributes
    ----------
    classes : (N,) int32 array
    uncertainty : (N,) float32 array
        Distance to the class over that to the next best class: 0 is sure, 1 undecided.
    """

    classes: Ids
    uncertainty: Floats


@dataclass(frozen=True)
class Codebook:
    """Centres of the finest classes in the space of descriptors, and the tree that merges them.

    Attributes
    ----------
    mean, scale : (D,) float32 arrays
        A descriptor d is compared as (d − mean) / scale.
    near : (1,) float32 array
        Squared distance, after that, at which neighbours hardly mix.
    centres : (K, D) float32 array
        In the order of the ids of the finest classes.
    parents : (K,) int32 array
        With k + 1 classes instead of k, class k is split off from class ``parents[k]`` < k; ``parents[0]`` is 0. So
        a class keeps its id for as long as it is there, and k classes have the ids 0 … k − 1.
    heights : (K,) float32 array
        Increase of the squared error by merging class k with its parent, over the total variance; never rising.
    """

    mean: Floats
    scale: Floats
    near: Floats
    centres: Floats
    parents: Ids
    heights: Floats

    @property
    def finest(self) -> int:
        """Number of the finest classes K."""
        return len(self.centres)

    @property
    def suggested(self) -> int:
        """Fewest classes that leave hardly more of the variance unexplained than the finest do."""
        explained = np.cumsum(self.heights[1:])
        if not len(explained) or explained[-1] <= 0:
            return 1
        return int(np.searchsorted(explained, ENOUGH * explained[-1])) + 2

    def assign(self, descriptors: Descriptors, members: NDArray[np.integer[Any]]) -> Assignment:
        """Return the class of each row, that of the nearest centre, and how near the next class comes.

        Parameters
        ----------
        descriptors : Descriptors
        members : (K,) int array
            Class that each of the finest classes belongs to: from `coarser`, with any merges on top.
        """
        rows = _diffused((descriptors.rows - self.mean) / self.scale, descriptors.edges, float(self.near[0]))
        order = np.argsort(members, kind="stable")
        ids, starts = np.unique(members[order], return_index=True)
        centres = self.centres[order]
        squares = np.square(centres).sum(1)
        classes = np.empty(len(rows), np.int32)
        uncertainty = np.zeros(len(rows), np.float32)
        for first in range(0, len(rows), CHUNK):
            part = slice(first, first + CHUNK)
            x = rows[part]
            distances = np.maximum(squares - 2 * (x @ centres.T) + np.square(x).sum(1)[:, None], 0)
            distances = np.minimum.reduceat(distances, starts, axis=1)
            classes[part] = ids[distances.argmin(1)]
            if len(ids) > 1:
                best, second = np.partition(distances, 1, axis=1)[:, :2].T
                uncertainty[part] = np.sqrt(best / np.maximum(second, TINY))
        return Assignment(classes, np.minimum(uncertainty, 1))

    def tensors(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name, to be saved."""
        return {name: getattr(self, name) for name in _SHAPES}

    @staticmethod
    def from_tensors(tensors: dict[str, NDArray[Any]], size: int) -> Codebook:
        """Read what `tensors` gave, for descriptors of D = `size` values.

        Raises
        ------
        RunError
            If an array is missing, of another shape, not finite, or no tree.
        """
        finest = tensors["centres"].shape[0] if "centres" in tensors and tensors["centres"].ndim else 0
        lengths = {"D": size, "K": finest, "1": 1}
        for name, axes in _SHAPES.items():
            array, shape = tensors.get(name), tuple(lengths[axis] for axis in axes)
            if array is None or array.shape != shape or 0 in shape or not np.isfinite(array).all():
                came = "none" if array is None else f"{array.shape}"
                shown = str(tuple(size if axis == "D" else axis for axis in axes)).replace("'", "")
                raise RunError(f"expected finite {name!r} of shape {shown} in the codebook, but got {came}")
        for name in ("scale", "near"):
            if (tensors[name] <= 0).any():
                raise RunError(f"expected {name!r} above 0 in the codebook; train the run again")
        parents = tensors["parents"]
        highest = np.maximum(np.arange(finest) - 1, 0)
        if parents.dtype.kind != "i" or (parents < 0).any() or (parents > highest).any():
            raise RunError("expected 'parents' of smaller ids in the codebook's tree; train the run again")
        floats = {name: np.asarray(tensors[name], np.float32) for name in _SHAPES if name != "parents"}
        return Codebook(**floats, parents=parents.astype(np.int32))


_SHAPES = {"mean": "D", "scale": "D", "near": "1", "centres": "KD", "parents": "K", "heights": "K"}
"""Axes of each array of a codebook."""


def coarser(parents: NDArray[np.integer[Any]], n_classes: int) -> Ids:
    """Return the table from the finest ids to those of `n_classes` classes, (K,): itself below, else its parent's.

    Parameters
    ----------
    parents : (K,) int array
        Tree of a `Codebook`.
    n_classes : int
        1 … K.

    Raises
    ------
    SettingsError
        If there are not so many classes.
    """
    if not 1 <= n_classes <= len(parents):
        raise SettingsError(
            f"expected 1 to {len(parents)} classes, as many as were found in training, but got {n_classes}; "
            "train with a higher `codebook.finest` for more"
        )
    table = np.arange(len(parents), dtype=np.int32)
    for k in range(n_classes, len(parents)):
        table[k] = table[parents[k]]
    return table


def fit_codebook(
    images: Sequence[Descriptors], kinds: Sequence[tuple[int, float]], finest: int, seed: int = 0
) -> Codebook:
    """Find class centres by k-means, the best of a few k-means++ starts [1]_, and the tree that merges them.

    Parameters
    ----------
    images : sequence of Descriptors
        Of the training images.
    kinds : sequence of (size, weight)
        The kinds of evidence that a descriptor is made of, sizes adding up to D; each kind is scaled to a total
        variance of its weight squared, however many values it has.
    finest : int
        Centres asked for; fewer come if there are fewer different descriptors.
    seed : int

    Returns
    -------
    Codebook

    References
    ----------
    .. [1] D. Arthur, S. Vassilvitskii, k-means++: The advantages of careful seeding, SODA 2007.
    """
    rng = np.random.default_rng(seed)
    rows = np.concatenate([image.rows for image in images])
    mean = rows.mean(0)
    scale = np.empty_like(mean)
    ends = np.cumsum([0, *(size for size, _ in kinds)])
    for (start, stop), (_, weight) in zip(pairwise(ends), kinds, strict=True):
        spread = float(np.sqrt(np.square(rows[:, start:stop] - mean[start:stop]).mean(0).sum()))
        scale[start:stop] = spread / weight if spread > LEAST_SPREAD else 1.0
    scaled = [(image.rows - mean) / scale for image in images]
    near = _usual_distance(scaled, images)
    points = np.concatenate([_diffused(x, image.edges, near) for x, image in zip(scaled, images, strict=True)])
    if len(points) > MOST_POINTS:
        points = points[np.sort(rng.choice(len(points), MOST_POINTS, replace=False))]
    centres = _kmeans(points, finest, rng)
    labels, _ = _nearest(points, centres)
    order, parents, heights = _tree(centres, np.bincount(labels, minlength=len(centres)))
    spread = float(np.square(points - points.mean(0)).sum())
    return Codebook(
        mean,
        scale,
        np.array([near], np.float32),
        np.ascontiguousarray(centres[order], np.float32),
        parents,
        (heights / max(spread, TINY)).astype(np.float32),
    )


def _kmeans(points: Floats, n_centres: int, rng: np.random.Generator) -> Floats:
    """Centres of the lowest squared error among a few starts; all different points if there are not more of them."""
    from scipy.sparse import csr_array

    different = np.unique(points, axis=0)
    if len(different) <= n_centres:
        return different
    best = np.inf
    rows = np.arange(len(points))
    ones = np.ones(len(points), np.float32)
    for _ in range(STARTS):
        found = _spread_start(points, n_centres, rng)
        before = np.inf
        for _ in range(ITERATIONS):
            labels, squares = _nearest(points, found)
            error = float(squares.sum(dtype=np.float64))
            if error > before * (1 - SETTLED):
                break
            before = error
            counts = np.bincount(labels, minlength=n_centres)[:, None]
            sums = csr_array((ones, (labels, rows)), shape=(n_centres, len(points))) @ points
            # A centre that lost its points stays where it was.
            found = np.where(counts > 0, sums / np.maximum(counts, 1), found).astype(np.float32)
        if error < best:
            best, centres = error, found
    return centres


def _nearest(points: Floats, centres: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Nearest centre of each point, and the squared distance to it."""
    squares = np.square(centres).sum(1) - 2 * (points @ centres.T)
    labels = squares.argmin(1)
    least = np.take_along_axis(squares, labels[:, None], 1)[:, 0] + np.square(points).sum(1)
    return labels, np.maximum(least, 0)


def _spread_start(points: Floats, n_centres: int, rng: np.random.Generator) -> Floats:
    """Greedy k-means++: candidates are drawn with probability ∝ squared distance to the nearest centre so far."""
    lengths = np.square(points).sum(1)
    chosen = [int(rng.integers(len(points)))]
    nearest = _squares(points, lengths, chosen)[0]
    for _ in range(1, n_centres):
        cumulative = np.cumsum(nearest, dtype=np.float64)
        drawn = np.searchsorted(cumulative, rng.random(CANDIDATES) * cumulative[-1], side="right")
        drawn = np.minimum(drawn, len(points) - 1)
        left = np.minimum(nearest, _squares(points, lengths, drawn))
        winner = int(left.sum(1).argmin())
        chosen.append(int(drawn[winner]))
        nearest = left[winner]
    return points[chosen]


def _squares(points: Floats, lengths: Floats, chosen: Any) -> Floats:
    """Squared distances of some points to all, (some, N)."""
    squares: Floats = np.maximum(lengths[chosen][:, None] - 2 * (points[chosen] @ points.T) + lengths, 0)
    return squares


def _tree(centres: Floats, counts: NDArray[np.intp]) -> tuple[NDArray[np.intp], Ids, NDArray[np.float64]]:
    """Merge centres pairwise by Ward's criterion [1]_ and number them from the top.

    Returns
    -------
    order : (K,) int array
        Centre of each id.
    parents : (K,) int32 array
    heights : (K,) float array

    References
    ----------
    .. [1] J. H. Ward, Hierarchical grouping to optimize an objective function, JASA 58 (301), 1963.
    """
    n = len(centres)
    means, mass = centres.astype(np.float64), np.maximum(counts, 1).astype(np.float64)
    alive = np.ones(n, bool)
    node = np.arange(n)
    merges: list[tuple[int, int, float]] = []
    while alive.sum() > 1:
        left = np.flatnonzero(alive)
        squares = np.square(means[left][:, None] - means[left][None]).sum(2)
        cost = squares * (mass[left][:, None] * mass[left] / (mass[left][:, None] + mass[left]))
        np.fill_diagonal(cost, np.inf)
        i, j = np.unravel_index(cost.argmin(), cost.shape)
        a, b = left[i], left[j]
        if (mass[b], -b) > (mass[a], -a):
            a, b = b, a
        merges.append((int(a), int(b), float(cost[i, j])))
        means[a] = (mass[a] * means[a] + mass[b] * means[b]) / (mass[a] + mass[b])
        mass[a] += mass[b]
        alive[b] = False
    order = np.empty(n, np.intp)
    parents, heights = np.zeros(n, np.int32), np.zeros(n)
    ids = {int(node[alive][0]): 0}
    for k, (kept, lost, height) in enumerate(reversed(merges), start=1):
        ids[lost], parents[k], heights[k] = k, ids[kept], height
    order[list(ids.values())] = list(ids)
    heights[0] = heights[1] if n > 1 else 0
    return order, parents, np.minimum.accumulate(heights)


def _usual_distance(scaled: Sequence[Floats], images: Sequence[Descriptors]) -> float:
    """`NEAR` times the mean squared distance between neighbours."""
    squares = [
        np.square(x[image.edges[0]] - x[image.edges[1]]).sum(1)
        for x, image in zip(scaled, images, strict=True)
        if image.edges is not None and image.edges.size
    ]
    return max(NEAR * float(np.concatenate(squares).mean()), LEAST_SPREAD) if squares else 1.0


def _diffused(points: Floats, edges: NDArray[np.int64] | None, near: float) -> Floats:
    r"""Mix each superpixel with neighbours like it, held at what it was.

    .. math:: x_i \leftarrow \frac{x^0_i + \lambda \, \mathrm{mean}_j w_{ij} x_j}
                                  {1 + \lambda \, \mathrm{mean}_j w_{ij}},
              \quad w_{ij} = \exp(-|x^0_i - x^0_j|^2 / \mathrm{near})

    A superpixel unlike all its neighbours stays as it is; an average over neighbours would erase small classes.
    """
    if edges is None or edges.size == 0:
        return points
    from scipy.sparse import csr_array

    source, target = edges
    weights = np.exp(-np.square(points[source] - points[target]).sum(1) / near)
    weights = (DIFFUSION * weights / np.bincount(source, minlength=len(points))[source]).astype(np.float32)
    mixing = csr_array((weights, (source, target)), shape=(len(points), len(points)))
    total = 1 + mixing.sum(1)[:, None]
    x = points
    for _ in range(DIFFUSION_STEPS):
        x = ((points + mixing @ x) / total).astype(np.float32)
    return x

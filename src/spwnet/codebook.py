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
    from scipy.sparse import csr_array

    Floats = NDArray[np.float32]
    Ids = NDArray[np.int32]

MOST_POINTS = 16_000
"""Points that centres are fitted on; more change nothing but the time."""
RUNS = 3
"""Quick k-means runs whose centres are pooled."""
FINER = 3
"""Centres of a quick run over those asked for."""
QUICK_POINTS = 8_000
QUICK_ITERATIONS = 8
ITERATIONS = 30
CANDIDATES = 3
"""Points drawn for each next centre of a start, of which the best is taken."""
LEAST_SPREAD = 1e-6
"""A kind of evidence that varies less is constant, and left as it is."""
DIFFUSION = 3.0
"""Weight of the mean of the neighbours that are alike against a superpixel's own evidence."""
DIFFUSION_STEPS = 3
"""Times that evidence is mixed with that of the neighbours."""
AGREEMENT = 6.0
"""Energy of a superpixel all of whose boundary is to other classes, where squared distance to the own centre is 2."""
AGREEMENT_STEPS = 5
"""Times that classes are weighed against those of the neighbours."""
ENOUGH = 0.97
"""Share of what the finest classes explain of the variance that the suggested number has to."""
TINY = 1e-12
"""Keeps what is divided by above 0."""
LEAST_LIKENESS = 1e-30
PAIRS = 4096
"""Pairs of neighbours that are compared at a time."""
NEAR = 0.5
"""Squared distance at which a neighbour's weight falls to 1/e, over the mean of it between neighbours."""


class Descriptors(NamedTuple):
    """What describes the superpixels, or pixels, of one image.

    Attributes
    ----------
    rows : (N, D) float32 array
    edges : (2, E) int array or None
        Adjacent superpixels (i, j), each pair in both directions, sorted by i then j; None leaves each row to itself.
    contacts : (E,) float array or None
        Length of the boundary of each pair.
    """

    rows: Floats
    edges: NDArray[np.int64] | None = None
    contacts: Floats | None = None


class Energies(NamedTuple):
    """What speaks against each class for each superpixel, or pixel, of one image.

    Attributes
    ----------
    values : (N, K) float32 array
        Twice the squared distance to each centre over the usual one.
    ties : (N, N) sparse array or None
        Weight of each neighbour: its share of the boundary, less where the two differ.
    """

    values: Floats
    ties: csr_array | None


class Assignment(NamedTuple):
    """Classes of the superpixels, or pixels, of one image.

    Attributes
    ----------
    classes : (N,) int32 array
    uncertainty : (N,) float32 array in 0…1
        Half the share of the boundary that is to other classes, and 0.3 of the distance to the centre over the usual
        one: 0 is sure.
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
    spread : (1,) float32 array
        Mean squared distance of the training images' descriptors to their centres.
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
    spread: Floats
    centres: Floats
    parents: Ids
    heights: Floats

    @property
    def finest(self) -> int:
        """Number of the finest classes K."""
        return len(self.centres)

    @property
    def suggested(self) -> int:
        """Fewest classes that explain `ENOUGH` of the variance that the finest explain."""
        explained = np.cumsum(self.heights[1:])
        if not len(explained) or explained[-1] <= 0:
            return 1
        return int(np.searchsorted(explained, ENOUGH * explained[-1])) + 2

    def assign(self, descriptors: Descriptors, members: NDArray[np.integer[Any]]) -> Assignment:
        """Return the class of each row, that of the nearest centre on which neighbours agree, and how uncertain it is.

        Parameters
        ----------
        descriptors : Descriptors
        members : (K,) int array
            Class that each of the finest classes belongs to: from `coarser`, with any merges on top.
        """
        energies = self.energies(descriptors)
        nearest = agreed(energies).argmin(1)
        return Assignment(members[nearest].astype(np.int32), uncertainty(energies, nearest, members, descriptors))

    def energies(self, descriptors: Descriptors, steps: int = DIFFUSION_STEPS) -> Energies:
        """Compare descriptors, evened out in `steps` between neighbours alike, with each of the finest centres."""
        raw = ((descriptors.rows - self.mean) / self.scale).astype(np.float32)
        likeness = _likeness(raw, descriptors.edges, float(self.near[0]))
        values = _squared_distances(_diffused(raw, likeness, steps), self.centres) * (2 / self.spread[0])
        return Energies(values, None if likeness is None else _ties(likeness, descriptors))

    def tree(self, n_classes: int) -> dict[str, list[Any]]:
        """Return parents and heights of the first classes, to be written beside labels of them."""
        return {"parents": self.parents[:n_classes].tolist(), "heights": self.heights[:n_classes].tolist()}

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
        for name in ("scale", "near", "spread"):
            if (tensors[name] <= 0).any():
                raise RunError(f"expected {name!r} above 0 in the codebook; train the run again")
        parents = tensors["parents"]
        if not is_tree(parents):
            raise RunError("expected 'parents' of smaller ids in the codebook's tree; train the run again")
        floats = {name: np.asarray(tensors[name], np.float32) for name in _SHAPES if name != "parents"}
        return Codebook(**floats, parents=parents.astype(np.int32))


_SHAPES = {"mean": "D", "scale": "D", "near": "1", "spread": "1", "centres": "KD", "parents": "K", "heights": "K"}
"""Axes of each array of a codebook."""


def is_tree(parents: NDArray[Any]) -> bool:
    """Whether an array can be the parents of a `Codebook`: each a smaller id, the first its own."""
    highest = np.maximum(np.arange(parents.size) - 1, 0)
    fits = parents.ndim == 1 and parents.size > 0 and parents.dtype.kind == "i"
    return bool(fits and (parents >= 0).all() and (parents <= highest).all())


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
    images: Sequence[Descriptors],
    kinds: Sequence[tuple[int, float]],
    finest: int,
    seed: int = 0,
    steps: int = DIFFUSION_STEPS,
) -> Codebook:
    """Find class centres by k-means, and the tree that merges them.

    A few quick k-means runs [1]_ with more centres are pooled and merged by Ward's criterion [2]_ to the number asked
    for, where k-means goes on: far steadier from seed to seed than the best of many starts.

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
    steps : int
        Of evening out between neighbours.

    Returns
    -------
    Codebook

    References
    ----------
    .. [1] D. Arthur, S. Vassilvitskii, k-means++: The advantages of careful seeding, SODA 2007.
    .. [2] J. H. Ward, Hierarchical grouping to optimize an objective function, JASA 58 (301), 1963.
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
    points = np.concatenate(
        [_diffused(x, _likeness(x, image.edges, near), steps) for x, image in zip(scaled, images, strict=True)]
    )
    if len(points) > MOST_POINTS:
        points = points[np.sort(rng.choice(len(points), MOST_POINTS, replace=False))]
    centres = _centres(points, finest, rng)
    labels, squares = _nearest(points, centres)
    order, parents, heights = _tree(centres, np.bincount(labels, minlength=len(centres)))
    total = float(np.square(points - points.mean(0)).sum())
    return Codebook(
        mean=mean,
        scale=scale,
        near=np.array([near], np.float32),
        spread=np.array([max(float(squares.mean()), TINY)], np.float32),
        centres=np.ascontiguousarray(centres[order], np.float32),
        parents=parents,
        heights=(heights / max(total, TINY)).astype(np.float32),
    )


def _centres(points: Floats, n_centres: int, rng: np.random.Generator) -> Floats:
    """Centres of k-means, started from what a few finer runs have in common."""
    different = np.unique(points, axis=0)
    if len(different) <= n_centres:
        return different
    finer = min(FINER * n_centres, len(different))
    pool = []
    for _ in range(RUNS):
        some = points if len(points) <= QUICK_POINTS else points[rng.choice(len(points), QUICK_POINTS, replace=False)]
        pool.append(_lloyd(some, _spread_start(some, finer, rng), QUICK_ITERATIONS))
    start = np.concatenate(pool)
    counts = np.bincount(_nearest(points, start)[0], minlength=len(start))
    start, counts = start[counts > 0], counts[counts > 0]
    _, means = _ward(start, counts, min(n_centres, len(start)))
    return _lloyd(points, means.astype(np.float32), ITERATIONS)


def _lloyd(points: Floats, centres: Floats, iterations: int) -> Floats:
    """k-means from given centres, until nothing moves or for so many iterations."""
    from scipy.sparse import csr_array

    rows, ones = np.arange(len(points)), np.ones(len(points), np.float32)
    before = None
    for _ in range(iterations):
        labels, _ = _nearest(points, centres)
        if before is not None and np.array_equal(labels, before):
            break
        before = labels
        counts = np.bincount(labels, minlength=len(centres))[:, None]
        sums = csr_array((ones, (labels, rows)), shape=(len(centres), len(points))) @ points
        # A centre that lost its points stays where it was.
        centres = np.where(counts > 0, sums / np.maximum(counts, 1), centres).astype(np.float32)
    return centres


def _nearest(points: Floats, centres: Floats) -> tuple[NDArray[np.intp], Floats]:
    """Nearest centre of each point, and the squared distance to it."""
    squares = _squared_distances(points, centres)
    return squares.argmin(1), squares.min(1)


def _squared_distances(points: Floats, centres: Floats) -> Floats:
    """Squared distances, (N, K)."""
    squares: Floats = np.square(centres).sum(1) - 2 * (points @ centres.T) + np.square(points).sum(1)[:, None]
    np.maximum(squares, 0, out=squares)
    return squares


def _spread_start(points: Floats, n_centres: int, rng: np.random.Generator) -> Floats:
    """Greedy k-means++: candidates are drawn with probability ∝ squared distance to the nearest centre so far."""
    chosen = [int(rng.integers(len(points)))]
    nearest = _squared_distances(points[chosen], points)[0]
    for _ in range(1, n_centres):
        cumulative = np.cumsum(nearest, dtype=np.float64)
        drawn = np.searchsorted(cumulative, rng.random(CANDIDATES) * cumulative[-1], side="right")
        drawn = np.minimum(drawn, len(points) - 1)
        left = np.minimum(nearest, _squared_distances(points[drawn], points))
        winner = int(left.sum(1).argmin())
        chosen.append(int(drawn[winner]))
        nearest = left[winner]
    return points[chosen]


def _ward(
    centres: Floats, counts: NDArray[np.intp], stop: int
) -> tuple[list[tuple[int, int, float]], NDArray[np.float64]]:
    """Merge centres pairwise, least increase of the squared error first, until `stop` are left.

    Returns
    -------
    merges : list of (kept, lost, increase)
        The one of larger count is kept.
    means : (stop, D) float array
    """
    means, mass = centres.astype(np.float64), counts.astype(np.float64)
    alive = np.ones(len(means), bool)

    def increase(a: Any, b: Any) -> NDArray[np.float64]:
        cost: NDArray[np.float64] = np.square(means[a] - means[b]).sum(-1) * (mass[a] * mass[b] / (mass[a] + mass[b]))
        return cost

    costs = np.empty((len(means), len(means)))
    for a in range(len(means)):
        costs[a] = increase(a, slice(None))
    np.fill_diagonal(costs, np.inf)
    # The first of the least of each row: to look through all costs for each merge takes a hundred times as long.
    nearest = costs.argmin(1)
    least = costs[np.arange(len(means)), nearest]
    merges: list[tuple[int, int, float]] = []
    while len(means) - len(merges) > stop:
        a = int(least.argmin())
        b, cost = int(nearest[a]), float(least[a])
        if (mass[b], -b) > (mass[a], -a):
            a, b = b, a
        merges.append((a, b, cost))
        means[a] = (mass[a] * means[a] + mass[b] * means[b]) / (mass[a] + mass[b])
        mass[a] += mass[b]
        alive[b] = False
        costs[b] = costs[:, b] = np.inf
        costs[a, alive] = costs[alive, a] = increase(a, alive)
        costs[a, a] = np.inf
        closer = (costs[:, a] < least) | ((costs[:, a] == least) & (a < nearest))
        stale = alive & ((nearest == a) | (nearest == b))
        stale[a], least[b] = True, np.inf
        nearest[closer], least[closer] = a, costs[closer, a]
        nearest[stale] = costs[stale].argmin(1)
        least[stale] = costs[stale].min(1)
    return merges, means[alive]


def _tree(centres: Floats, counts: NDArray[np.intp]) -> tuple[NDArray[np.intp], Ids, NDArray[np.float64]]:
    """Merge centres to one and number them from the top.

    Returns
    -------
    order : (K,) int array
        Centre of each id.
    parents : (K,) int32 array
    heights : (K,) float array
    """
    merges, _ = _ward(centres, np.maximum(counts, 1), 1)
    order = np.empty(len(centres), np.intp)
    parents, heights = np.zeros(len(centres), np.int32), np.zeros(len(centres))
    ids = {merges[-1][0] if merges else 0: 0}
    for k, (kept, lost, height) in enumerate(reversed(merges), start=1):
        ids[lost], parents[k], heights[k] = k, ids[kept], height
    order[list(ids.values())] = list(ids)
    if merges:
        heights[0] = heights[1]
    return order, parents, np.minimum.accumulate(heights)


def _usual_distance(scaled: Sequence[Floats], images: Sequence[Descriptors]) -> float:
    """`NEAR` times the mean squared distance between neighbours."""
    squares = [
        np.square(x[image.edges[0]] - x[image.edges[1]]).sum(1)
        for x, image in zip(scaled, images, strict=True)
        if image.edges is not None and image.edges.size
    ]
    return max(NEAR * float(np.concatenate(squares).mean()), LEAST_SPREAD) if squares else 1.0


def _likeness(points: Floats, edges: NDArray[np.int64] | None, near: float) -> csr_array | None:
    """How alike neighbours are, exp(−|x_i − x_j|² / near), (N, N); None without neighbours."""
    if edges is None or edges.size == 0:
        return None
    from scipy.sparse import csr_array

    source, target = edges
    # Each pair once, in one direction; the other is the transpose.
    once = source < target
    pairs = np.stack([source[once], target[once]])
    squares = np.empty(pairs.shape[1], np.float32)
    # A few at a time: the differences of all would pass through memory instead of the cache.
    for start in range(0, len(squares), PAIRS):
        one, other = pairs[:, start : start + PAIRS]
        difference = points[one] - points[other]
        squares[start : start + PAIRS] = np.einsum("ij,ij->i", difference, difference)
    # Never quite 0, or the pair would drop out of the sum and the ties would lose their order.
    values = np.maximum(np.exp(squares / np.float32(-near)), np.float32(LEAST_LIKENESS))
    half = csr_array((values, (pairs[0], pairs[1])), shape=(len(points), len(points)))
    return half + half.T


def _diffused(points: Floats, likeness: csr_array | None, steps: int = DIFFUSION_STEPS) -> Floats:
    r"""Mix each superpixel with neighbours like it, held at what it was.

    .. math:: x_i \leftarrow \frac{x^0_i + \lambda \, \mathrm{mean}_j w_{ij} x_j}
                                  {1 + \lambda \, \mathrm{mean}_j w_{ij}},
              \quad w_{ij} = \exp(-|x^0_i - x^0_j|^2 / \mathrm{near})

    A superpixel unlike all its neighbours stays as it is; an average over neighbours would erase small classes.
    """
    if likeness is None:
        return points
    neighbours = np.diff(likeness.indptr)
    mixing = likeness.copy()
    mixing.data *= np.repeat((DIFFUSION / np.maximum(neighbours, 1)).astype(np.float32), neighbours)
    share = (1 / (1 + mixing.sum(1)))[:, None].astype(np.float32)
    x = points
    for _ in range(steps):
        x = mixing @ x
        x += points
        x *= share
    return x


def _ties(likeness: csr_array, descriptors: Descriptors) -> csr_array:
    """Weight of each neighbour: its share of the boundary, less where the two differ, (N, N)."""
    source, _, contacts = _boundaries(descriptors)
    whole = np.bincount(source, contacts, likeness.shape[0])
    ties = likeness.copy()
    # Edges are in the order of the matrix: by superpixel, then by neighbour.
    ties.data *= (contacts / whole[source]).astype(np.float32)
    return ties


def agreed(energies: Energies, carried: Floats | None = None, steps: int = AGREEMENT_STEPS) -> Floats:
    r"""Energies on which neighbours agree: mean field of a Potts model [1]_.

    .. math:: q_i \propto \exp(-E_i), \quad E_{ik} = U_{ik} - c_{ik} - \beta \sum_j w_{ij} q_{jk}

    Parameters
    ----------
    energies : Energies
        U and the ties w.
    carried : (N, K) float array, optional
        c, what speaks for each class beside the image itself.
    steps : int

    Returns
    -------
    (N, K) float32 array
        E: the class is that of the least.

    References
    ----------
    .. [1] P. Krähenbühl, V. Koltun, Efficient inference in fully connected CRFs, NIPS 2011.
    """
    alone = energies.values if carried is None else energies.values - carried
    total = alone
    if energies.ties is not None:
        for _ in range(steps):
            total = alone - AGREEMENT * (energies.ties @ probabilities(total))
    return total


def probabilities(energy: Floats) -> Floats:
    """Return q ∝ exp(−E), adding up to 1 in each row, (N, K)."""
    q: Floats = np.exp(energy.min(1, keepdims=True) - energy)
    q /= q.sum(1, keepdims=True)
    return q


def uncertainty(
    energies: Energies, nearest: NDArray[np.integer[Any]], members: NDArray[np.integer[Any]], descriptors: Descriptors
) -> Floats:
    """How uncertain the finest classes `nearest` of the rows are, as in `Assignment`: (N,) in 0…1."""
    own = np.take_along_axis(energies.values, nearest[:, None], 1)[:, 0]
    doubt = 0.3 * np.sqrt(own / 2)
    if energies.ties is not None:
        doubt = doubt + 0.5 * _share_to_others(members[nearest], descriptors)
    return np.minimum(doubt, 1).astype(np.float32)


def _share_to_others(classes: NDArray[np.integer[Any]], descriptors: Descriptors) -> NDArray[np.float64]:
    """Share of the boundary of each superpixel that is to superpixels of other classes, (N,)."""
    source, target, contacts = _boundaries(descriptors)
    differ = np.bincount(source, contacts * (classes[source] != classes[target]), len(classes))
    return differ / np.maximum(np.bincount(source, contacts, len(classes)), TINY)


def _boundaries(descriptors: Descriptors) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """Both ends and the length of each edge; all are alike if no lengths are given."""
    assert descriptors.edges is not None
    source, target = descriptors.edges
    contacts = descriptors.contacts
    return source, target, np.ones(len(source), np.float32) if contacts is None else contacts

"""Sparse labelling: class centres fitted once on the training images, the nearest centre everywhere else."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from spwnet.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

MOST_POINTS = 50_000
"""Points that centres are fitted on; more change nothing but the time."""
STARTS = 8
ITERATIONS = 40
LEAST_SPREAD = 1e-6
DIFFUSION = 3.0
DIFFUSION_STEPS = 3
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


@dataclass(frozen=True)
class Codebook:
    """Centres of classes in the space of descriptors.

    Attributes
    ----------
    mean, scale : (D,) float32 arrays
        A descriptor d is compared as (d − mean) / scale.
    near : (1,) float32 array
        Squared distance, after that, at which neighbours hardly mix.
    centres : (K, D) float32 array
        In the order of class ids.
    """

    mean: Floats
    scale: Floats
    near: Floats
    centres: Floats

    def assign(self, descriptors: Descriptors) -> NDArray[np.int32]:
        """Return the class of each row, (N,): the nearest centre."""
        from scipy.cluster.vq import vq

        points = (descriptors.rows - self.mean) / self.scale
        labels, _ = vq(_diffused(points, descriptors.edges, float(self.near[0])), self.centres, check_finite=False)
        found: NDArray[np.int32] = labels.astype(np.int32)
        return found

    def tensors(self) -> dict[str, Floats]:
        """Return the arrays by name, to be saved."""
        return {"mean": self.mean, "scale": self.scale, "near": self.near, "centres": self.centres}

    @staticmethod
    def from_tensors(tensors: dict[str, NDArray[Any]], size: int) -> Codebook:
        """Read what `tensors` gave, for descriptors of D = `size` values.

        Raises
        ------
        RunError
            If an array is missing, of another shape, or not finite.
        """
        expected = {"mean": (size,), "scale": (size,), "near": (1,), "centres": (None, size)}
        for name, shape in expected.items():
            array = tensors.get(name)
            fits = array is not None and array.ndim == len(shape) and array.shape[-1] == shape[-1] and len(array) > 0
            if array is None or not fits or not np.isfinite(array).all():
                came = "none" if array is None else f"{array.shape}"
                raise RunError(f"expected finite {name!r} of shape {shape} in the codebook, but got {came}")
        for name in ("scale", "near"):
            if (tensors[name] <= 0).any():
                raise RunError(f"expected {name!r} above 0 in the codebook; train the run again")
        return Codebook(*(np.asarray(tensors[name], np.float32) for name in expected))


def fit_codebook(
    images: Sequence[Descriptors], kinds: Sequence[tuple[int, float]], n_classes: int, seed: int = 0
) -> Codebook:
    """Find class centres by k-means, the best of a few k-means++ starts [1]_.

    Parameters
    ----------
    images : sequence of Descriptors
        Of the training images.
    kinds : sequence of (size, weight)
        The kinds of evidence that a descriptor is made of, sizes adding up to D; each kind is scaled to a total
        variance of its weight squared, however many values it has.
    n_classes : int
        Centres asked for; fewer come if there are fewer different descriptors.
    seed : int

    Returns
    -------
    Codebook
        Classes in descending order of the descriptors they hold.

    References
    ----------
    .. [1] D. Arthur, S. Vassilvitskii, k-means++: The advantages of careful seeding, SODA 2007.
    """
    from scipy.cluster.vq import kmeans2, vq

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

    different = np.unique(points, axis=0)
    if len(different) <= n_classes:
        centres = different
    else:
        best = np.inf
        for _ in range(STARTS):
            first = _spread_start(points, n_classes, rng)
            with warnings.catch_warnings():  # a centre that lost its points stays where it was
                warnings.simplefilter("ignore", UserWarning)
                found, _ = kmeans2(points, first, iter=ITERATIONS, minit="matrix", missing="warn")
            _, distances = vq(points, found, check_finite=False)
            inertia = float(np.square(distances).sum())
            if inertia < best:
                best, centres = inertia, found
    labels, _ = vq(points, centres, check_finite=False)
    order = np.argsort(-np.bincount(labels, minlength=len(centres)), kind="stable")
    return Codebook(mean, scale, np.array([near], np.float32), np.ascontiguousarray(centres[order], np.float32))


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


def _spread_start(points: NDArray[np.float32], n_classes: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """k-means++: each next centre is drawn with probability ∝ squared distance to the nearest so far."""
    centres = [points[rng.integers(len(points))]]
    nearest = np.square(points - centres[0]).sum(1)
    for _ in range(1, n_classes):
        chosen = rng.choice(len(points), p=nearest / nearest.sum())
        centres.append(points[chosen])
        nearest = np.minimum(nearest, np.square(points - points[chosen]).sum(1))
    return np.stack(centres)

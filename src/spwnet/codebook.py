"""Sparse labelling: class centres fitted once on the training images, the nearest centre everywhere else."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

MOST_POINTS = 50_000
"""Points that centres are fitted on; more change nothing but the time."""
STARTS = 4
ITERATIONS = 40
LEAST_SPREAD = 1e-6


@dataclass(frozen=True)
class Codebook:
    """Centres of classes in the space of descriptors.

    Attributes
    ----------
    mean, scale : (D,) float32 arrays
        A descriptor d is compared as (d − mean) / scale.
    centres : (K, D) float32 array
        In the order of class ids.
    """

    mean: Floats
    scale: Floats
    centres: Floats

    def assign(self, descriptors: Floats) -> NDArray[np.int32]:
        """Return the class of each descriptor, (N, D) → (N,): the nearest centre."""
        from scipy.cluster.vq import vq

        labels, _ = vq((descriptors - self.mean) / self.scale, self.centres, check_finite=False)
        found: NDArray[np.int32] = labels.astype(np.int32)
        return found

    def tensors(self) -> dict[str, Floats]:
        """Return the arrays by name, to be saved."""
        return {"mean": self.mean, "scale": self.scale, "centres": self.centres}

    @staticmethod
    def from_tensors(tensors: dict[str, NDArray[Any]], size: int) -> Codebook:
        """Read what `tensors` gave, for descriptors of D = `size` values.

        Raises
        ------
        RunError
            If an array is missing, of another shape, or not finite.
        """
        expected = {"mean": (size,), "scale": (size,), "centres": (None, size)}
        for name, shape in expected.items():
            array = tensors.get(name)
            fits = array is not None and array.ndim == len(shape) and array.shape[-1] == size and len(array) > 0
            if array is None or not fits or not np.isfinite(array).all():
                came = "none" if array is None else f"{array.shape}"
                raise RunError(
                    f"expected finite {name!r} of shape {shape} in the codebook, but got {came}; train again"
                )
        if (tensors["scale"] <= 0).any():
            raise RunError("expected a 'scale' above 0 in the codebook; train the run again")
        return Codebook(*(np.asarray(tensors[name], np.float32) for name in expected))


def fit_codebook(
    descriptors: NDArray[np.float32], blocks: Sequence[tuple[int, float]], n_classes: int, seed: int = 0
) -> Codebook:
    """Find class centres by k-means, the best of a few k-means++ starts [1]_.

    Parameters
    ----------
    descriptors : (N, D) float32 array
        Of the superpixels, or pixels, of all training images.
    blocks : sequence of (size, weight)
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
    if len(descriptors) > MOST_POINTS:
        descriptors = descriptors[np.sort(rng.choice(len(descriptors), MOST_POINTS, replace=False))]
    mean = descriptors.mean(0)
    edges = np.cumsum([0, *(size for size, _ in blocks)])
    scale = np.empty_like(mean)
    for (start, stop), (_, weight) in zip(pairwise(edges), blocks, strict=True):
        spread = float(np.sqrt(np.square(descriptors[:, start:stop] - mean[start:stop]).mean(0).sum()))
        scale[start:stop] = spread / weight if spread > LEAST_SPREAD else 1.0
    points = (descriptors - mean) / scale

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
    return Codebook(mean, scale, np.ascontiguousarray(centres[order], np.float32))


def _spread_start(points: NDArray[np.float32], n_classes: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """k-means++: each next centre is drawn with probability ∝ squared distance to the nearest so far."""
    centres = [points[rng.integers(len(points))]]
    nearest = np.square(points - centres[0]).sum(1)
    for _ in range(1, n_classes):
        chosen = rng.choice(len(points), p=nearest / nearest.sum())
        centres.append(points[chosen])
        nearest = np.minimum(nearest, np.square(points - points[chosen]).sum(1))
    return np.stack(centres)

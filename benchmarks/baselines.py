"""What anyone can do in twenty lines: k-means on what superpixels look like.

Nothing here is of the package: SLIC is scikit-image's, k-means scikit-learn's.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from benchmarks.data import Set

    Floats = NDArray[np.float64]

PIXELS = 60
"""Pixels in one superpixel."""
COMPACTNESS = 10.0
"""Of SLIC, against colours on CIELAB's scale."""
POSITION_WEIGHT = 0.5
CONTRAST_SCALES = (2.0, 4.0, 8.0)
SURROUNDING = 6.0
"""Pixels that colour is smoothed over."""
STARTS = 3
KINDS = {
    "colour": ("colour",),
    "colour + position": ("colour", "position"),
    "colour + texture": ("colour", "contrast", "surrounding"),
    "colour + position + texture": ("colour", "position", "contrast", "surrounding"),
}
CLASSES = (32, 8)


@dataclass(frozen=True)
class Superpixels:
    """One image's superpixels and what each looks like.

    Attributes
    ----------
    labels : (H, W) int array
    kinds : dict of {str: (N, D) float array}
        Kind of evidence → means over the superpixels.
    """

    labels: NDArray[Any]
    kinds: dict[str, Floats]


@dataclass(frozen=True)
class Described:
    """A set's superpixels by frame number, and the seconds that it took on training frames and on the others."""

    frames: dict[int, Superpixels]
    training: tuple[int, ...]
    seconds: tuple[float, float]


def describe(data: Set, frames: Sequence[int]) -> Described:
    """Describe the training frames and `frames`, at the size of the truth."""
    start = time.perf_counter()
    pixels = {number: _at_truth(data, number) for number in data.training}
    grey = np.concatenate([image.ravel() for image, rgb in pixels.values() if not rgb] or [np.zeros(0)])
    low, high = (float(grey.min()), float(grey.max())) if grey.size else (0.0, 1.0)
    found = {number: superpixels(to_lab(*image, low, high)) for number, image in pixels.items()}
    trained = time.perf_counter()
    for number in frames:
        if number not in found:
            found[number] = superpixels(to_lab(*_at_truth(data, number), low, high))
    return Described(found, data.training, (trained - start, time.perf_counter() - trained))


def to_lab(image: NDArray[Any], rgb: bool, low: float, high: float) -> Floats:
    """CIELAB of colours; other values in 0…100."""
    if rgb:
        from skimage.color import rgb2lab

        lab: Floats = rgb2lab(image)
        return lab
    grey: Floats = (image.astype(float) - low) * (100 / ((high - low) or 1.0))
    return grey


def superpixels(colour: Floats) -> Superpixels:
    """SLIC, and the mean of each kind of evidence over each superpixel."""
    from scipy.ndimage import gaussian_filter
    from skimage.segmentation import slic

    height, width = colour.shape[:2]
    spread = float(np.ptp(colour)) or 1.0  # scikit-image divides each image by its own range
    labels = slic(
        colour,
        n_segments=max(1, height * width // PIXELS),
        compactness=COMPACTNESS / spread,
        start_label=0,
        channel_axis=-1,
        convert2lab=False,
    )
    labels = np.unique(labels, return_inverse=True)[1].reshape(labels.shape)

    def smoothed(values: Floats, sigma: float) -> Floats:
        result: Floats = gaussian_filter(values, (sigma, sigma, 0))
        return result

    contrasts = [
        np.sqrt(np.maximum(smoothed(colour**2, sigma) - smoothed(colour, sigma) ** 2, 0)) for sigma in CONTRAST_SCALES
    ]
    rows, columns = np.mgrid[:height, :width]
    evidence = {
        "colour": colour,
        "position": np.stack([rows / height, columns / width], axis=-1),
        "contrast": np.concatenate(contrasts, axis=-1),
        "surrounding": smoothed(colour, SURROUNDING),
    }
    return Superpixels(labels, {kind: _means(values, labels) for kind, values in evidence.items()})


def cluster(
    described: Described, kinds: Sequence[str], classes: int, seed: int
) -> tuple[dict[int, NDArray[Any]], tuple[float, float]]:
    """k-means fitted on the training frames: frame number → (h, w) classes, and seconds of fitting and of labelling.

    Each kind is centred and scaled to a total variance of its weight squared.
    """
    from sklearn.cluster import KMeans

    start = time.perf_counter()
    columns = []
    for kind in kinds:
        weight = POSITION_WEIGHT if kind == "position" else 1.0
        fitted = np.concatenate([described.frames[number].kinds[kind] for number in described.training])
        spread = float(np.sqrt(fitted.var(0).sum())) or 1.0
        columns.append((kind, fitted.mean(0), weight / spread))

    def rows(frame: Superpixels) -> Floats:
        return np.concatenate([(frame.kinds[kind] - mean) * scale for kind, mean, scale in columns], axis=1)

    training = np.concatenate([rows(described.frames[number]) for number in described.training])
    different = len(np.unique(training, axis=0))
    model = KMeans(min(classes, different), n_init=STARTS, random_state=seed).fit(training)
    fitted_at = time.perf_counter()
    labels = {number: model.predict(rows(frame))[frame.labels] for number, frame in described.frames.items()}
    return labels, (fitted_at - start, time.perf_counter() - fitted_at)


def _at_truth(data: Set, number: int) -> tuple[NDArray[Any], bool]:
    """Pixels where the truth is, reduced to its size; those of a frame without a truth, to the size of the others'."""
    pixels, rgb = data.frame(number)
    part = pixels[data.window]
    shape = data.truth_of(number if number in data.labelled else next(iter(data.labelled))).shape
    if part.shape[:2] == shape:
        return part, rgb
    from PIL import Image

    size = (shape[1], shape[0])
    channels = [
        np.asarray(Image.fromarray(part[..., c].astype(np.float32)).resize(size, Image.Resampling.BOX))
        for c in range(part.shape[-1])
    ]
    reduced = np.stack(channels, axis=-1)
    return (np.rint(reduced).astype(part.dtype) if part.dtype.kind in "ui" else reduced), rgb


def _means(values: Floats, labels: NDArray[Any]) -> Floats:
    flat = labels.ravel()
    sums = np.stack([np.bincount(flat, weights=column) for column in values.reshape(flat.size, -1).T], axis=1)
    means: Floats = sums / np.bincount(flat)[:, None]
    return means

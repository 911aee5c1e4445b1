"""From a stored image to what superpixels and network take, and labels back to the size of the input."""

from __future__ import annotations

import logging
import math
import sys
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spwnet.errors import InputError, RunError
from spwnet.filters import gaussian

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray
    from scipy.sparse import csr_array
    from torch import Tensor

    from spwnet.config import ImageSettings
    from spwnet.images import Image

    Patch = tuple[slice, slice]

logger = logging.getLogger(__name__)

PERCENTILES = (0.1, 99.9)
"""Of each channel over the training images: they become 0 and 1."""

SMOOTH = 1.0
"""Standard deviation, in working pixels, of the blur that takes noise away and leaves outlines."""
LEAST_STD = 1e-6
"""A channel of a smaller standard deviation is constant; dividing by that would blow up noise."""


MOST = sys.float_info.max
"""Of whole numbers in JSON some are larger, and no floats."""

BLOCK_ROWS = 32
"""Rows of a working image that are made at a time."""

XYZ_OF_RGB = np.array(
    [
        [0.412453 / 0.95047, 0.212671, 0.019334 / 1.08883],
        [0.357580 / 0.95047, 0.715160, 0.119193 / 1.08883],
        [0.180423 / 0.95047, 0.072169, 0.950227 / 1.08883],
    ],
    np.float32,
)
"""Linear sRGB to XYZ over that of white (D65, 2°)."""
LAB_RANGE = 100.0
"""Channels other than red, green and blue are brought to CIELAB's range of L, so that compactness means the same."""


@dataclass(frozen=True)
class Normalisation:
    """Statistics of the training images, by which every other image of the run is prepared too.

    Attributes
    ----------
    low, high : tuple of float
        Values of each channel, as stored, that become 0 and 1.
    mean, std : tuple of float
        Of each channel of the prepared training images in 0…1; `std` is never 0.
    rgb : bool
        Whether the channels are red, green and blue.
    standardise : bool
        Whether the network gets (unit − mean) / std, or the range 0…1 as it is.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rgb: bool
    standardise: bool

    def to_json(self) -> dict[str, Any]:
        """Return it as plain lists, numbers and booleans."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Any) -> Normalisation:
        """Check and read what `to_json` gave.

        Raises
        ------
        RunError
            If anything is missing, unknown, of another type, or not possible.
        """
        per_channel, flags = ("low", "high", "mean", "std"), ("rgb", "standardise")
        keys = sorted(data) if isinstance(data, dict) else type(data).__name__
        if keys != sorted(per_channel + flags):
            raise RunError(f"expected a normalisation of {', '.join(per_channel + flags)}, but got {keys}")
        for key in flags:
            if not isinstance(data[key], bool):
                raise RunError(f"expected true or false as '{key}' of the normalisation, but got {data[key]!r}")
        for key in per_channel:
            if not _finite_numbers(data[key]) or len(data[key]) != len(data["low"]):
                raise RunError(f"expected a finite number for each channel in '{key}', but got {data[key]!r}")
        if any(high <= low for low, high in zip(data["low"], data["high"], strict=True)):
            raise RunError(f"expected 'high' above 'low' in each channel, but got {data['high']} and {data['low']}")
        if min(data["std"]) <= 0:
            raise RunError(f"expected a positive 'std' in each channel, but got {data['std']}")
        low, high, mean, std = (tuple(map(float, data[key])) for key in per_channel)
        return cls(low, high, mean, std, data["rgb"], data["standardise"])


@dataclass(frozen=True)
class Frame:
    """Where the working image lies in the input.

    Attributes
    ----------
    shape : (int, int)
        Height and width of the input.
    margin : int
        Pixels cut off at each border.
    working : (int, int)
        Height and width of the working image.
    patch : (slice, slice), optional
        Rows and columns of the working image that there are, if it is worked on in patches.
    """

    shape: tuple[int, int]
    margin: int
    working: tuple[int, int]
    patch: Patch | None = None

    @property
    def shown(self) -> Patch:
        """Rows and columns of the working image that there are."""
        height, width = self.working
        return self.patch or (slice(0, height), slice(0, width))

    @property
    def region(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns (start, stop) of the input that the patch shows."""
        rows, columns = (
            (
                self.margin + part.start * (n - 2 * self.margin) // size,
                self.margin - (-part.stop * (n - 2 * self.margin) // size),
            )
            for n, size, part in zip(self.shape, self.working, self.shown, strict=True)
        )
        return rows, columns

    def counts(self) -> NDArray[np.float64]:
        """Count the pixels of the input that take their class from each working pixel, (h, w)."""
        rows, columns = (
            np.bincount(places, minlength=h) for places, h in zip(self._places(), self.working, strict=True)
        )
        return np.outer(rows, columns).astype(np.float64)

    def _places(self) -> list[NDArray[np.intp]]:
        """Working row of each row of the input, and likewise of the columns."""
        return [
            _nearest(n - 2 * self.margin, h)[np.clip(np.arange(n) - self.margin, 0, n - 2 * self.margin - 1)]
            for n, h in zip(self.shape, self.working, strict=True)
        ]

    def to_working(self, labels: NDArray[Any]) -> NDArray[Any]:
        """Bring labels of the input to those of the patch: (H, W) → (h, w), by the nearest pixel."""
        cropped = [n - 2 * self.margin for n in self.shape]
        rows, columns = (
            (_nearest(h, n) + self.margin)[part] for h, n, part in zip(self.working, cropped, self.shown, strict=True)
        )
        return labels[rows[:, None], columns]


@dataclass(frozen=True)
class Prepared:
    """An image in the working size.

    Attributes
    ----------
    unit : (h, w, C) float32 array in 0…1
        For superpixels and pictures.
    network : (h, w, C) float32 array
        Input of the network.
    frame : Frame
        The way back to the size of the input.
    name : str
    rgb : bool
    colour : (C, h, w) float32 tensor
        `perceptual` of the image.
    smooth : (C, h, w) float32 tensor
        `colour` after a Gaussian of `SMOOTH` pixels.
    """

    unit: NDArray[np.float32]
    network: NDArray[np.float32]
    frame: Frame
    name: str
    rgb: bool

    @cached_property
    def colour(self) -> Tensor:
        """`perceptual` of the image, (C, h, w) on the CPU."""
        return torch.from_numpy(np.ascontiguousarray(np.moveaxis(perceptual(self.unit, rgb=self.rgb), -1, 0)))

    @cached_property
    def smooth(self) -> Tensor:
        """`colour` after a Gaussian of `SMOOTH` pixels: for superpixels, the finest contrast, and change in time."""
        return gaussian(self.colour, SMOOTH)


def perceptual(unit: NDArray[np.float32], *, rgb: bool) -> NDArray[np.float32]:
    """Bring an image (*spatial, C) in 0…1 to CIELAB (sRGB, D65), or channels that are no colours to the range 0…100.

    Equal to scikit-image's `rgb2lab` to 1e-3, in half its time: powers are exponentials of logarithms, of which the
    processor does several at once.
    """
    unit = np.asarray(unit, np.float32)
    if not rgb:
        return unit * np.float32(LAB_RANGE)
    low = np.float32(1e-9)
    curve = np.exp(np.log((unit + np.float32(0.055)) / np.float32(1.055)) * np.float32(2.4))
    linear = np.where(unit > np.float32(0.04045), curve, unit / np.float32(12.92))
    xyz = linear @ XYZ_OF_RGB
    root = np.exp(np.log(np.maximum(xyz, low)) / np.float32(3))
    f = np.where(xyz > np.float32(0.008856), root, np.float32(7.787) * xyz + np.float32(16 / 116))
    lab = np.empty_like(unit)
    lab[..., 0] = 116 * f[..., 1] - 16
    lab[..., 1] = 500 * (f[..., 0] - f[..., 1])
    lab[..., 2] = 200 * (f[..., 1] - f[..., 2])
    return lab


def measure(images: Iterable[Image], settings: ImageSettings) -> Normalisation:
    """Measure the training images, by which all images of a run are normalised.

    The range of 8-bit colours is 0 to 255, that of float colours within 0…1 is 0 to 1; else it is that of the 0.1 and
    99.9 percentiles over all the images without their margins, of each channel, or of all three colours together.

    Raises
    ------
    InputError
        If there is no image, their channels differ in number, or they are all constant.
    """
    images = list(images)
    if not images:
        raise InputError("expected at least one image to train on, but got none")
    _check_channels(images, images[0].pixels.shape[-1])
    cropped = [without_margin(image, settings.margin) for image in images]
    if all((pixels == pixels[0, 0]).all() for pixels in cropped):
        raise InputError(f"expected an image with something in it, but got a constant image '{images[0].name}'")
    rgb = all(image.rgb for image in images)
    channels = range(cropped[0].shape[-1])
    if rgb and all(pixels.dtype == np.uint8 for pixels in cropped):
        ranges = [(0.0, 255.0) for _ in channels]
    elif rgb and all(p.dtype.kind == "f" and p.min() >= 0 and p.max() <= 1 for p in cropped):
        ranges = [(0.0, 1.0) for _ in channels]
    else:
        ranges = [_range(np.concatenate([pixels[..., c].ravel() for pixels in cropped]), c) for c in channels]
    if rgb:  # one range for all three, or the colours would change
        ranges = [(min(low for low, _ in ranges), max(high for _, high in ranges)) for _ in channels]
    for c, (first, last) in enumerate(ranges):
        if last - first > float(np.finfo(np.float32).max):
            raise InputError(
                f"expected values within a range that 32-bit floats hold, but those of channel {c} of "
                f"'{images[0].name}' … go from {first:g} to {last:g}; replace fill values"
            )
    low, high = zip(*ranges, strict=True)
    units = [_unit(image, settings, frame_of(image.pixels.shape, settings), low, high) for image in images]
    count = sum(unit[..., 0].size for unit in units)
    mean = sum(unit.sum((0, 1), dtype=np.float64) for unit in units) / count
    variance = sum(np.square(unit - mean).sum((0, 1)) for unit in units) / count
    std = np.where(variance > LEAST_STD**2, np.sqrt(variance), 1.0)
    return Normalisation(low, high, tuple(mean.tolist()), tuple(std.tolist()), rgb, settings.normalise == "standardise")


def frame_of(shape: Sequence[int], settings: ImageSettings, patch: Patch | None = None) -> Frame:
    """Lay out the working image of an image (H, W, …), or of a patch of it, in working pixels."""
    return Frame((shape[0], shape[1]), settings.margin, working_size(shape, settings), patch)


def prepare(
    image: Image, settings: ImageSettings, normalisation: Normalisation, patch: Patch | None = None
) -> Prepared:
    """Prepare an image: cut the margin, bring to 0…1, scale, sharpen, normalise.

    Parameters
    ----------
    image : Image
    settings : ImageSettings
    normalisation : Normalisation
        From `measure` of the training images.
    patch : (slice, slice), optional
        Rows and columns in working pixels, if not all of it. Only sharpening sees their border.

    Raises
    ------
    InputError
        If the number of channels is another than in training, or the margin leaves nothing.
    """
    _check_channels([image], len(normalisation.low))
    frame = frame_of(image.pixels.shape, settings, patch)
    unit = _unit(image, settings, frame, normalisation.low, normalisation.high)
    network = unit
    if normalisation.standardise:
        mean, std = (np.asarray(values, np.float32) for values in (normalisation.mean, normalisation.std))
        network = np.divide(unit - mean, std, dtype=np.float32)
    return Prepared(unit, network, frame, image.name, normalisation.rgb)


def restore(labels: NDArray[Any], frame: Frame) -> NDArray[Any]:
    """Bring working labels to the size of the input: (h, w) → (H, W), by the nearest pixel, also in the margin."""
    rows, columns = frame._places()
    # The few columns first: whole rows are copied fast.
    return labels.take(columns, axis=1).take(rows, axis=0)


def to_unit(pixels: NDArray[Any], normalisation: Normalisation) -> NDArray[np.float32]:
    """Bring stored values (H, W, C) to 0…1, without margin, scale or sharpening."""
    return _to_unit(pixels, normalisation.low, normalisation.high)


def display(image: Image, normalisation: Normalisation, stride: int = 1) -> NDArray[np.uint8]:
    """Make a picture of every `stride`-th pixel of an image as it was stored, (h, w, 3)."""
    pixels = image.pixels[::stride, ::stride]
    if image.rgb and pixels.dtype == np.uint8 and set(normalisation.low + normalisation.high) == {0.0, 255.0}:
        return pixels  # that is what it would come to
    return to_display(to_unit(pixels, normalisation))


def to_display(unit: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Make a picture of a (h, w, C) image in 0…1: grey, magenta and green, or the first three channels as RGB."""
    shown = {1: [0, 0, 0], 2: [0, 1, 0]}.get(unit.shape[-1], [0, 1, 2])
    return np.asarray(unit[..., shown].clip(0, 1) * 255 + 0.5, np.uint8)


def working_size(shape: Sequence[int], settings: ImageSettings) -> tuple[int, int]:
    """Return height and width of the working image of an image (H, W, …)."""
    height, width = (max(1, n - 2 * settings.margin) for n in shape[:2])
    scale = 1.0 if settings.scale == "auto" else settings.scale
    if settings.scale == "auto":
        scale = min(1.0, math.sqrt(settings.max_pixels / (height * width)))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    if settings.scale == "auto" and min(height, width) == 1:  # a line that was to become thinner than a pixel
        height, width = min(height, settings.max_pixels), min(width, settings.max_pixels)
    return height, width


def _check_channels(images: Sequence[Image], channels: int) -> None:
    for image in images:
        if image.pixels.shape[-1] != channels:
            raise InputError(
                f"expected {channels} channels as in the training images, but '{image.name}' has "
                f"{image.pixels.shape[-1]}; give images of one kind"
            )


def without_margin(image: Image, margin: int) -> NDArray[Any]:
    """Return the pixels of an image without those at its borders."""
    height, width = image.pixels.shape[:2]
    if min(height, width) <= 2 * margin:
        raise InputError(
            f"expected '{image.name}' of {height}×{width} pixels to be larger than the margins of {margin} pixels at "
            "each border; use a smaller `images.margin`"
        )
    return image.pixels[margin : height - margin, margin : width - margin]


def _range(values: NDArray[Any], channel: int) -> tuple[float, float]:
    """Values of one channel that become 0 and 1."""
    low, high = map(float, np.percentile(values, PERCENTILES))
    if low >= high:  # nearly all pixels are alike
        low, high = float(values.min()), float(values.max())
    if low >= high:
        logger.warning("channel %d is constant (%g) in all training images; it tells nothing", channel, low)
        high = low + max(1.0, abs(low) * LEAST_STD)
    return low, high


def _unit(
    image: Image, settings: ImageSettings, frame: Frame, low: Sequence[float], high: Sequence[float]
) -> NDArray[np.float32]:
    """Cut, bring to 0…1, scale and sharpen, channel by channel."""
    unit = _resized_unit(without_margin(image, settings.margin), frame, low, high)
    for c in range(unit.shape[-1]):
        unit[..., c] = _sharpen(unit[..., c], settings)
    return unit


def _resized_unit(
    pixels: NDArray[Any], frame: Frame, low: Sequence[float], high: Sequence[float]
) -> NDArray[np.float32]:
    """Bring stored values (H, W, C) to 0…1, and to the working size: (h, w, C), all of it or a patch.

    Bilinearly; on reduction over as many pixels as fall together. A few rows at a time: the whole image as floats would
    pass through memory several times.
    """
    height, width, channels = pixels.shape
    if (height, width) == frame.working:
        return _to_unit(pixels[frame.shown], low, high)
    rows, columns = (
        _resampling(n, size)[part] for n, size, part in zip((height, width), frame.working, frame.shown, strict=True)
    )
    left, right = int(columns.indices.min()), int(columns.indices.max()) + 1
    columns, width = columns[:, left:right], right - left
    size = rows.shape[0], columns.shape[0]
    unit = np.empty((*size, channels), np.float32)
    for start in range(0, size[0], BLOCK_ROWS):
        some = rows[start : start + BLOCK_ROWS]
        first, last = int(some.indices.min()), int(some.indices.max()) + 1
        block = _to_unit(pixels[first:last, left:right], low, high).reshape(last - first, width * channels)
        block = some[:, first:last] @ block
        count = len(block)
        block = columns @ block.reshape(count, width, channels).swapaxes(0, 1).reshape(width, count * channels)
        unit[start : start + count] = block.reshape(size[1], count, channels).swapaxes(0, 1)
    return unit.clip(0, 1, out=unit)


@lru_cache(maxsize=16)
def _resampling(size: int, wanted: int) -> csr_array:
    """Weight of each of `size` pixels in each of those `wanted`: a triangle of twice the larger pixel's width."""
    from scipy.sparse import csr_array

    scale = size / wanted
    reach = max(scale, 1.0)
    centres = (np.arange(wanted) + 0.5) * scale
    offsets = np.arange(math.ceil(2 * reach) + 1)
    places = np.floor(centres - reach).astype(int)[:, None] + offsets
    weights = (1 - np.abs(places + 0.5 - centres[:, None]) / reach).clip(0)
    weights[(places < 0) | (places >= size)] = 0
    weights /= weights.sum(1, keepdims=True)
    inside = weights > 0
    targets = np.broadcast_to(np.arange(wanted)[:, None], places.shape)[inside]
    return csr_array((weights[inside].astype(np.float32), (targets, places[inside])), shape=(wanted, size))


def _to_unit(pixels: NDArray[Any], low: Sequence[float], high: Sequence[float]) -> NDArray[np.float32]:
    """Bring stored values (…, C) to 0…1."""
    if len(set(low)) == len(set(high)) == 1:
        return _range_to_unit(pixels, low[0], high[0])
    unit = np.empty(pixels.shape, np.float32)
    for c, ends in enumerate(zip(low, high, strict=True)):
        unit[..., c] = _range_to_unit(pixels[..., c], *ends)
    return unit


def _range_to_unit(pixels: NDArray[Any], low: float, high: float) -> NDArray[np.float32]:
    # large integers and doubles differ by less than single precision can tell
    precision: Any = np.float32 if pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32 else np.float64
    unit = pixels.astype(precision)
    if low != 0:
        unit -= low
    unit /= high - low
    if pixels.dtype.kind == "u" and low == 0 and np.iinfo(pixels.dtype).max <= high:
        return unit.astype(np.float32, copy=False)  # nothing to clip
    return np.clip(unit, 0, 1, out=unit).astype(np.float32, copy=False)


def _sharpen(channel: NDArray[np.float32], settings: ImageSettings) -> NDArray[np.float32]:
    """Unsharp mask: x + amount · (x − Gaussian of x), clipped to 0…1."""
    if settings.unsharp_radius == 0 or settings.unsharp_amount == 0:
        return channel
    from scipy.ndimage import gaussian_filter

    detail: NDArray[np.float32] = channel - gaussian_filter(channel, settings.unsharp_radius)
    return (channel + np.float32(settings.unsharp_amount) * detail).clip(0, 1)


def _nearest(size: int, available: int) -> NDArray[np.intp]:
    """Index ⌊(i + ½) · available / size⌋ for i < size, in whole numbers."""
    return (2 * np.arange(size) + 1) * available // (2 * size)


def _finite_numbers(values: Any) -> bool:
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(v, int | float) and not isinstance(v, bool) and abs(v) <= MOST for v in values)
    )

"""Gathering the training images: which ones, read, checked, prepared and oversegmented."""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spwnet.codebook import Descriptors, fit_codebook
from spwnet.descriptors import handmade
from spwnet.devices import available_memory
from spwnet.errors import InputError, RunError, SettingsError
from spwnet.images import (
    Image,
    check_same_channels,
    fingerprint,
    frame_indices,
    image_size,
    label_image,
    open_images,
)
from spwnet.prediction import prepare_image
from spwnet.preparation import measure, prepare, working_size
from spwnet.training import check_images
from spwnet.volumes import SliceSource
from spwnet.volumetric import check_slices

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from spwnet.config import ImageSettings, Settings
    from spwnet.images import ImageSource
    from spwnet.preparation import Normalisation, Patch, Prepared
    from spwnet.superpixels import Superpixels
    from spwnet.volumes import Volume

logger = logging.getLogger(__name__)

TRAINING_BYTES, PREDICTION_BYTES, STITCHING_BYTES = 700, 450, 60
"""Memory that a working pixel takes in training, in prediction, and where only patches of its image are worked on.

Measured with three channels, and some more.
"""
PATCH_SIDE = 1024
"""Working pixels along the sides of the patches that are trained on where images do not fit, at most."""
MOST_CANDIDATES = 48
"""Images that "auto" looks at."""
CANDIDATE_PIXELS, CANDIDATE_SIDE = 16_384, 128
"""Pixels of the small versions that it describes, at most, and about how many along the shorter side."""


@dataclass
class TrainingData:
    """Training images, with what a run says of them.

    Attributes
    ----------
    pairs : list of (Prepared, Superpixels or None)
        Of each image; None where the settings want no superpixels.
    normalisation : Normalisation
        Measured on all of them.
    info : dict
        For ``run.json``: "channels", and of each of the "images" name, SHA-256, shapes and number of superpixels.
    """

    pairs: list[tuple[Prepared, Superpixels | None]]
    normalisation: Normalisation
    info: dict[str, Any]


def gather(
    images: Any,
    frames: Sequence[int | str] | str | None,
    superpixels: Any,
    settings: Settings,
    known: Mapping[str, Sequence[Patch | None]] | None = None,
) -> TrainingData:
    """Read, check, prepare and oversegment the training images, or patches of them where they do not fit.

    Parameters
    ----------
    images, frames, superpixels, settings
        As in `train`.
    known : mapping of str to sequence of (slice, slice) or None, optional
        Patches by the SHA-256 of their image, of a training that goes on: whatever memory there is now.
    """
    source = open_images(images, settings.images.axes)
    chosen = training_indices(source, frames, settings)
    channels = check_same_channels(source, chosen)
    if known is None:
        check_memory(source, chosen, settings.images, STITCHING_BYTES, "train on", together=True)
    label_source = label_source_of(superpixels, settings, source)
    raw = [source[index] for index in chosen]
    normalisation = measure(raw, settings.images)
    digests = [fingerprint(image) for image in raw]
    sizes = [working_size(image.pixels.shape, settings.images) for image in raw]
    pixels, memory = sum(map(math.prod, sizes)), available_memory()
    if known is None:
        patches = [patches_of(size, memory / (TRAINING_BYTES * pixels)) for size in sizes]
    else:
        patches = [list(known.get(digest, [None])) for digest in digests]
        _check_within(sizes, patches)
    n_patches = sum(patch is not None for some in patches for patch in some)
    if n_patches:
        logger.warning(
            "%.3g million working pixels do not fit into %.1f GiB of memory: training on %d patches of them",
            pixels / 1e6, memory / 2**30, n_patches,
        )  # fmt: skip
    pairs, described = [], []
    for image, index, digest, some in zip(raw, chosen, digests, patches, strict=True):
        own = label_source(index)
        for number, patch in enumerate(some, start=1):
            name = image.name if len(some) == 1 else f"{image.name} ({number} of {len(some)})"
            prepared, regions = prepare_image(replace(image, name=name), settings, normalisation, own, patch)
            pairs.append((prepared, regions))
            height, width = prepared.unit.shape[:2]
            count = None if regions is None else regions.count
            logger.info("%s: %d×%d working pixels, %s superpixels", name, height, width, count or "no")
            described.append(
                {
                    "name": name,
                    "sha256": digest,
                    "shape": list(image.pixels.shape),
                    "working_shape": [height, width],
                    "superpixels": count,
                    **({} if patch is None else {"patch": [[part.start, part.stop] for part in patch]}),
                }
            )
    if settings.learns:
        check_images([prepared for prepared, _ in pairs], settings)
    return TrainingData(pairs, normalisation, {"channels": channels, "images": described})


def _check_within(sizes: Sequence[tuple[int, int]], patches: Sequence[Sequence[Patch | None]]) -> None:
    for size, some in zip(sizes, patches, strict=True):
        for patch in some:
            if patch and not all(0 <= part.start < part.stop <= n for part, n in zip(patch, size, strict=True)):
                raise RunError(
                    f"expected patches within {size[0]}×{size[1]} working pixels in run.json, but got rows and columns "
                    f"{[(part.start, part.stop) for part in patch]}; start again by `--overwrite`"
                )


def patches_in(info: dict[str, Any]) -> dict[str, list[Patch | None]]:
    """Return the patches that ``run.json`` tells of, by the SHA-256 of their image.

    Raises
    ------
    RunError
        If they are damaged.
    """
    found: dict[str, list[Patch | None]] = {}
    try:
        for image in info.get("images", []):
            patch = image.get("patch")
            if patch is not None:
                (top, bottom), (left, right) = patch
                patch = slice(int(top), int(bottom)), slice(int(left), int(right))
            # Of images that are the same, each has these patches.
            if patch not in (known := found.setdefault(image["sha256"], [])):
                known.append(patch)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"expected the training images in run.json as written, but: {error!r}; start again by `--overwrite`"
        ) from error
    return found


def patches_of(working: tuple[int, int], ratio: float) -> list[Patch | None]:
    """Spread patches evenly over a working image, to so much of it as there is memory for.

    Parameters
    ----------
    working : (int, int)
        Height and width of the working image.
    ratio : float
        Memory that there is over the memory that is needed.

    Returns
    -------
    list of (slice, slice) or None
        Rows and columns of each patch; None alone is the whole image, for which there is memory.
    """
    if ratio >= 1:
        return [None]
    height, width = working
    pixels = height * width * ratio
    side = max(1, min(PATCH_SIDE, math.isqrt(int(pixels))))
    h, w = min(height, side), min(width, side)
    count = max(1, int(pixels / (h * w)))
    rows = min(count, height // h, max(1, round(math.sqrt(count * height / width))))
    columns = min(count // rows, width // w)
    tops, lefts = (
        [(2 * k + 1) * n // (2 * many) - part // 2 for k in range(many)]
        for n, many, part in ((height, rows, h), (width, columns, w))
    )
    return [(slice(top, top + h), slice(left, left + w)) for top in tops for left in lefts]


def memory_ratio(
    source: ImageSource, chosen: Sequence[int], settings: ImageSettings, bytes_each: int, *, together: bool
) -> float:
    """Estimate how many times the memory that images need can be had.

    Parameters
    ----------
    source : ImageSource
    chosen : sequence of int
        Positions in it.
    settings : ImageSettings
    bytes_each : int
        Memory that a working pixel takes.
    together : bool
        Whether all of them are held at a time, or the largest on its own.
    """
    return available_memory() / max(1, _working_pixels(source, chosen, settings, together) * bytes_each)


def check_memory(
    source: ImageSource, chosen: Sequence[int], settings: ImageSettings, bytes_each: int, what: str, *, together: bool
) -> None:
    """Check that the memory that images need can be had, as `memory_ratio`; `what` is done with them.

    Raises
    ------
    SettingsError
    """
    pixels = _working_pixels(source, chosen, settings, together)
    needed, there = pixels * bytes_each, available_memory()
    if needed > there:
        raise SettingsError(
            f"expected about {needed / 2**30:.1f} GiB of memory to {what} {pixels / 1e6:.1f} million working pixels, "
            f"but there are {there / 2**30:.1f} GiB; use a lower `images.scale` (at most "
            f"{math.sqrt(there / needed):.2g} of the present), or leave it at 'auto'"
        )


def _working_pixels(source: ImageSource, chosen: Sequence[int], settings: ImageSettings, together: bool) -> int:
    counts = []
    for index in chosen:
        # Whatever its size, "auto" has an upper bound; what cannot be read is told of later.
        with suppress(InputError):
            auto = settings.scale == "auto"
            counts.append(settings.max_pixels if auto else math.prod(working_size(image_size(source, index), settings)))
    return sum(counts) if together else max(counts, default=0)


def training_indices(source: ImageSource, frames: Sequence[int | str] | str | None, settings: Settings) -> list[int]:
    """Positions of the training images: those named, "auto", or a few spread evenly."""
    count = min(settings.training.images, len(source))
    if isinstance(frames, str) and frames == "auto":
        chosen = varied_indices(source, count, settings)
        logger.info("training on %s, which differ most", ", ".join(source.names[i] for i in chosen))
        return chosen
    if frames is not None:
        return frame_indices(source, frames)
    if isinstance(source, SliceSource):
        # The ends of a tomogram are often empty or blurred: the middle of each of so many equal parts.
        chosen = [int(i) for i in (np.arange(count) + 0.5) * len(source) / count]
    else:
        chosen = [int(i) for i in np.linspace(0, len(source) - 1, count).round()] if count > 1 else [0]
    if count < len(source):
        logger.info(
            "training on %d of %d images: %s (choose others by `frames`, or how many by `training.images`)",
            count, len(source), ", ".join(source.names[i] for i in chosen),
        )  # fmt: skip
    return chosen


def training_slices(
    volume: Volume, frames: Sequence[int | str] | str | None, settings: Settings
) -> list[tuple[int, SliceSource, int]]:
    """Slices of a volume to train on: the axis that each is across, the slices across it, and its position.

    Across several axes, those named are taken of each, else so many are shared out among them.

    Raises
    ------
    InputError
        If they do not fit into memory, before they are read, or are not there.
    """
    axes = settings.volumes.axes
    found = []
    for number, axis in enumerate(axes):
        source = SliceSource(volume, "zyx"[axis])
        count = len(range(number, settings.training.images, len(axes)))
        few = settings.training.model_copy(update={"images": count})
        check_slices(volume, [axis])
        if frames is not None and not (isinstance(frames, str) and frames == "auto"):
            found += [(axis, source, index) for index in frame_indices(source, frames)]
        elif count:
            some = training_indices(source, frames, settings.model_copy(update={"training": few}))
            found += [(axis, source, index) for index in some]
    check_slices(volume, [axis for axis, _, _ in found])
    return found


def varied_indices(source: ImageSource, count: int, settings: Settings) -> list[int]:
    """Positions of a few images that cover the variety of all.

    Up to `MOST_CANDIDATES` images, spread evenly, are each described by mean and standard deviation of the hand-made
    evidence over a small version of it, and by its colours on a grid of 3×3. k-means divides them into as many groups
    as images are asked for; the image nearest to the centre of each is taken. What cannot be read is no candidate.

    Parameters
    ----------
    source : ImageSource
    count : int
    settings : Settings

    Raises
    ------
    InputError
        If none can be read.
    """
    candidates = np.unique(np.linspace(0, len(source) - 1, min(len(source), MOST_CANDIDATES)).round().astype(int))
    small = settings.images.model_copy(update={"scale": "auto", "max_pixels": CANDIDATE_PIXELS, "unsharp_radius": 0.0})
    images: dict[int, Image] = {}
    for index in candidates.tolist():
        try:
            image = source[index]
        except InputError as error:
            logger.warning("%s is no candidate for training: %s", source.names[index], error)
            continue
        step = max(1, min(image.pixels.shape[:2]) // CANDIDATE_SIDE)
        images[index] = Image(image.pixels[::step, ::step].copy(), image.name, image.rgb)
    if not images:
        raise InputError("expected images to choose from, but none of them can be read; check the input")
    normalisation = measure(images.values(), small.model_copy(update={"margin": 0}))
    rows = []
    for image in images.values():
        prepared = prepare(image, small.model_copy(update={"margin": 0}), normalisation)
        colour = prepared.colour
        evidence = handmade(colour, 2, prepared.smooth).flatten(1)
        grid = torch.nn.functional.adaptive_avg_pool2d(colour, 3).flatten()
        rows.append(torch.cat([evidence.mean(1), evidence.std(1, unbiased=False), grid]).numpy())
    described = np.stack(rows)
    size = len(evidence)
    parts = [(size, 1.0), (size, 1.0), (described.shape[1] - 2 * size, 1.0)]
    codebook = fit_codebook([Descriptors(described)], parts, count, settings.seed)
    scaled = (described - codebook.mean) / codebook.scale
    squares = np.square(scaled[:, None] - codebook.centres).sum(2)
    positions = list(images)
    return sorted({positions[int(k)] for k in squares.argmin(0)})


def label_source_of(superpixels: Any, settings: Settings, images: ImageSource) -> Callable[[int], NDArray[Any] | None]:
    """Return a function from an image's position to the user's superpixels of it: by name, else by order."""
    given = superpixels if superpixels is not None else settings.superpixels.labels
    if given is None:
        return lambda _: None
    if settings.superpixels.method != "labels":
        raise SettingsError(
            "expected `superpixels.method = 'labels'` because superpixels were given, but it is "
            f"{settings.superpixels.method!r}"
        )
    source = open_images(given, None)
    if set(images.names) <= set(source.names):
        return lambda index: label_image(source, source.names.index(images.names[index]))
    unknown = [name for name in images.names if name not in source.names]
    if superpixels is None or len(unknown) < len(images):
        raise InputError(
            f"expected superpixels of the same name as each image, but there are none for '{unknown[0]}'; give those "
            "of these images by `superpixels`"
        )
    if len(source) != len(images):
        raise InputError(f"expected one superpixel image for each of {len(images)} images, but got {len(source)}")
    return lambda index: label_image(source, index)

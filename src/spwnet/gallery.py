"""What a run keeps of its training images, to be looked at without them: pictures, finest classes, measures."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import InputError, RunError
from spwnet.images import label_image, open_images
from spwnet.outputs import MOST_JPEG, write_labels, write_picture
from spwnet.storage import parse_json, prepare_folder, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    Region = tuple[tuple[int, int], tuple[int, int]]

FORMAT = 1
MOST_SHOWN = 8
"""Training images that are kept, at most."""
MOST_PIXELS = 1_000_000
"""Of an image that is kept; of a larger one every second, third … row and column."""
NEVER = 255.0


@dataclass(frozen=True)
class Exhibit:
    """A training image as it is shown.

    Attributes
    ----------
    name : str
    picture : (h, w, 3) uint8 array
        sRGB.
    labels : (h, w) int32 array
        Finest class of each pixel.
    uncertainty : (h, w) float32 array in 0…1, or None
        How uncertain each pixel is, where it is known: 0 is sure.
    region : ((int, int), (int, int))
        Rows and columns (start, stop) of the image as stored that the picture shows.
    stored : (int, int) or None
        Height and width of the image as stored, where they are known.
    """

    name: str
    picture: NDArray[np.uint8]
    labels: NDArray[np.int32]
    uncertainty: NDArray[np.float32] | None
    region: Region
    stored: tuple[int, int] | None = None

    def locate(self, rows: ArrayLike, columns: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return row and column in the picture of pixels of the image as stored.

        Raises
        ------
        InputError
            If one is not in the picture.
        """
        found = []
        for places, (start, stop), size in zip((rows, columns), self.region, self.labels.shape, strict=True):
            values = np.asarray(places)
            if ((values < start) | (values >= stop)).any():
                odd = values[(values < start) | (values >= stop)].flat[0]
                raise InputError(
                    f"expected places in rows {self.region[0][0]} to {self.region[0][1] - 1} and columns "
                    f"{self.region[1][0]} to {self.region[1][1] - 1} of '{self.name}', but got {odd}"
                )
            found.append(((values - start) * size // (stop - start)).astype(np.intp))
        return found[0], found[1]


@dataclass(frozen=True)
class Gallery:
    """What a run shows of its training images.

    Attributes
    ----------
    exhibits : tuple of Exhibit
    classes : list of dict
        Of each of the finest classes its "pixels" over all training images, "means" of each channel in stored values or
        None if it does not occur, and "uncertainty", its mean, or None.
    """

    exhibits: tuple[Exhibit, ...]
    classes: list[dict[str, Any]]


def make_gallery(
    names: Sequence[str],
    pictures: Sequence[NDArray[np.uint8]],
    labels: Sequence[NDArray[np.int32]],
    values: Sequence[NDArray[np.floating[Any]]],
    uncertainty: Sequence[NDArray[np.float32]] | None,
    regions: Sequence[Region],
    n_finest: int,
    stored: Sequence[tuple[int, int]] | None = None,
) -> Gallery:
    """Measure the finest classes on all training images, and take a few of these to be shown.

    Parameters
    ----------
    names : sequence of str
    pictures : sequence of (h, w, 3) uint8 arrays
    labels : sequence of (h, w) int32 arrays
        Finest class of each pixel.
    values : sequence of (h, w, C) arrays
        Of each pixel in stored units.
    uncertainty : sequence of (h, w) float32 arrays, or None
    regions : sequence of ((int, int), (int, int))
        Rows and columns of the stored images that the pictures show.
    n_finest : int
    stored : sequence of (int, int), optional
        Height and width of the stored images.
    """
    pixels = np.zeros(n_finest)
    sums = np.zeros((n_finest, values[0].shape[-1]))
    doubts = np.zeros(n_finest)
    for index, found in enumerate(labels):
        flat = found.ravel()
        pixels += np.bincount(flat, minlength=n_finest)
        for channel in range(sums.shape[1]):
            sums[:, channel] += np.bincount(flat, values[index][..., channel].ravel(), n_finest)
        if uncertainty is not None:
            doubts += np.bincount(flat, uncertainty[index].ravel(), n_finest)
    chosen = np.unique(np.linspace(0, len(names) - 1, min(len(names), MOST_SHOWN)).round().astype(int)).tolist()
    exhibits = []
    for index in chosen:
        shape = labels[index].shape
        step = math.ceil(max(math.sqrt(shape[0] * shape[1] / MOST_PIXELS), max(shape) / MOST_JPEG))
        thinned = (slice(None, None, step), slice(None, None, step))
        doubt = None if uncertainty is None else uncertainty[index][thinned]
        exhibits.append(
            Exhibit(
                names[index],
                pictures[index][thinned],
                labels[index][thinned],
                doubt,
                regions[index],
                None if stored is None else stored[index],
            )
        )
    classes = [
        {
            "pixels": int(pixels[k]),
            "means": [float(value) for value in sums[k] / max(pixels[k], 1)] if pixels[k] else None,
            "uncertainty": float(doubts[k] / pixels[k]) if pixels[k] and uncertainty is not None else None,
        }
        for k in range(n_finest)
    ]
    return Gallery(tuple(exhibits), classes)


def write_gallery(folder: Path, gallery: Gallery) -> None:
    """Write a gallery into a folder of its own, ``gallery.json`` last.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    prepare_folder(folder, overwrite=True)
    description = folder / "gallery.json"
    description.unlink(missing_ok=True)
    for number, exhibit in enumerate(gallery.exhibits):
        write_picture(folder / f"{number:02d}.jpg", exhibit.picture)
        write_labels(folder / f"{number:02d}_labels.png", exhibit.labels, len(gallery.classes))
        if exhibit.uncertainty is not None:
            doubt = np.rint(exhibit.uncertainty * NEVER).astype(np.uint8)
            write_picture(folder / f"{number:02d}_uncertainty.png", doubt)
    images = [
        {
            "name": exhibit.name,
            "shape": list(exhibit.labels.shape),
            "region": exhibit.region,
            "stored": exhibit.stored,
            "uncertainty": exhibit.uncertainty is not None,
        }
        for exhibit in gallery.exhibits
    ]
    write_json(description, {"format": FORMAT, "images": images, "classes": gallery.classes})


def read_gallery(folder: Path) -> Gallery:
    """Read what `write_gallery` wrote.

    Raises
    ------
    RunError
        If it is missing, damaged or of a newer format.
    """
    path = folder / "gallery.json"
    try:
        described = parse_json(path.read_text(encoding="utf-8"))
        version = described["format"]
    except FileNotFoundError:
        raise RunError(
            f"expected what the run shows of its training images at {folder}, but there is none; train the run again"
        ) from None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(f"expected a readable {path}, but: {error!r}; train the run again") from error
    if not isinstance(version, int) or version > FORMAT:
        raise RunError(f"expected a gallery of format {FORMAT} at {path}, but got {version!r}; update spwnet")
    try:
        images, classes = list(described["images"]), list(described["classes"])
        exhibits = tuple(_read_exhibit(folder, number, entry) for number, entry in enumerate(images[:MOST_SHOWN]))
        beyond = [exhibit.name for exhibit in exhibits if exhibit.labels.max() >= len(classes)]
        if beyond or not exhibits:
            raise ValueError(f"classes of '{beyond[0]}' are not among {len(classes)}" if beyond else "no image")
        _check_measures(classes)
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise RunError(f"expected the training images of a run at {folder}, but: {error}; train it again") from error
    return Gallery(exhibits, classes)


def _read_exhibit(folder: Path, number: int, entry: dict[str, Any]) -> Exhibit:
    """Read one image; raises ValueError, or an error of ours, if it is not what the description says."""
    name, shape = str(entry["name"]), tuple(map(int, entry["shape"]))
    picture = open_images(folder / f"{number:02d}.jpg", None)[0].pixels
    labels = label_image(open_images(folder / f"{number:02d}_labels.png", None), 0)
    doubt = None
    if entry["uncertainty"]:
        doubt = open_images(folder / f"{number:02d}_uncertainty.png", None)[0].pixels[..., 0].astype(np.float32) / NEVER
    shapes = {labels.shape, picture.shape[:2], *([] if doubt is None else [doubt.shape])}
    if shapes != {shape} or picture.dtype != np.uint8:
        raise ValueError(f"'{name}' is {shape}, but its files are {shapes}")
    if picture.shape[2] == 1:
        picture = np.repeat(picture, 3, axis=2)
    (top, bottom), (left, right) = ((int(start), int(stop)) for start, stop in entry["region"])
    if top >= bottom or left >= right:
        raise ValueError(f"'{name}' shows rows {top} to {bottom} and columns {left} to {right}")
    stored = None
    if entry.get("stored") is not None:
        height, width = map(int, entry["stored"])
        stored = height, width
        if bottom > height or right > width:
            raise ValueError(f"'{name}' shows rows to {bottom} and columns to {right} of {height}×{width} pixels")
    return Exhibit(name, picture, labels, doubt, ((top, bottom), (left, right)), stored)


def _check_measures(classes: list[Any]) -> None:
    for k, entry in enumerate(classes):
        numbers = [entry["pixels"], *(entry["means"] or []), entry["uncertainty"] or 0.0]
        if not all(isinstance(n, int | float) and np.isfinite(n) for n in numbers):
            raise ValueError(f"the measures of class {k} are none")

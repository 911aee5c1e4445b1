"""The sets of real images below `SPWNET_DATA`: which frames to train on, which to score, and their truth."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.images import ImageSource, label_image, open_images

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

VOLUME_SHARES = (0.2, 0.4, 0.6, 0.8)
"""Depths of the slices that a volume is trained on."""
CHEETAH_TRAINING = (10, 123, 270, 370)
CHEETAH_WINDOW = (slice(10, 1066), slice(22, 1894))
"""Part of the frame that the published labels cover."""


@dataclass(frozen=True)
class Set:
    """Images, and the truth of some or all of them.

    Attributes
    ----------
    name : str
    images, truth : ImageSource
    training : tuple of int
        Frame numbers of `images` to train on, and to name classes by where they have a truth.
    labelled : dict of {int: int}
        Frame number → position in `truth`.
    ignore : tuple of int
        Labels of the truth that do not count.
    window : tuple of slices
        Part of an image that its truth covers, maybe at another size.
    names : pairs of int and str
        What the labels of the truth are called.
    """

    name: str
    images: ImageSource
    truth: ImageSource
    training: tuple[int, ...]
    labelled: dict[int, int]
    ignore: tuple[int, ...] = ()
    window: tuple[slice, ...] = (slice(None), slice(None))
    names: tuple[tuple[int, str], ...] = ()

    def scored(self, most: int | None = None) -> list[int]:
        """Frame numbers that are scored: with a truth and not trained on; all, or `most` of them evenly spread."""
        frames = [number for number in self.labelled if number not in self.training]
        if most is None or most >= len(frames):
            return frames
        return [frames[int(i)] for i in np.linspace(0, len(frames) - 1, most).round()]

    def frame(self, number: int) -> tuple[NDArray[Any], bool]:
        """Pixels (H, W, C) as stored, and whether they are red, green and blue."""
        image = self.images[self.images.numbers.index(number)]
        return image.pixels, image.rgb

    def truth_of(self, number: int) -> NDArray[Any]:
        return label_image(self.truth, self.labelled[number])

    def on_truth(self, values: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """Bring an array (H, W) on an image's pixels to those of its truth, by the nearest pixel."""
        part = values[self.window]
        if part.shape == shape:
            return part
        rows, columns = (
            ((np.arange(wanted) + 0.5) * have / wanted).astype(int)
            for wanted, have in zip(shape, part.shape, strict=True)
        )
        return part[np.ix_(rows, columns)]


def folder(name: str) -> Path | None:
    """Return the set of that name below `SPWNET_DATA`, or None if it is not there."""
    from pathlib import Path

    root = os.environ.get("SPWNET_DATA")
    path = Path(root) / name if root else None
    return path if path and path.is_dir() else None


def load(name: str, path: Path) -> Set:
    """Open a set by its name; the kind of set is the name's first part."""
    kind = name.split("/")[0]
    if kind == "volumes":
        images, truth = open_images(path / "image.tif", "ZYX"), open_images(path / "labels.tif", "ZYX")
        training = [round(share * (len(images) - 1)) for share in VOLUME_SHARES]
        return Set(name, images, truth, _numbers(images, training), _all(images), ignore=(255,))
    images = open_images(path / "images")
    if kind == "cheetah":
        truth = open_images(path / "published_labels")
        labelled = {number: k for k, number in enumerate(truth.numbers)}
        return Set(
            name, images, truth, CHEETAH_TRAINING, labelled, (), CHEETAH_WINDOW,
            ((0, "ground"), (1, "animal"), (2, "sky")),
        )  # fmt: skip
    truth = open_images(path / "labels")
    if kind == "micro":
        return Set(name, images, truth, _numbers(images, [0, 1, 2, 3]), _all(images))
    last = len(images) - 1
    spread = [0, round(last / 3), round(2 * last / 3), last]
    return Set(name, images, truth, _numbers(images, spread), _all(images), ignore=(0,))


def _numbers(images: ImageSource, positions: list[int]) -> tuple[int, ...]:
    return tuple(images.numbers[k] for k in positions)


def _all(images: ImageSource) -> dict[int, int]:
    return {number: k for k, number in enumerate(images.numbers)}

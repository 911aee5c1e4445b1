"""What an image is, and what a source of images is, whatever it reads from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_PIXELS = 10**9
"""Pixels of one image at most, lest a small file fill the memory."""


@dataclass(frozen=True)
class Image:
    """One image as it was stored.

    Attributes
    ----------
    pixels : (H, W, C) array
        Integers or floats as stored, booleans as uint8, without alpha.
    name : str
        Unique in its source, without suffix.
    rgb : bool
        Whether the channels are red, green and blue.
    """

    pixels: NDArray[Any]
    name: str
    rgb: bool


@runtime_checkable
class ImageSource(Protocol):
    """An ordered set of images that are read one by one.

    `names` are unique, ordered and safe as file names. `numbers` are the frame numbers users speak of. Indexing by a
    position from 0 reads the image anew each time; its pixels are always (H, W, C), no axis dropped, and finite.
    Indexing raises `InputError` for what cannot be read. A source that knows the channels of an image without reading
    it has a method ``channels(position)``, and one that knows its height and width ``size(position)``.
    """

    @property
    def names(self) -> tuple[str, ...]:
        """Unique names in order."""

    @property
    def numbers(self) -> tuple[int, ...]:
        """Frame numbers in order: the last integer in each file's name, or positions from 0."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Image: ...


def numbered(stem: str, count: int) -> list[str]:
    """Names of several images that come from one file."""
    digits = max(4, len(str(count - 1)))
    return [f"{stem}_{k:0{digits}d}" for k in range(count)]

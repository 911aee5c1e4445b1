"""Single files of images, and arrays: opened without reading their pixels, as arrays with named axes."""

from __future__ import annotations

import logging
import math
import weakref
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import InputError
from spwnet.sources import MOST_PIXELS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL.ImageFile import ImageFile

logger = logging.getLogger(__name__)

PICTURES = (".png", ".jpg", ".jpeg", ".bmp")

TIFFS = (".tif", ".tiff")

MOST_CHANNELS = 16
"""A last axis of up to this length, shorter than both others, is read as channels where three axes have no names."""

MOST_VALUES = 4 * MOST_PIXELS
"""Values of one image at most, of all its channels together: those of the largest RGBA image."""

SIDEWAYS = (5, 6, 7, 8)
"""Orientations of EXIF that swap rows and columns."""

ALPHA = {"LA", "RGBA", "PA", "La", "RGBa"}

GREY = {"1", "L", "LA", "La", "I", "I;16", "I;16B", "F"}


@dataclass(frozen=True)
class Stack:
    """An array with named axes whose pixels `take` reads by basic indexing; Y, X, channel axes C and S, else frames."""

    shape: tuple[int, ...]
    axes: str
    take: Callable[[tuple[int | slice, ...]], NDArray[Any]]
    kept: int | None = None  # channels before the alpha, where there is alpha
    coloured: bool = False  # three channels are red, green, blue

    def __post_init__(self) -> None:
        if 0 in self.shape:
            raise InputError(f"expected at least one pixel, but the shape is {self.shape}")
        height, width = (self.shape[self.axes.index(axis)] for axis in "YX")
        if height * width > MOST_PIXELS:
            raise InputError(
                f"expected images of at most {MOST_PIXELS:,} pixels, but got {height}×{width}; cut it into parts"
            )
        values = math.prod(n for n, axis in zip(self.shape, self.axes, strict=True) if axis in "YXCS")
        if values > MOST_VALUES:
            raise InputError(
                f"expected images of at most {MOST_VALUES:,} values, but got {height}×{width} pixels of "
                f"{values // (height * width):,} channels; leave channels out, or cut it into parts"
            )

    @property
    def frame_shape(self) -> tuple[int, ...]:
        """Lengths of the axes along which images lie."""
        return tuple(n for n, axis in zip(self.shape, self.axes, strict=True) if axis not in "YXCS")

    @property
    def channels(self) -> int:
        """Number of channels without alpha."""
        return self.kept or math.prod(n for n, axis in zip(self.shape, self.axes, strict=True) if axis in "CS")

    def read(self, frame: int) -> NDArray[Any]:
        """Read one frame as an (H, W, C) array."""
        where = iter(np.unravel_index(frame, self.frame_shape))
        block = self.take(tuple(slice(None) if axis in "YXCS" else int(next(where)) for axis in self.axes))
        axes = [axis for axis in self.axes if axis in "YXCS"]
        order = sorted(range(len(axes)), key=lambda k: "YXCS".index(axes[k]))
        block = block.transpose(order)
        return block.reshape(*block.shape[:2], -1)[..., : self.kept]


def single_image(stack: Stack) -> Stack:
    """Return the stack, or refuse it if it is more than one image."""
    if math.prod(stack.frame_shape) > 1:
        raise InputError(
            f"expected one image in each of several entries, but it has shape {stack.shape}, read as {stack.axes}; "
            "open it alone, or name its axes by `axes`"
        )
    return stack


@contextmanager
def readable_image(where: str) -> Iterator[None]:
    """Turn whatever a reader raises for a damaged file into one error for users."""
    try:
        yield
    except InputError as error:
        raise InputError(f"cannot read '{where}': {error}") from error
    except MemoryError:  # says nothing of the file
        raise
    except Exception as error:  # damaged files raise anything
        remedy = "check that the file is complete, or save it again"
        if isinstance(error, OSError) and error.errno is not None:  # from the system, not from a decoder
            remedy = "check that the file is there and that you may read it"
        # tifffile tries Python's own decoders of later versions, too
        if "imagecodecs" in str(error) or isinstance(error, ImportError):
            remedy = "install that by `pip install 'spwnet[tiff]'`, or save the file uncompressed"
        raise InputError(f"expected a readable image in '{where}', but: {error}; {remedy}") from error


def open_stack(path: Path, axes: str | None) -> Stack:
    """Open a picture, a TIFF or an NPY file, the axes of the last two by the names given."""
    suffix = path.suffix.lower()
    if suffix in PICTURES:
        return _open_picture(path)
    if suffix in TIFFS:
        return open_tiff_stack(path, axes)
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise InputError("expected the content of an NPY file, but it is something else; save it again")
    return open_array(np.load(path, mmap_mode="r", allow_pickle=False), axes)


def is_array(entry: Any) -> bool:
    """Tell arrays, also those that read or work out what is asked for, from paths and lists."""
    return all(hasattr(entry, what) for what in ("shape", "dtype", "__getitem__"))


def open_array(array: Any, axes: str | None) -> Stack:
    """Take an array for a stack, its axes by the names given or by its shape."""
    shape = tuple(map(int, array.shape))
    names = _name_axes(shape, axes)
    return Stack(shape, names, lambda index: np.asarray(array[index]), coloured=True)


def _name_axes(shape: tuple[int, ...], axes: str | None) -> str:
    """Name the axes of an array as told, or by its shape."""
    if axes is not None:
        if len(axes) != len(shape) or len(set(axes)) != len(axes) or not {"Y", "X"} <= set(axes):
            raise InputError(
                f"expected {len(shape)} axes with Y and X among them for an array of shape {shape}, but got {axes!r}"
            )
        return axes
    if len(shape) == 3:
        axes = "YXC" if shape[-1] <= MOST_CHANNELS and shape[-1] < min(shape[:2]) else "TYX"
    else:
        axes = {2: "YX", 4: "TYXC"}.get(len(shape))
    if axes is None:
        raise InputError(f"expected 2 to 4 dimensions, but the shape is {shape}; name its axes by `axes`")
    level = logging.INFO if axes.startswith("T") else logging.DEBUG
    logger.log(level, "an array of shape %s without names of its axes is read as %s", shape, axes)
    return axes


@contextmanager
def _picture(path: Path) -> Iterator[ImageFile]:
    """Open PNG, JPEG or BMP by content; the plugins are called directly, around Pillow's lower limit of pixels."""
    from PIL import BmpImagePlugin, JpegImagePlugin, PngImagePlugin

    readers: dict[bytes, Callable[..., ImageFile]] = {
        b"\x89PNG": PngImagePlugin.PngImageFile,
        b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
        b"BM": BmpImagePlugin.BmpImageFile,
    }
    with path.open("rb") as file:
        start = file.read(26)
        file.seek(0)
        reader = next((reader for magic, reader in readers.items() if start.startswith(magic)), None)
        if reader is None:
            raise InputError("expected the content of a PNG, JPEG or BMP file, but it is something else; save it again")
        depth, colours = start[24:25], start[25:26]  # of the PNG header; 2, 4 and 6 have colours or alpha
        if start.startswith(b"\x89PNG") and depth == b"\x10" and colours in (b"\x02", b"\x04", b"\x06"):
            raise InputError("expected at most 8 bits a channel in a colour PNG, but it has 16; convert it to TIFF")
        with reader(file) as picture:
            yield picture


def _open_picture(path: Path) -> Stack:
    def take(index: tuple[int | slice, ...]) -> NDArray[Any]:
        from PIL import ImageOps

        with _picture(path) as picture:
            picture.load()
            picture.info.pop("transparency", None)
            ImageOps.exif_transpose(picture, in_place=True)
            plain = picture
            if picture.mode not in GREY - ALPHA:
                # not an ImageFile any more, but used as an image alone
                plain = picture.convert("L" if picture.mode in GREY else "RGB")  # type: ignore[assignment]
            # older Pillow gives a 16-bit grey PNG as 32-bit integers
            pixels = np.array(plain, dtype=np.uint16 if plain.mode == "I" else None)
        return pixels.reshape(*pixels.shape[:2], -1)[index]

    from PIL.ExifTags import Base
    from PIL.Image import Image

    with _picture(path) as picture:
        channels = 1 if picture.mode in GREY else 3
        kept = channels if picture.mode in ALPHA or "transparency" in picture.info else None
        # not `picture.getexif()`, which decodes the whole of a PNG
        turned = Image.getexif(picture).get(Base.Orientation) in SIDEWAYS
        height, width = (picture.width, picture.height) if turned else (picture.height, picture.width)
        return Stack((height, width, channels), "YXC", take, kept, coloured=True)


def open_tiff_stack(path: Path, axes: str | None) -> Stack:
    """Open the first series of a TIFF, or refuse it if it is cut off."""
    from tifffile import EXTRASAMPLE, PHOTOMETRIC, TiffFile

    tiff: Any = TiffFile(path)
    try:
        tiff.filehandle.seek(tiff.pages.next_page_offset)
        if any(tiff.filehandle.read(tiff.tiff.offsetsize)):
            raise InputError("expected a complete TIFF, but it ends before its last page; save it again")
        _check_tags(tiff)
        # pages written one by one count as a series each
        if tiff.is_shaped and len(tiff.series) > 1 and all(series.ndim == tiff.pages[0].ndim for series in tiff.series):
            tiff.close()
            tiff = TiffFile(path, is_shaped=False)
        series = tiff.series[0]
        page = series.keyframe
        if len(tiff.series) > 1:
            logger.warning("only the first of %d series of images in %s is read", len(tiff.series), path)
        if page.photometric == PHOTOMETRIC.PALETTE:
            logger.warning("%s has a palette; its values are read as stored, not their colours", path)
        names = series.axes
        if axes is not None or names == "QYX":
            names = _name_axes(series.shape, axes)
        else:
            logger.debug("%s of shape %s is read as %s", path, series.shape, names)
        take = _tiff_reader(path, tiff)
        alpha = sum(extra in (EXTRASAMPLE.ASSOCALPHA, EXTRASAMPLE.UNASSALPHA) for extra in page.extrasamples)
        coloured = page.photometric in (PHOTOMETRIC.RGB, PHOTOMETRIC.YCBCR)
        stack = Stack(series.shape, names, take, coloured=coloured)
        if alpha and stack.channels == page.samplesperpixel:
            stack = replace(stack, kept=stack.channels - alpha)
    except BaseException:
        tiff.close()
        raise
    weakref.finalize(stack, tiff.close)
    return stack


def _check_tags(tiff: Any) -> None:
    """Refuse a header with tags that lie beyond the end: without BitsPerSample, for one, other pixels would come."""
    for page in {tiff.pages[0], tiff.pages[-1]}:
        tiff.filehandle.seek(page.offset)
        count = int.from_bytes(tiff.filehandle.read(tiff.tiff.tagnosize), "big" if tiff.byteorder == ">" else "little")
        if count != len(page.tags):
            raise InputError(f"expected a header of {count} tags, but only {len(page.tags)} can be read; save it again")


def _tiff_reader(path: Path, tiff: Any) -> Callable[[tuple[int | slice, ...]], NDArray[Any]]:
    """Return a reader of parts of the first series: by memory map where it lies in one piece, else page by page."""
    series = tiff.series[0]
    if series.dataoffset is not None and series.keyframe.is_memmappable and not series.is_multifile:
        dtype = series.dtype.newbyteorder(tiff.byteorder)
        return np.memmap(path, dtype, "r", series.dataoffset, series.shape).__getitem__
    split = leading_axes(series.shape, series.keyframe.shape)
    leading, inner = series.shape[:split], series.shape[split:]
    positions = np.arange(len(series.pages)).reshape(leading)
    # several threads read at a time, but a file has one position
    tiff.filehandle.set_lock(True)
    lock = Lock() if series.is_multifile else nullcontext()

    def take(index: tuple[int | slice, ...]) -> NDArray[Any]:
        wanted = np.asarray(positions[index[: len(leading)]])
        pages = []
        for position in wanted.ravel():
            with lock:
                page = series.pages[int(position)]
                ends = [start + size for start, size in zip(page.dataoffsets, page.databytecounts, strict=True)]
                if not all(page.databytecounts) or max(ends) > page.parent.filehandle.size:
                    raise InputError(f"expected all of page {position}, but part of it is missing")
                pages.append(page.asarray())
        return np.stack(pages).reshape(*wanted.shape, *inner)[(..., *index[len(leading) :])]

    return take


def leading_axes(shape: Sequence[int], page: Sequence[int]) -> int:
    """Count the axes of a TIFF along which its pages lie; a page may leave out axes of length 1."""
    for split in range(len(shape)):
        if math.prod(shape[split:]) == math.prod(page):
            return split
    raise InputError(f"expected pages that make up the shape {tuple(shape)}, but one has {tuple(page)}; save it again")


def plain_pixels(pixels: NDArray[Any]) -> NDArray[Any]:
    """Check type and values; return an array of its own, of native byte order."""
    if pixels.dtype == bool:
        return pixels.astype(np.uint8)
    if pixels.dtype.kind not in "uif":
        raise InputError(f"expected integers or floats, but got {pixels.dtype}; convert them")
    if pixels.dtype.kind == "f":
        bad = pixels.size - int(np.count_nonzero(np.isfinite(pixels)))
        if bad:
            raise InputError(f"expected finite values, but {bad} of {pixels.size} are NaN or infinite; replace them")
    return np.array(pixels, dtype=pixels.dtype.newbyteorder("="), order="C")

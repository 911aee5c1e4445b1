"""Label images, overlays and other pictures, and what made them."""

from __future__ import annotations

import platform
from base64 import b64encode
from datetime import UTC, datetime
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import OutputError
from spwnet.storage import atomic_write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike, NDArray

    Picture = NDArray[np.uint8]
    Labels = NDArray[np.integer[Any]]


_LARGEST_TYPE: dict[str, type[np.unsignedinteger[Any]]] = {".png": np.uint16, ".tif": np.uint32, ".tiff": np.uint32}
_LABEL_TYPES = (np.uint8, np.uint16, np.uint32)
_PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}

MOST_JPEG = 65_500
"""Pixels along a side of a JPEG, at most, for the library that writes it."""
SMALL_PICTURE = 200_000
"""Bytes of a picture below which it goes to a page as PNG."""

OUTLINE = (255, 0, 200)
"""Colour of the boundaries of regions, sRGB."""


def label_dtype(n_classes: int, suffix: str) -> np.dtype[np.unsignedinteger[Any]]:
    """Return the smallest unsigned type of a file format that holds the class ids 0 … n_classes − 1.

    Parameters
    ----------
    n_classes : int
        Number of classes.
    suffix : str
        ".png" (at most 65,536 classes), ".tif" or ".tiff" (at most 2³²).

    Returns
    -------
    dtype
        uint8, uint16 or, in TIFF, uint32.

    Raises
    ------
    OutputError
        If the format is unknown or does not hold so many classes.
    """
    if suffix.lower() not in _LARGEST_TYPE:
        raise OutputError(f"expected a label image named {', '.join(_LARGEST_TYPE)}, but got '{suffix}'; rename it")
    largest = np.iinfo(_LARGEST_TYPE[suffix.lower()]).max
    if n_classes - 1 > largest:
        remedy = "write TIFF (.tif) instead" if suffix.lower() == ".png" else "merge some of them first"
        raise OutputError(
            f"expected at most {largest + 1:,} classes in a {suffix} label image, but got {n_classes:,}; {remedy}"
        )
    return np.dtype(next(t for t in _LABEL_TYPES if n_classes - 1 <= np.iinfo(t).max))


def stored_dtype(dtype: DTypeLike) -> np.dtype[np.unsignedinteger[Any]]:
    """Check a type that labels are to be stored in, and return it.

    Parameters
    ----------
    dtype : dtype
        uint8, uint16 or uint32.

    Raises
    ------
    OutputError
        If it is another one.
    """
    kind = np.dtype(dtype)
    if kind not in _LABEL_TYPES:
        names = ", ".join(np.dtype(known).name for known in _LABEL_TYPES)
        raise OutputError(f"expected a type for labels, one of {names}, but got {kind}; choose the smallest that fits")
    native: np.dtype[np.unsignedinteger[Any]] = np.dtype(kind.type)
    return native


def checked_labels(
    labels: Labels, shape: tuple[int, ...], dtype: np.dtype[np.unsignedinteger[Any]], largest: int, what: str
) -> NDArray[np.unsignedinteger[Any]]:
    """Return labels in the type they are stored in.

    Parameters
    ----------
    labels : ndarray of int
        Class ids, 0 … largest, that the type holds.
    shape : tuple of int
        What `labels` must have.
    dtype : dtype
        Of what is returned.
    largest : int
        Class id.
    what : str
        Name of this part in messages.

    Raises
    ------
    OutputError
        If they are of another shape, no integers, or not in range.
    """
    if labels.dtype.kind not in "iu" or labels.shape != shape:
        raise OutputError(
            f"expected integers of shape {shape} for {what}, but got {labels.dtype} of shape {labels.shape}; "
            "give the labels of just this part"
        )
    if labels.min() < 0 or labels.max() > min(largest, np.iinfo(dtype).max):
        raise OutputError(
            f"expected class ids 0 to {min(largest, np.iinfo(dtype).max)} in {dtype} for {what}, but got "
            f"{labels.min()} to {labels.max()}; give the number of classes they were made with"
        )
    return np.ascontiguousarray(labels, dtype)


def write_labels(path: str | Path, labels: Labels, n_classes: int) -> None:
    """Write class ids as they are, in an integer image.

    Parameters
    ----------
    path : path
        ``.png`` for an image, ``.tif`` or ``.tiff`` (deflate-compressed, with axes) for an image or a volume.
    labels : ndarray of int, shape (H, W) or (D, H, W)
        Class ids, 0 … n_classes − 1.
    n_classes : int
        Number of classes there can be: it fixes the type, so that all frames of a run have the same.

    Raises
    ------
    OutputError
        If the format is unknown, or does not hold so many classes or dimensions; if `labels` are no integers or hold
        other ids; or if the file cannot be written.
    """
    path = Path(path)
    dtype = label_dtype(n_classes, path.suffix)
    png = path.suffix.lower() == ".png"
    if labels.size == 0 or labels.ndim not in ((2,) if png else (2, 3)):
        shapes = "(H, W); write volumes as TIFF (.tif)" if png else "(H, W) or (D, H, W)"
        raise OutputError(f"expected labels for {path.name} of shape {shapes}, but got {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise OutputError(f"expected integers as class ids for {path.name}, but got {labels.dtype}; convert them")
    if labels.min() < 0 or labels.max() >= n_classes:
        raise OutputError(
            f"expected class ids 0 to {n_classes - 1} for {path.name}, but got {labels.min()} to {labels.max()}; "
            "give the number of classes they were made with"
        )
    ids = np.ascontiguousarray(labels, dtype)
    atomic_write(path, _encoded(ids, "PNG") if png else _tiff(ids))


def write_picture(path: str | Path, rgb: Picture) -> None:
    """Write a picture for people to look at.

    Parameters
    ----------
    path : path
        ``.png``, or ``.jpg`` at quality 90 with colours at full resolution.
    rgb : ndarray of uint8, shape (H, W, 3) or (H, W)
        sRGB, or grey.

    Raises
    ------
    OutputError
        If the format is unknown or does not hold so many pixels a side, or the file cannot be written.
    """
    path = Path(path)
    file_format = _PICTURE_FORMATS.get(path.suffix.lower())
    if file_format is None:
        raise OutputError(f"expected a picture named {', '.join(_PICTURE_FORMATS)}, but got '{path.name}'; rename it")
    if file_format == "JPEG" and max(rgb.shape[:2]) > MOST_JPEG:
        raise OutputError(
            f"expected at most {MOST_JPEG:,} pixels a side for the JPEG {path.name}, but got "
            f"{rgb.shape[0]:,}×{rgb.shape[1]:,}; leave out `--full-overlays`, or write PNG (.png)"
        )
    atomic_write(path, _encoded_picture(rgb, file_format))


def _encoded_picture(rgb: Picture, file_format: str) -> bytes:
    # Halved colour resolution, JPEG's default, smears lines that are one pixel wide.
    options = {"quality": 90, "subsampling": 0} if file_format == "JPEG" else {}
    return _encoded(np.ascontiguousarray(rgb), file_format, **options)


def data_uri(rgb: Picture, largest: int) -> str:
    """Return a picture as an address that holds it, for a page.

    Parameters
    ----------
    rgb : ndarray of uint8, shape (H, W, 3)
        sRGB.
    largest : int
        Pixels along the longer side at most; a larger picture is made smaller.
    """
    from PIL import Image

    scale = largest / max(rgb.shape[:2])
    if scale < 1:
        size = [max(1, round(n * scale)) for n in reversed(rgb.shape[:2])]
        rgb = np.asarray(Image.fromarray(np.ascontiguousarray(rgb)).resize((size[0], size[1]), Image.Resampling.BOX))
    # A small picture is shown magnified, where JPEG's blocks can be seen.
    file_format = "PNG" if rgb.size < SMALL_PICTURE else "JPEG"
    return f"data:image/{file_format.lower()};base64,{b64encode(_encoded_picture(rgb, file_format)).decode()}"


def overlay(
    display: Picture, labels: Labels, colours: Picture, opacity: float = 0.45, *, clear: int | None = None
) -> Picture:
    """Tint a picture with the colours of its classes and draw the boundaries between them.

    Parameters
    ----------
    display : ndarray of uint8, shape (H, W, 3)
        The picture, sRGB.
    labels : ndarray of int, shape (H, W)
        Class ids.
    colours : ndarray of uint8, shape (n_classes, 3)
        sRGB colour of each class.
    opacity : float
        Share of the class colour, 0 … 1.
    clear : int, optional
        Class that is not tinted.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        The picture, with boundaries one pixel wide.

    Raises
    ------
    OutputError
        If the shapes do not fit together, or a class has no colour.
    """
    if display.shape != (*labels.shape, 3):
        raise OutputError(
            f"expected a picture of shape {(*labels.shape, 3)} under labels of shape {labels.shape}, "
            f"but got {display.shape}; bring both to the same size"
        )
    if labels.max(initial=0) >= len(colours) or labels.min(initial=0) < 0:
        wrong = labels.max() if labels.min() >= 0 else labels.min()
        raise OutputError(f"expected a colour for each class, but class {wrong} has none of {len(colours)}")
    return _drawn(display, labels, colours, opacity, (255, 255, 255), clear)


def _drawn(
    display: Picture,
    labels: Labels,
    colours: Picture,
    opacity: float,
    border: tuple[int, int, int],
    clear: int | None = None,
) -> Picture:
    from PIL import Image

    height, width = labels.shape
    # Four bytes a colour: a table of whole words is looked up several times faster.
    words = np.ascontiguousarray(np.pad(colours, ((0, 0), (0, 1)))).view(np.uint32)[:, 0]
    tint = Image.frombytes("RGB", (width, height), words[labels].tobytes(), "raw", "RGBX")
    plain = Image.fromarray(np.ascontiguousarray(display))
    picture = Image.blend(plain, tint, opacity)
    if clear is not None:
        picture.paste(plain, mask=Image.fromarray(labels == clear))
    picture.paste(border, mask=Image.fromarray(_borders(labels)))
    return np.array(picture)


def outline(display: Picture, labels: Labels) -> Picture:
    """Draw the boundaries between regions over a picture, one pixel wide, in a colour that few pictures hold.

    Parameters
    ----------
    display : ndarray of uint8, shape (H, W, 3)
        The picture, sRGB.
    labels : ndarray of int, shape (H, W)
        Region of each pixel.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)

    Raises
    ------
    OutputError
        If the shapes do not fit together.
    """
    if display.shape != (*labels.shape, 3):
        raise OutputError(
            f"expected a picture of shape {(*labels.shape, 3)} under regions of shape {labels.shape}, "
            f"but got {display.shape}; bring both to the same size"
        )
    return _drawn(display, labels, np.zeros((int(labels.max(initial=0)) + 1, 3), np.uint8), 0.0, OUTLINE)


def grid(rows: Sequence[Sequence[Picture]], captions: Sequence[str] = (), gap: int = 8, font_size: int = 14) -> Picture:
    """Lay pictures out in rows and columns, on white.

    Parameters
    ----------
    rows : sequence of sequences of ndarray of uint8, shape (H, W, 3) or (H, W)
        Pictures of any sizes, as many in each row; a column is as wide as its widest, a row as high as its highest.
    captions : sequence of str
        What stands above each column; none by default.
    gap : int
        Pixels between pictures and around them.
    font_size : int
        Height of the captions in pixels.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        One picture.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(font_size)
    widths = [max(picture.shape[1] for picture in column) for column in zip(*rows, strict=True)]
    for column, caption in enumerate(captions):
        widths[column] = max(widths[column], int(np.ceil(font.getlength(caption))))
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    top = font_size + gap if captions else 0
    lefts = np.cumsum([gap, *(width + gap for width in widths)]).tolist()
    tops = np.cumsum([top + gap, *(height + gap for height in heights)]).tolist()
    canvas = Image.new("RGB", (lefts[-1], tops[-1]), "white")
    draw = ImageDraw.Draw(canvas)
    for x, caption in zip(lefts, captions, strict=False):
        draw.text((x, gap), caption, fill="black", font=font)
    for y, row in zip(tops, rows, strict=False):
        for x, picture in zip(lefts, row, strict=False):
            canvas.paste(Image.fromarray(np.ascontiguousarray(picture)).convert("RGB"), (x, y))
    return np.array(canvas)


def provenance() -> dict[str, str]:
    """Return what made a result: versions, machine and the time, as strings.

    Returns
    -------
    dict of str to str
        Versions of spwnet, torch, numpy, scikit-image and python; the platform; the time in UTC, ISO 8601.
    """
    packages = {name: version(name) for name in ("spwnet", "torch", "numpy", "scikit-image")}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return packages | {"python": platform.python_version(), "platform": platform.platform(), "time": now}


def _borders(labels: Labels) -> NDArray[np.bool_]:
    """Mark pixels of another label than the one below or on the right."""
    edge = np.zeros(labels.shape, bool)
    edge[:-1] |= labels[:-1] != labels[1:]
    edge[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    return edge


def _encoded(array: NDArray[np.unsignedinteger[Any]], file_format: str, **options: int) -> bytes:
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(array).save(buffer, file_format, **options)
    return buffer.getvalue()


def _tiff(ids: NDArray[np.unsignedinteger[Any]]) -> bytes:
    import tifffile

    buffer = BytesIO()
    axes = "ZYX"[-ids.ndim :]
    # Said outright, because a volume of three slices would pass for a colour image.
    tifffile.imwrite(buffer, ids, photometric="minisblack", compression="zlib", metadata={"axes": axes})
    return buffer.getvalue()

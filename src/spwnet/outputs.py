"""Writers: folders, label images, overlays, pictures, JSON. A file is either written whole or not at all."""

from __future__ import annotations

import errno
import inspect
import json
import logging
import os
import platform
import sys
from base64 import b64encode
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from functools import wraps
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ParamSpec, TypeVar
from uuid import uuid4

import numpy as np

from spwnet.errors import OutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray

    Picture = NDArray[np.uint8]
    Labels = NDArray[np.integer[Any]]

P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger(__name__)

LOCK = ".spwnet.lock"
"""File that is there while a job writes to a folder."""

_LARGEST_TYPE: dict[str, type[np.unsignedinteger[Any]]] = {".png": np.uint16, ".tif": np.uint32, ".tiff": np.uint32}
_LABEL_TYPES = (np.uint8, np.uint16, np.uint32)
_PICTURE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}

SMALL_PICTURE = 200_000
"""Bytes of a picture below which it goes to a page as PNG."""

OUTLINE = (255, 0, 200)
"""Colour of the boundaries of regions, sRGB."""

_REMEDIES = {
    errno.EACCES: "permission denied; choose another folder or change its permissions",
    errno.EPERM: "permission denied; choose another folder or change its permissions",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.ENOSPC: "the disk is full; free some space or choose another folder",
    errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
    errno.ENOENT: "there is no such folder; create it first",
    errno.ENOTDIR: "a part of this path is a file; choose another path",
    errno.EEXIST: "there is a file of this name; choose another path",
    errno.EISDIR: "there is a folder of this name; choose another path",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
}


def prepare_folder(folder: str | Path, *, overwrite: bool = False, resume: bool = False) -> Path:
    """Make sure that a folder exists, may be written to, and holds nothing that would be lost.

    Parameters
    ----------
    folder : path
        Created with its parents if it is missing.
    overwrite : bool
        Accept a folder that holds something: files of the same names will be replaced, nothing else is touched.
    resume : bool
        Accept a folder that holds something, because work in it continues.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    OutputError
        If the folder holds something and neither `overwrite` nor `resume` is given, or cannot be created or written.
    """
    path = Path(folder)
    with readable_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        if not (overwrite or resume) and any(entry.name != LOCK for entry in path.iterdir()):
            raise OutputError(
                f"expected an empty or new folder for the results, but {path} holds something already; choose another "
                "one, or pass `overwrite=True` / `--overwrite` to replace files of the same names"
            )
        probe = _temporary(path)
        probe.touch()
        probe.unlink()
    return path


def check_folder(folder: str | Path, *, overwrite: bool = False, resume: bool = False) -> None:
    """Check what `prepare_folder` checks, and leave nothing behind: no folder for work that is then refused.

    Raises
    ------
    OutputError
        As `prepare_folder`, or if both `overwrite` and `resume` are given.
    """
    if overwrite and resume:
        raise OutputError("expected either overwrite or resume, but got both; drop one")
    path = Path(folder)
    missing = [part for part in (path, *path.parents) if not os.path.lexists(part)]
    try:
        prepare_folder(path, overwrite=overwrite, resume=resume)
    finally:
        for part in missing:
            if part.is_dir():
                part.rmdir()


@contextmanager
def claimed(folder: str | Path) -> Iterator[None]:
    """Hold a folder for one job; it is free again when the job ends, in whatever way.

    Parameters
    ----------
    folder : path
        Created with its parents if it is missing, and removed again if the job leaves it empty.

    Raises
    ------
    OutputError
        If another job holds it, in this process or another one, or it cannot be written.
    """
    path = Path(folder)
    missing = [part for part in (path, *path.parents) if not os.path.lexists(part)]
    with readable_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    try:
        with _locked(path):
            yield
    finally:
        for part in missing:
            with suppress(OSError):
                part.rmdir()


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = folder / LOCK
    while True:
        with readable_errors(folder):
            file = lock.open("a+b")
        if not _lock(file):
            file.seek(0)
            holder = file.read(200).decode(errors="replace")
            file.close()
            raise OutputError(
                f"expected {folder} for this job alone, but another one writes to it (process {holder}); wait for its "
                "end, or choose another folder"
            )
        # Removed by one that just ended, it would keep nobody out.
        if lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            break
        file.close()
    try:
        file.truncate(0)
        file.write(f"{os.getpid()} on {platform.node()}".encode())
        file.flush()
        yield
    finally:
        with suppress(OSError):
            lock.unlink()
        file.close()


def _lock(file: IO[bytes]) -> bool:
    """Lock a file until it is closed or the process ends; return whether nobody else has."""
    try:
        if sys.platform == "win32":
            import msvcrt

            # Beyond the end, where nothing is read or written.
            file.seek(1 << 20)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN, errno.EDEADLK):
            return False
        logger.warning("%s cannot be locked (%s): do not write to this folder from two jobs", file.name, error.strerror)
    return True


def claiming(name: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make a function hold the folder that is its argument `name` while it works, if it is given one."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            folder = signature.bind(*args, **kwargs).arguments.get(name)
            with nullcontext() if folder is None else claimed(folder):
                return function(*args, **kwargs)

        return call

    return decorate


def atomic_write(path: str | Path, data: bytes) -> None:
    """Write a file such that its name never stands for half of it.

    Parameters
    ----------
    path : path
        File to write, in a folder that exists; replaced if there is one.
    data : bytes
        All it shall hold.

    Raises
    ------
    OutputError
        If it cannot be written; what was there before is still there then.
    """
    path = Path(path)
    temporary = _temporary(path.parent)
    with readable_errors(path):
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_json(path: str | Path, value: object) -> None:
    """Write JSON for people to read: UTF-8, indented, keys in the order given.

    Raises
    ------
    OutputError
        If `value` holds NaN or infinity, for which JSON has no form, or the file cannot be written.
    """
    atomic_write(path, (_json(value, Path(path), indent=2) + "\n").encode())


def append_line(path: str | Path, record: Mapping[str, object]) -> None:
    """Append a record to a JSON-lines log, in one write.

    Raises
    ------
    OutputError
        If `record` holds NaN or infinity, for which JSON has no form, or the file cannot be written.
    """
    path = Path(path)
    line = (_json(dict(record), path) + "\n").encode()
    with readable_errors(path), path.open("ab", buffering=0) as file:
        file.write(line)


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read what `append_line` wrote; a last line that a crash left half-written is cut off the file.

    Raises
    ------
    OutputError
        If another line cannot be read.
    """
    path = Path(path)
    if not path.exists():
        return []
    records: list[dict[str, Any]] = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            records.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            if number < len(lines):
                raise OutputError(
                    f"expected one record in each line of {path}, but line {number} is none: {error}; use `--overwrite`"
                ) from error
            atomic_write(path, b"".join(lines[:-1]))
    return records


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
        If the format is unknown, or does not hold so many classes or dimensions; if `labels` holds other ids; or if
        the file cannot be written.
    """
    path = Path(path)
    dtype = label_dtype(n_classes, path.suffix)
    png = path.suffix.lower() == ".png"
    if labels.size == 0 or labels.ndim not in ((2,) if png else (2, 3)):
        shapes = "(H, W); write volumes as TIFF (.tif)" if png else "(H, W) or (D, H, W)"
        raise OutputError(f"expected labels for {path.name} of shape {shapes}, but got {labels.shape}")
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
        If the format is unknown, or the file cannot be written.
    """
    path = Path(path)
    file_format = _PICTURE_FORMATS.get(path.suffix.lower())
    if file_format is None:
        raise OutputError(f"expected a picture named {', '.join(_PICTURE_FORMATS)}, but got '{path.name}'; rename it")
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
    if labels.max(initial=0) >= len(colours):
        raise OutputError(f"expected a colour for each class, but class {labels.max()} has none of {len(colours)}")
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
    words = np.pad(colours, ((0, 0), (0, 1))).view(np.uint32)[:, 0]
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


def _temporary(folder: Path) -> Path:
    return folder / f".spwnet-{uuid4().hex}.tmp"


@contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a path into an error for people."""
    try:
        yield
    except OSError as error:
        reason = _REMEDIES.get(error.errno or 0, f"{error.strerror or error}; choose another path")
        raise OutputError(f"expected to write {path}, but {reason}") from error


def _json(value: object, path: Path, indent: int | None = None) -> str:
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise OutputError(
            f"expected finite numbers for {path.name}, but: {error}; leave out what is not one"
        ) from error


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

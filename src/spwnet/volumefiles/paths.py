"""What a path to a volume means: the format, the dataset in the file, and the reader."""

from __future__ import annotations

import glob
import operator
import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import InputError
from spwnet.images import SUFFIXES, find_paths
from spwnet.stacks import PICTURES, TIFFS
from spwnet.volumefiles.arrays import open_npy, open_raw
from spwnet.volumefiles.hdf5 import check_ends, open_hdf5
from spwnet.volumefiles.medical import open_mrc, open_nifti
from spwnet.volumefiles.tiff import open_tiff
from spwnet.volumefiles.zarr import open_zarr

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spwnet.volumefiles.stored import Stored

HDF5 = (".h5", ".hdf5", ".hdf", ".nxs", ".nx")
ZARR = (".zarr", ".zarr.zip", ".ozx")
NIFTI = (".nii", ".nii.gz")
MRC = (".mrc", ".rec", ".map", ".ali")
RAW = (".raw", ".bin", ".vol", ".dat")
VOLUMES = (*HDF5, *ZARR, *NIFTI, *MRC, *RAW)
"""Suffixes of files that hold nothing but volumes."""
MOST_SHOWN = 300
"""Letters of a path that a message shows."""

_INSIDE = re.compile(rf"(.+?(?:{'|'.join(map(re.escape, (*HDF5, *ZARR)))}))::?(.+)", re.IGNORECASE)


def _safely(check: Callable[[], bool]) -> bool:
    """Ask for a file of some kind; under a name that is too long there is none."""
    try:
        return check()
    except OSError:
        return False


def _kind(path: Path) -> str | None:
    """Return the suffix, of `VOLUMES`, that a path ends with; the longest, because .nii.gz is more than .gz."""
    return max((suffix for suffix in VOLUMES if path.name.lower().endswith(suffix)), key=len, default=None)


def _split(text: str) -> tuple[Path, str | None]:
    """Take ``file.h5:/dataset`` apart."""
    found = None if _safely(Path(text).exists) else _INSIDE.fullmatch(text)
    path, inside = (found[1], found[2]) if found else (text, None)
    return Path(path).expanduser(), inside


def _zarr_root(path: Path) -> Path | None:
    """Return the outermost Zarr folder or file that a path is or lies in."""
    marks = ("zarr.json", ".zgroup", ".zarray")

    def is_zarr(place: Path) -> bool:
        if _safely(place.is_dir):
            return place.suffix.lower() == ".zarr" or any((place / mark).is_file() for mark in marks)
        return _kind(place) in (".zarr.zip", ".ozx") and _safely(place.is_file)

    return next((place for place in (*reversed(path.parents), path) if is_zarr(place)), None)


def names_volume(text: str) -> bool:
    """Whether a path can only be a volume: by its suffix, or as a Zarr folder."""
    path = _split(text)[0]
    return _kind(path) is not None or _zarr_root(path) is not None


def is_series(text: str) -> bool:
    """Whether a path is a folder or pattern of slices."""
    path = Path(text).expanduser()
    if _safely(path.is_file) or _split(text)[1] or _zarr_root(path):
        return False
    return _safely(path.is_dir) or glob.has_magic(text)


def find_slices(entry: Any) -> list[Path]:
    """Return the files of slices that a folder, a pattern or a list gives.

    Raises
    ------
    InputError
        If there are none, or others than images.
    """
    entries = [entry] if isinstance(entry, str | Path) else entry
    if not entries or not all(isinstance(e, str | Path) for e in entries):
        raise InputError(
            "expected a path, an array or a list of paths, but got a list of "
            + ("other or mixed things; stack arrays to one" if entries else "none")
        )
    paths = [path.absolute() for e in entries for path in find_paths(e)]
    other = next((path for path in paths if path.suffix.lower() not in SUFFIXES), None)
    if other is not None:
        raise InputError(f"expected slices as images ({', '.join(SUFFIXES)}), but got {other}; open it by itself")
    return paths


def choose_reader(
    text: str,
    dataset: str | None,
    level: int,
    shape: Sequence[int] | None,
    dtype: str | None,
    offset: int,
) -> tuple[str, str, partial[Stored]]:
    """Choose the reader of a single path.

    Parameters
    ----------
    text : str
        Path, in which the dataset may stand: ``"scan.h5:/entry/data"``.
    dataset, level, shape, dtype, offset
        As in `open_volume`.

    Returns
    -------
    (str, str, partial of Stored)
        Name of the volume, path of the file, and what opens it.

    Raises
    ------
    InputError
        If there is nothing there, or no reader for it, or it has no use for an option.
    """
    path, inside = _split(text)
    origin = str(path)
    if inside and dataset and inside.strip("/") != dataset.strip("/"):
        raise InputError(f"expected one dataset, but got '{inside}' in the path and '{dataset}'; give it once")
    dataset = dataset or inside
    kind, root = _kind(path), _zarr_root(path)
    if root is None and not _safely(path.is_file):
        shown = origin if len(origin) <= MOST_SHOWN else f"{origin[:MOST_SHOWN]}…"
        raise InputError(f"expected a file, folder or pattern, but there is no {shown}; check the path")
    if root is None and kind not in HDF5:
        refuse_options(path.name, dataset=dataset)
    if root is None:
        refuse_options(path.name, level=level)
    if kind not in RAW:
        refuse_options(path.name, shape=shape, dtype=dtype, offset=offset)
    opener: partial[Stored]
    place = path.absolute()
    if root is not None:
        inner = "/".join([*path.relative_to(root).parts, *([dataset.strip("/")] if dataset else [])])
        path, origin, opener = root, str(root), partial(open_zarr, root.absolute(), inner, level)
    elif kind in HDF5:
        if os.name == "posix":  # elsewhere no limit of a processor's time can be set
            check_ends(place, dataset)
        opener = partial(open_hdf5, place, dataset)
    elif kind in NIFTI:
        opener = partial(open_nifti, place)
    elif kind in MRC:
        opener = partial(open_mrc, place)
    elif kind in RAW:
        opener = partial(open_raw, place, *_check_raw(path, shape, dtype, offset))
    elif path.suffix.lower() in TIFFS:
        opener = partial(open_tiff, place)
    elif path.suffix.lower() == ".npy":
        opener = partial(open_npy, place)
    elif path.suffix.lower() in PICTURES:
        raise InputError(
            f"expected a volume, but {path} is one image; give several slices as a folder or a list, or segment it "
            "as an image"
        )
    else:
        known = ", ".join((*TIFFS, ".npy", *VOLUMES))
        raise InputError(f"expected a volume of {known}, but got {path}; convert it to TIFF, HDF5 or Zarr")
    name = path.name[: -len(kind)] if kind else path.stem
    return re.sub(r"\.ome$", "", name, flags=re.IGNORECASE) or "volume", origin, opener


def refuse_options(what: str, **options: Any) -> None:
    """Refuse options that an entry has no use for."""
    # Not by `in`, which compares: an array of numbers is neither true nor false.
    given = [name for name, value in options.items() if value is not None and not (np.isscalar(value) and value == 0)]
    uses = {"dataset": "HDF5 and Zarr", "level": "OME-Zarr", "axes": "what is not open yet"}
    if given:
        raise InputError(
            f"expected `{given[0]}` only for {uses.get(given[0], 'raw binary')}, but got it for {what}; leave it out"
        )


def _check_raw(
    path: Path, shape: Sequence[int] | None, dtype: str | None, offset: int
) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    if shape is None or dtype is None:
        missing = " and ".join(f"`{n}`" for n, value in (("shape", shape), ("dtype", dtype)) if value is None)
        raise InputError(
            f'expected `shape` and `dtype` for raw binary, for example (512, 512, 512) and "<u2", but {missing} '
            f"{'are' if shape is None and dtype is None else 'is'} missing for {path}; give them"
        )
    try:
        sizes, start = [operator.index(n) for n in shape], operator.index(offset)
    except TypeError:
        sizes, start = [], 0
    if min(sizes, default=0) < 1 or start < 0:
        raise InputError(
            f"expected a `shape` of positive integers and an `offset` of 0 or more, but got {shape}, {offset}"
        )
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise InputError(f'expected a `dtype` such as "uint8", "<u2" or ">f4", but got {dtype!r}') from None
    return tuple(sizes), kind, start

"""Arrays in memory or anywhere else, and files that are one array: NPY and raw binary."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import InputError
from spwnet.stacks import MOST_CHANNELS
from spwnet.volumefiles.stored import Stored, by_chunks

if TYPE_CHECKING:
    from pathlib import Path


def open_array(array: Any, name: str = "") -> Stored:
    """Take anything with shape, dtype and indexing by slices: NumPy, Zarr, h5py, Dask."""
    try:
        dtype = np.dtype(array.dtype)
    except TypeError:
        raise InputError(f"expected an array of a NumPy type, but got {array.dtype}; convert it to NumPy") from None
    chunks = getattr(array, "chunks", None)
    if isinstance(chunks, tuple) and chunks and isinstance(chunks[0], tuple):  # Dask gives every chunk's length
        chunks = tuple(lengths[0] for lengths in chunks)
    axes = "ZYXC" if isinstance(array, np.ndarray) and array.ndim == 4 and array.shape[-1] <= MOST_CHANNELS else None
    take = by_chunks(lambda index: np.asarray(array[index]), chunks)
    return Stored(tuple(array.shape), dtype, take, axes, chunks=chunks, within=name)


def open_npy(path: Path) -> Stored:
    """Map an NPY file into memory."""
    with path.open("rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise InputError("expected the content of an NPY file, but it is something else; save it again")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return Stored(array.shape, array.dtype, array.__getitem__)


def open_raw(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], offset: int) -> Stored:
    """Map a file of bare numbers into memory, of which nothing tells shape and type."""
    needed, found = offset + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if needed != found:
        raise InputError(
            f"expected {needed:,} bytes for shape {shape} of {dtype} after {offset} bytes of header, but the file has "
            f"{found:,}; check `shape`, `dtype` and `offset`"
        )
    return Stored(shape, dtype, np.memmap(path, dtype, "r", offset, shape).__getitem__)

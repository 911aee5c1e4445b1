"""Blocks of a label volume on the disk, which many processes make: what is done is there, whole."""

from __future__ import annotations

import json
import os
import re
import zlib
from contextlib import contextmanager, suppress
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from spwnet.errors import OutputError
from spwnet.outputs import checked_labels, stored_dtype
from spwnet.storage import atomic_write, parse_json, readable_errors, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import DTypeLike, NDArray

    from spwnet.blocks import Region

    Labels = NDArray[np.integer[Any]]
    Shape = tuple[int, int, int]

_DIGEST = sha256().digest_size


class BlockStore:
    """Blocks of a label volume in a folder, each a file that is written once and whole: it is there, or not done.

    ::

        FOLDER/blocks/
          job.json       whose blocks these are
          00012.block    SHA-256 of the rest, what the block is, its slices each compressed (zlib)

    Any number of processes on any number of machines that share the folder may read and write at the same time.

    Parameters
    ----------
    folder : path
        Created with its parents if it is missing.
    regions : sequence of (slice, slice, slice)
        What each block covers, in z, y, x; together they fill the volume, none overlaps another.
    dtype : dtype
        Type of the labels: uint8, uint16 or uint32.
    key : str
        Identity of the job: settings, model and input. Blocks of another one are never taken for those of this one.

    Attributes
    ----------
    shape : (int, int, int)
        Size of the volume, (D, H, W) in voxels.
    dtype : dtype
    regions : tuple of (slice, slice, slice)

    Raises
    ------
    OutputError
        If the regions do not fill a volume, the type holds no labels, the folder holds the blocks of another job, or it
        cannot be written.
    """

    def __init__(self, folder: str | Path, regions: Sequence[Region], dtype: DTypeLike, key: str) -> None:
        self.folder = Path(folder) / "blocks"
        self.regions = tuple(regions)
        self.dtype = stored_dtype(dtype)
        self.key = key
        bounds = [[(part.start, part.stop) for part in region] for region in self.regions]
        depth, height, width = (max((stop for _, stop in axis), default=0) for axis in zip(*bounds, strict=True))
        self.shape: Shape = (depth, height, width)
        if sum(prod(self._size(k)) for k in range(len(self.regions))) != prod(self.shape):
            raise OutputError(
                f"expected regions that fill a volume of {self.shape} without overlap, but they cover another number "
                "of voxels; give each voxel to one block"
            )
        self._bounds = bounds
        self._seen: dict[int, tuple[tuple[int, int, int], dict[str, Any], int]] = {}
        self._claim()

    def is_done(self, k: int) -> bool:
        """Return whether a block is there, whole and of this job; a damaged one is removed and counts as missing.

        A file is read to the end once, and again only when it has changed.
        """
        try:
            with self._path(k).open("rb") as file:
                return self._header(k, file) is not None
        except FileNotFoundError:
            return False
        except OSError as error:
            raise _unreadable(self._path(k), error) from error

    def missing(self) -> list[int]:
        """Return the blocks that are still to be made, in order."""
        return [k for k in range(len(self.regions)) if not self.is_done(k)]

    def write(self, k: int, labels: Labels) -> None:
        """Write a block; writing it again replaces it by its equal, whoever else reads or writes it.

        Parameters
        ----------
        k : int
            Which one, counted from 0.
        labels : ndarray of int, shape of its region
            Class ids that the type of the store holds.

        Raises
        ------
        OutputError
            If the labels are of another shape or do not fit the type, or the file cannot be written.
        """
        ids = checked_labels(labels, self._size(k), self.dtype, np.iinfo(self.dtype).max, f"block {k}")
        planes = [zlib.compress(plane.astype(self.dtype.newbyteorder("<")).tobytes(), 1) for plane in ids]
        head = self._identity(k) | {"lengths": [len(plane) for plane in planes]}
        header = json.dumps(head, allow_nan=False).encode()
        content = b"".join([len(header).to_bytes(4, "little"), header, *planes])
        atomic_write(self._path(k), sha256(content).digest() + content)

    def read(self, k: int) -> NDArray[np.unsignedinteger[Any]]:
        """Return the labels of a block, of the shape of its region.

        Raises
        ------
        OutputError
            If it is not done.
        """
        return self._slices(k, 0, self._size(k)[0])

    def slab(self, z: slice) -> NDArray[np.unsignedinteger[Any]]:
        """Return some slices of the volume, put together from the blocks; only these slices are held in memory.

        Parameters
        ----------
        z : slice
            Which ones, without step; bounds beyond the volume are cut.

        Returns
        -------
        ndarray, shape (d, H, W)
            Labels.

        Raises
        ------
        OutputError
            If a block that is needed is not done.
        """
        first, last, _ = z.indices(self.shape[0])
        labels = np.empty((max(last - first, 0), *self.shape[1:]), self.dtype)
        for k, ((start, stop), _, _) in enumerate(self._bounds):
            low, high = max(first, start), min(last, stop)
            if low < high:
                labels[low - first : high - first, *self.regions[k][1:]] = self._slices(k, low - start, high - start)
        return labels

    def n_bytes(self) -> int:
        """Return how much space the blocks that are there take, compressed: about what a compressed volume takes."""
        return sum(path.stat().st_size for path in self.folder.glob("*.block"))

    def remove(self) -> None:
        """Remove the blocks and all that belongs to them, and their folder if nothing else is in it."""
        self.remove_any(self.folder.parent)

    @staticmethod
    def remove_any(folder: str | Path) -> None:
        """Remove the blocks that a folder holds, of whatever job.

        Raises
        ------
        OutputError
            If one cannot be removed.
        """
        blocks = Path(folder) / "blocks"
        if not blocks.is_dir():
            return
        with readable_errors(blocks):
            for path in blocks.iterdir():
                if re.fullmatch(r"\d{5,}\.block|\.spwnet-[0-9a-f]+\.tmp", path.name):
                    path.unlink(missing_ok=True)
            # Last, so that blocks are never without the name of their job.
            (blocks / "job.json").unlink(missing_ok=True)
            if not any(blocks.iterdir()):
                blocks.rmdir()

    def _claim(self) -> None:
        """Say whose blocks these are, or make sure that they are ours."""
        layout = sha256(repr(self._bounds).encode()).hexdigest()
        job = {"format": 1, "key": self.key, "dtype": self.dtype.name, "shape": list(self.shape), "regions": layout}
        path = self.folder / "job.json"
        with readable_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                write_json(path, job)
            content = path.read_bytes()
        try:
            found = parse_json(content)
        except ValueError:
            found = None
        if found != job:
            raise OutputError(
                f"expected the blocks in {self.folder} to be of the same settings, model and input, but they are of "
                "another job; write to another folder, or use `--overwrite`"
            )

    def _path(self, k: int) -> Path:
        return self.folder / f"{k:05d}.block"

    def _size(self, k: int) -> Shape:
        z, y, x = ((part.stop - part.start) for part in self.regions[k])
        return z, y, x

    def _identity(self, k: int) -> dict[str, Any]:
        region = [[part.start, part.stop] for part in self.regions[k]]
        return {"key": self.key, "block": k, "region": region, "dtype": self.dtype.name}

    def _header(self, k: int, file: BinaryIO) -> tuple[dict[str, Any], int] | None:
        """Header of an open block and where its slices begin; None if it is damaged, and removed then, or foreign."""
        signature = _signature(os.fstat(file.fileno()))
        known = self._seen.get(k)
        if known is None or known[0] != signature:
            digest, content = file.read(_DIGEST), file.read()
            if sha256(content).digest() != digest:
                with suppress(FileNotFoundError):
                    # Another process may have put a whole one in its place meanwhile.
                    if _signature(self._path(k).stat()) == signature:
                        self._path(k).unlink()
                return None
            start = 4 + int.from_bytes(content[:4], "little")
            header = parse_json(content[4:start])
            if any(header.get(name) != value for name, value in self._identity(k).items()):
                return None
            known = self._seen[k] = (signature, header, _DIGEST + start)
        return known[1:]

    @contextmanager
    def _opened(self, k: int) -> Iterator[tuple[BinaryIO, dict[str, Any], int]]:
        """A block that is done, its header, and where its slices begin."""
        path = self._path(k)
        try:
            # Another process may replace the file; this one stays what it was as long as it is open.
            with path.open("rb") as file:
                found = self._header(k, file)
                if found is None:
                    raise FileNotFoundError(f"block {k} is damaged or of another job")
                yield file, *found
        except FileNotFoundError as error:
            raise OutputError(
                f"expected block {k} in {self.folder}, but it is not done; resume the segmentation to make it"
            ) from error
        except (OSError, zlib.error) as error:
            raise _unreadable(path, error) from error

    def _slices(self, k: int, low: int, high: int) -> NDArray[np.unsignedinteger[Any]]:
        _, height, width = self._size(k)
        labels = np.empty((high - low, height, width), self.dtype)
        with self._opened(k) as (file, header, start):
            ends = np.cumsum([0, *header["lengths"]])
            file.seek(start + int(ends[low]))
            data = memoryview(file.read(int(ends[high] - ends[low])))
            for plane, begin, end in zip(labels, ends[low:high], ends[low + 1 : high + 1], strict=True):
                raw = zlib.decompress(data[begin - ends[low] : end - ends[low]])
                plane[...] = np.frombuffer(raw, self.dtype.newbyteorder("<")).reshape(height, width)
        return labels


def _signature(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


def _unreadable(path: Path, error: Exception) -> OutputError:
    return OutputError(f"expected to read {path}, but: {error}; remove it and resume the segmentation")

"""Writers of label volumes: blocks that many processes make, and the one file they become in the end."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from contextlib import contextmanager, suppress
from hashlib import sha256
from math import ceil, prod
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np

from spwnet.classes import palette
from spwnet.errors import OutputError
from spwnet.outputs import atomic_write, provenance, readable_errors, write_json
from spwnet.packages import optional_package
from spwnet.units import plain_unit, standard_unit, unit_symbol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray

    Labels = NDArray[np.integer[Any]]
    Region = tuple[slice, slice, slice]
    Shape = tuple[int, int, int]
    Spacing = tuple[float, float, float]

SUFFIXES = (".tif", ".tiff", ".zarr", ".h5", ".hdf5", ".nxs", ".npy")
"""Names that a label volume can end in."""

SLAB_BYTES = 64 * 2**20
"""Memory that the slices take which are handled at once, about, where the format leaves the choice."""

_DTYPES = (np.uint8, np.uint16, np.uint32)
_EXTRAS = {".zarr": ("zarr", "zarr"), ".h5": ("h5py", "hdf5"), ".hdf5": ("h5py", "hdf5"), ".nxs": ("h5py", "hdf5")}
_DIGEST = sha256().digest_size
# The largest offset of a classic TIFF, less what tags may take.
_CLASSIC_TIFF = 2**32 - 2**25


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
        self.dtype = _label_dtype(dtype)
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

    def write(self, k: int, labels: Labels, extra: Mapping[str, Any] | None = None) -> None:
        """Write a block; writing it again replaces it by its equal, whoever else reads or writes it.

        Parameters
        ----------
        k : int
            Which one, counted from 0.
        labels : ndarray of int, shape of its region
            Class ids that the type of the store holds.
        extra : mapping, optional
            Whatever else is to be kept with the block; JSON.

        Raises
        ------
        OutputError
            If the labels are of another shape or do not fit the type, or the file cannot be written.
        """
        ids = _checked(labels, self._size(k), self.dtype, np.iinfo(self.dtype).max, f"block {k}")
        planes = [zlib.compress(plane.astype(self.dtype.newbyteorder("<")).tobytes(), 1) for plane in ids]
        head = self._identity(k) | {"lengths": [len(plane) for plane in planes], "extra": dict(extra or {})}
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

    def extra(self, k: int) -> dict[str, Any]:
        """Return what else was written with a block.

        Raises
        ------
        OutputError
            If it is not done.
        """
        with self._opened(k) as (_, header, _):
            return dict(header["extra"])

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
            text = path.read_text(encoding="utf-8")
        try:
            found = json.loads(text)
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
        status = os.fstat(file.fileno())
        signature = (status.st_ino, status.st_size, status.st_mtime_ns)
        known = self._seen.get(k)
        if known is None or known[0] != signature:
            digest, content = file.read(_DIGEST), file.read()
            if sha256(content).digest() != digest:
                self._path(k).unlink(missing_ok=True)
                return None
            start = 4 + int.from_bytes(content[:4], "little")
            header = json.loads(content[4:start])
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


def check_suffix(name: str | Path) -> str:
    """Return the suffix of a label volume, in lower case.

    Raises
    ------
    OutputError
        If the format is unknown or its package is missing.
    """
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise OutputError(
            f"expected a label volume named {', '.join(SUFFIXES)}, but got '{Path(name).name}'; rename it"
        )
    if suffix in _EXTRAS:
        name, extra = _EXTRAS[suffix]
        optional_package(name, f"to write {suffix}", extra, OutputError, otherwise="write TIFF (.tif)")
    return suffix


def check_target(path: str | Path, *, overwrite: bool = False) -> Path:
    """Check that a label volume could be written, before anything long starts.

    Parameters
    ----------
    path : path
        Volume to write, in a folder that exists.
    overwrite : bool
        Accept that there is one of this name.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    OutputError
        If the format is unknown or its package is missing; if there is something of this name, unless `overwrite` is
        given and it is a file (or, for Zarr, a Zarr folder); or if the folder is missing or cannot be written.
    """
    path = Path(path)
    suffix = check_suffix(path)
    if os.path.lexists(path):
        if not overwrite:
            raise OutputError(
                f"expected a new name for the label volume, but there is {path} already; choose another one, or pass "
                "`overwrite=True` / `--overwrite` to replace it"
            )
        is_zarr = any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray"))
        if path.is_dir() and not (suffix == ".zarr" and is_zarr):
            kind = "Zarr data" if suffix == ".zarr" else "a file"
            raise OutputError(
                f"expected {path} to be {kind}, but it is a folder of something else; choose another name"
            )
    probe = _temporary(path).with_suffix(".probe")
    with readable_errors(path):
        probe.touch()
        probe.unlink()
    return path


def check_space(path: str | Path, n_bytes: int) -> None:
    """Check that a file of some size finds room where it is to be.

    Parameters
    ----------
    path : path
        File or folder to write, which need not exist.
    n_bytes : int
        Bytes it takes.

    Raises
    ------
    OutputError
        If less is free on its disk.
    """
    folder = next(part for part in (Path(path).absolute(), *Path(path).absolute().parents) if part.exists())
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OutputError(
            f"expected {n_bytes / 2**30:,.2f} GiB of free space for {path}, but there are {free / 2**30:,.2f} GiB; "
            "free some or choose another disk"
        )


def write_volume(
    path: str | Path,
    shape: Shape,
    dtype: DTypeLike,
    slabs: Callable[[slice], Labels],
    *,
    n_classes: int,
    spacing: Spacing | None = None,
    unit: str | None = None,
    name: str = "classes",
    provenance: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    ome_version: Literal["0.4", "0.5"] = "0.5",
) -> None:
    """Write a label volume some slices at a time, in the format that its name asks for.

    ``.tif``, ``.tiff``
        A page for each slice, deflate. 8 and 16 bits below 4 GiB: as ImageJ writes it, with spacing, unit and, under
        *Image > Show Info*, the provenance. Otherwise: OME-TIFF, BigTIFF where it could grow beyond 4 GiB.
    ``.zarr``
        OME-Zarr: a folder with the image label ``labels/NAME``, in levels each of which takes every second voxel along
        the axes that are longer than 64 until none is, with the colours of the classes. The root is a multiscale image
        of the same arrays, stored once, so that programs that open images show something and the label has the image
        that the standard wants. Version 0.5 is Zarr 3, version 0.4 is Zarr 2. Root, ``labels`` and label pass
        ``ome_zarr_models`` in both versions.
    ``.h5``, ``.hdf5``, ``.nxs``
        HDF5 as NeXus has it: ``/entry/data`` (NXdata) with `labels` and the axes z, y and x, ``/entry/process``
        (NXprocess) with program, version, date and the rest of the provenance as JSON. Chunks, gzip.
    ``.npy``
        The array alone: no spacing, no provenance.

    Parameters
    ----------
    path : path
        Volume to write, in a folder that exists. It is made under the name ``.NAME.tmp`` beside it, which one process
        at a time may do, and renamed when it is whole.
    shape : (int, int, int)
        D, H, W in voxels.
    dtype : dtype
        uint8, uint16 or uint32.
    slabs : callable
        Returns the slices ``start … stop − 1`` of the labels, (d, H, W), for ``slice(start, stop)``. It is called in
        order, each slice once. As many slices are held as make 64 MiB; 64, or up to 512 MiB of them, in Zarr and HDF5.
    n_classes : int
        Class ids are below it.
    spacing : (float, float, float), optional
        Distance between voxels in z, y and x, above 0; its unit alone says nothing.
    unit : str, optional
        Of the spacing, a length.
    name : str
        Of the labels, in Zarr and HDF5.
    provenance : mapping, optional
        What made the labels, JSON. Of its entries, "spwnet" is the version of the program and "time" is the date in
        HDF5.
    overwrite : bool
        Replace a volume of this name, once the new one is whole.
    ome_version : {"0.4", "0.5"}
        Of OME-Zarr.

    Raises
    ------
    OutputError
        As `check_target`; or if shape, type, spacing, unit or labels are not as said here, or the volume cannot be
        written, in which case the earlier one stays.
    """
    path = check_target(path, overwrite=overwrite)
    kind = _label_dtype(dtype)
    if len(shape) != 3 or min(shape) < 1:
        raise OutputError(f"expected a volume of shape (D, H, W), none of them 0, but got {shape}; give three sizes")
    if spacing is not None and (len(spacing) != 3 or not all(np.isfinite(step) and step > 0 for step in spacing)):
        raise OutputError(
            f"expected a spacing of three numbers above 0, z y x, but got {spacing}; correct it or leave it out"
        )
    if re.fullmatch(r"[\w.-]*\w", name) is None:
        raise OutputError(f"expected a name of letters, digits, '_', '-' and '.', but got '{name}'; choose another one")
    volume = _Volume(
        shape, kind, slabs, n_classes, spacing, unit_symbol(unit) if spacing else None, name, dict(provenance or {})
    )
    suffix = path.suffix.lower()
    with replacing(path) as temporary:
        if suffix == ".npy":
            check_space(path, prod(shape) * kind.itemsize)
            _write_npy(temporary, volume)
        elif suffix == ".zarr":
            _write_zarr(temporary, volume, ome_version)
        elif suffix in (".tif", ".tiff"):
            _write_tiff(temporary, volume)
        else:
            _write_nexus(temporary, volume)


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a name for a file or folder to be made, which takes the place of another when it is whole.

    Parameters
    ----------
    path : path
        What is to be replaced, if there is anything: a folder gives way to a folder, a file to a file.

    Yields
    ------
    Path
        ``.NAME.tmp`` beside it, where nothing is. It is removed if an error comes, and brought to the disk, then
        renamed, otherwise.

    Raises
    ------
    OutputError
        If the operating system refuses; what was there before is still there then.
    """
    path = Path(path)
    temporary, old = _temporary(path), path.with_name(f".{path.name}.old")
    with readable_errors(path):
        _delete(temporary)
        try:
            yield temporary
            _flush(temporary)
            if path.is_dir():
                _delete(old)
                path.rename(old)
                try:
                    temporary.rename(path)
                except BaseException:
                    old.rename(path)
                    raise
                _delete(old)
            else:
                temporary.replace(path)
        except BaseException:
            # What failed matters more than what is left; threads of Zarr may go on writing there for a moment.
            for _ in range(10):
                folder = temporary.is_dir()
                with suppress(OSError):
                    _delete(temporary)
                if not folder:
                    break
                sleep(0.1)
            raise


class _Volume:
    """What is written, whatever the format."""

    def __init__(
        self,
        shape: Shape,
        dtype: np.dtype[np.unsignedinteger[Any]],
        slabs: Callable[[slice], Labels],
        n_classes: int,
        spacing: Spacing | None,
        unit: str | None,
        name: str,
        provenance: dict[str, Any],
    ) -> None:
        self.shape, self.dtype, self.n_classes, self.name = shape, dtype, n_classes, name
        self.spacing, self.unit, self.provenance = spacing, unit, provenance
        self.steps = tuple(float(step) for step in spacing or (1.0, 1.0, 1.0))
        self.n_bytes = prod(shape) * dtype.itemsize
        self._slabs = slabs

    def parts(self, depth: int) -> Iterator[tuple[slice, NDArray[np.unsignedinteger[Any]]]]:
        """Slices of the volume, `depth` at a time."""
        for start in range(0, self.shape[0], depth):
            z = slice(start, min(start + depth, self.shape[0]))
            shape = (z.stop - z.start, *self.shape[1:])
            yield z, _checked(self._slabs(z), shape, self.dtype, self.n_classes - 1, f"slices {z.start} to {z.stop}")

    def depth(self) -> int:
        """Number of slices that are handled at once where the format does not care."""
        return max(1, SLAB_BYTES // (self.n_bytes // self.shape[0]))

    def chunks(self, side: int) -> Shape:
        """Chunks of about 64 slices, fewer where these fill the memory, and of some rows and columns."""
        depth, slice_bytes = 64, self.n_bytes // self.shape[0]
        while depth > 8 and depth * slice_bytes > 8 * SLAB_BYTES:
            depth //= 2
        return min(depth, self.shape[0]), min(side, self.shape[1]), min(side, self.shape[2])

    def described(self) -> str:
        return json.dumps(self.provenance, ensure_ascii=False)


def _write_npy(path: Path, volume: _Volume) -> None:
    from numpy.lib import format as npy

    header = {"descr": npy.dtype_to_descr(volume.dtype), "fortran_order": False, "shape": volume.shape}
    # In order rather than through a memory map, which a full disk would end by a signal.
    with path.open("wb") as file:
        npy.write_array_header_1_0(file, header)
        for _, labels in volume.parts(volume.depth()):
            file.write(labels.data)


def _write_tiff(path: Path, volume: _Volume) -> None:
    import tifffile

    fits = volume.n_bytes + 1024 * volume.shape[0] < _CLASSIC_TIFF
    # ImageJ keeps the spacing in y and x as a ratio of two 32-bit integers.
    imagej = fits and volume.dtype.itemsize <= 2 and all(1e-6 <= step <= 1e6 for step in volume.steps)
    # tifffile takes a single column for samples of a colour then.
    imagej = imagej and volume.shape[2] > 1
    metadata: dict[str, Any] = {"axes": "ZYX"}
    options: dict[str, Any] = {}
    if imagej:
        # What ImageJ shows as black and white: it would take class 1 of 3 for black, too.
        metadata |= {"min": 0, "max": max(volume.n_classes - 1, 1)}
        if volume.spacing is not None:
            # Under the unit "pixel" readers take a spacing for none at all; without a unit they keep it.
            unit = {"unit": plain_unit(volume.unit)} if volume.unit else {}
            metadata |= {"spacing": volume.steps[0], **unit}
            options = {"resolution": (1 / volume.steps[2], 1 / volume.steps[1]), "resolutionunit": "NONE"}
        if volume.provenance:
            metadata["Info"] = volume.described()
    else:
        if volume.spacing is not None:
            for axis, step in zip("ZYX", volume.steps, strict=True):
                # Without a unit, OME means µm.
                metadata |= {f"PhysicalSize{axis}": step, f"PhysicalSize{axis}Unit": volume.unit or "pixel"}
        metadata["Name"] = volume.name
        if volume.provenance:
            metadata["Description"] = volume.described()
    pages = (page for _, labels in volume.parts(volume.depth()) for page in labels)
    with tifffile.TiffWriter(path, bigtiff=not fits, imagej=imagej, ome=not imagej) as tiff:
        tiff.write(
            pages,
            shape=volume.shape,
            dtype=volume.dtype,
            photometric="minisblack",
            compression="zlib",
            compressionargs={"level": 4},
            metadata=metadata,
            **options,
        )


def _write_nexus(path: Path, volume: _Volume) -> None:
    import h5py

    chunks = volume.chunks(64)
    unit = plain_unit(volume.unit)
    with path.open("w+b", buffering=0) as raw, _Shield(raw) as shield, h5py.File(shield, "w") as file:
        file.attrs.update({"NX_class": "NXroot", "default": "entry", "creator": "spwnet"})
        entry = _nexus_group(file, "entry", "NXentry", default="data")
        entry["title"] = volume.name
        process = _nexus_group(entry, "process", "NXprocess")
        process["program"] = "spwnet"
        made = provenance() | volume.provenance
        process["version"], process["date"] = str(made["spwnet"]), str(made["time"])
        process["sequence_index"] = 1
        note = _nexus_group(process, "parameters", "NXnote")
        note["type"] = "application/json"
        note["description"] = "What made the labels"
        note["data"] = volume.described()
        axes = ["z", "y", "x"]
        indices = {f"{axis}_indices": number for number, axis in enumerate(axes)}
        data = _nexus_group(entry, "data", "NXdata", signal="labels", axes=axes, **indices)
        for axis, size, step in zip(axes, volume.shape, volume.steps, strict=True):
            data[axis] = np.arange(size) * step
            data[axis].attrs.update({"units": unit, "long_name": f"{axis} ({unit})"})
        data["title"] = volume.name
        labels = data.create_dataset(
            "labels", volume.shape, volume.dtype, chunks=chunks, compression="gzip", shuffle=True
        )
        labels.attrs.update({"long_name": volume.name, "interpretation": "image", "n_classes": volume.n_classes})
        for z, ids in volume.parts(chunks[0]):
            labels[z] = ids
            shield.check()


class _Shield:
    """A file that hides errors of writing from HDF5, which crashes at some, and raises the first of them itself."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._error: OSError | None = None
        self.seek, self.tell, self.flush = file.seek, file.tell, file.flush
        self.read, self.readinto = file.read, file.readinto

    def __enter__(self) -> _Shield:
        return self

    def __exit__(self, *error: object) -> None:
        self.check()

    def check(self) -> None:
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while len(left) and self._error is None:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._error = error
        return size

    def truncate(self, size: int) -> int:
        try:
            self._file.truncate(size)
        except OSError as error:
            self._error = self._error or error
        return size


def _nexus_group(parent: Any, name: str, kind: str, **attributes: Any) -> Any:
    group = parent.create_group(name)
    group.attrs.update({"NX_class": kind, **attributes})
    return group


def _write_zarr(path: Path, volume: _Volume, ome_version: Literal["0.4", "0.5"]) -> None:
    import zarr
    from numcodecs import Blosc  # type: ignore[import-untyped]
    from zarr.codecs import BloscCodec

    old = ome_version == "0.4"
    strides = _levels(volume.shape)
    chunks = volume.chunks(128)
    root = zarr.open_group(str(path), mode="w", zarr_format=2 if old else 3)
    labels = root.create_group("labels")
    group = labels.create_group(volume.name)
    options: dict[str, Any] = {
        "compressors": BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle"),
        "dimension_names": ["z", "y", "x"],
    }
    if old:
        options = {
            "compressors": Blosc(cname="zstd", clevel=5, shuffle=Blosc.BITSHUFFLE),
            "chunk_key_encoding": {"name": "v2", "separator": "/"},
        }
    shapes = [tuple(map(_thinned, volume.shape, stride)) for stride in strides]
    levels = [
        _Level(
            group.create_array(str(number), shape=shape, dtype=volume.dtype, chunks=chunks, fill_value=0, **options),
            stride,
        )
        for number, (shape, stride) in enumerate(zip(shapes, strides, strict=True))
    ]
    for z, ids in volume.parts(chunks[0]):
        for level in levels:
            level.add(z.start, ids)
    for level in levels:
        level.flush()
    colours = [
        {"label-value": k, "rgba": [*map(int, colour), 255]} for k, colour in enumerate(palette(volume.n_classes))
    ]
    label = {"version": ome_version, "colors": colours, "source": {"image": "../../"}}
    described: list[tuple[Any, dict[str, Any]]] = [
        (root, {"multiscales": [_multiscale(volume, strides, ome_version, f"labels/{volume.name}/")]}),
        (labels, {"labels": [volume.name]}),
        (group, {"multiscales": [_multiscale(volume, strides, ome_version, "")], "image-label": label}),
    ]
    for owner, metadata in described:
        owner.attrs.update(metadata if old else {"ome": {"version": ome_version, **metadata}})
    if volume.provenance:
        root.attrs["spwnet"] = volume.provenance


def _multiscale(
    volume: _Volume, strides: Sequence[tuple[int, ...]], ome_version: Literal["0.4", "0.5"], folder: str
) -> dict[str, Any]:
    """What OME-Zarr says of the levels in a folder."""
    axis = {"type": "space"} | ({"unit": standard_unit(volume.unit)} if volume.unit else {})
    scales = [[step * thin for step, thin in zip(volume.steps, stride, strict=True)] for stride in strides]
    return {
        **({"version": "0.4"} if ome_version == "0.4" else {}),
        "name": volume.name,
        "type": "nearest",
        "metadata": {"description": "each level takes every second voxel along the axes longer than 64"},
        "axes": [{"name": name, **axis} for name in "zyx"],
        "datasets": [
            {"path": f"{folder}{k}", "coordinateTransformations": [{"type": "scale", "scale": scale}]}
            for k, scale in enumerate(scales)
        ],
    }


class _Level:
    """A level of an OME-Zarr image, which gathers slices until they fill chunks: these are compressed once."""

    def __init__(self, array: Any, stride: tuple[int, ...]) -> None:
        self._array, self._stride = array, stride
        self._waiting: list[NDArray[np.unsignedinteger[Any]]] = []
        self._upto = 0

    def add(self, start: int, ids: NDArray[np.unsignedinteger[Any]]) -> None:
        z, y, x = self._stride
        taken = ids[-start % z :: z, ::y, ::x]
        # A copy where it is thinned, so that the slices in between need not stay in memory.
        self._waiting.append(taken if max(self._stride) == 1 else taken.copy())
        if sum(map(len, self._waiting)) >= self._array.chunks[0]:
            ready = np.concatenate(self._waiting)
            whole = len(ready) - len(ready) % self._array.chunks[0]
            self._waiting = [ready[whole:]]
            self._write(ready[:whole])

    def flush(self) -> None:
        self._write(np.concatenate(self._waiting))
        self._waiting = []

    def _write(self, ids: NDArray[np.unsignedinteger[Any]]) -> None:
        if len(ids):
            self._array[self._upto : self._upto + len(ids)] = ids
            self._upto += len(ids)


def _levels(shape: Shape, longest: int = 64) -> list[tuple[int, ...]]:
    """Strides of the levels, by axis: (1, 1, 1) first, the last of which leaves no axis longer than that."""
    strides: list[tuple[int, ...]] = [(1, 1, 1)]
    while any(_thinned(size, stride) > longest for size, stride in zip(shape, strides[-1], strict=True)):
        pairs = zip(shape, strides[-1], strict=True)
        strides.append(tuple(2 * stride if _thinned(size, stride) > longest else stride for size, stride in pairs))
    return strides


def _thinned(size: int, stride: int) -> int:
    return ceil(size / stride)


def _label_dtype(dtype: DTypeLike) -> np.dtype[np.unsignedinteger[Any]]:
    kind = np.dtype(dtype)
    if kind not in _DTYPES:
        names = ", ".join(np.dtype(known).name for known in _DTYPES)
        raise OutputError(f"expected a type for labels, one of {names}, but got {kind}; choose the smallest that fits")
    native: np.dtype[np.unsignedinteger[Any]] = np.dtype(kind.type)
    return native


def _checked(
    labels: Labels, shape: tuple[int, ...], dtype: np.dtype[np.unsignedinteger[Any]], largest: int, what: str
) -> NDArray[np.unsignedinteger[Any]]:
    """Labels in the type they are written in."""
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


def _unreadable(path: Path, error: Exception) -> OutputError:
    return OutputError(f"expected to read {path}, but: {error}; remove it and resume the segmentation")


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _delete(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Bring a file, or all the files in a folder, to the disk: a rename may outlive what was written before it."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("r+b") as handle:
                os.fsync(handle.fileno())

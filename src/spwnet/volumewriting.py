"""Writers of label volumes: one file or folder, slice by slice, in the format its name asks for."""

from __future__ import annotations

import json
import os
import re
from math import ceil, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from spwnet.classes import Legend, palette
from spwnet.errors import OutputError
from spwnet.outputs import checked_labels, provenance, stored_dtype
from spwnet.packages import optional_package
from spwnet.storage import check_space, readable_errors, replacing, working_name
from spwnet.units import plain_unit, standard_unit, unit_symbol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import DTypeLike, NDArray

    Labels = NDArray[np.integer[Any]]
    Shape = tuple[int, int, int]
    Spacing = tuple[float, float, float]

SUFFIXES = (".tif", ".tiff", ".zarr", ".h5", ".hdf5", ".nxs", ".npy")
"""Names that a label volume can end in."""

SLAB_BYTES = 64 * 2**20
"""Memory that the slices take which are handled at once, about, where the format leaves the choice."""

_EXTRAS = {".zarr": ("zarr", "zarr"), ".h5": ("h5py", "hdf5"), ".hdf5": ("h5py", "hdf5"), ".nxs": ("h5py", "hdf5")}
# The largest offset of a classic TIFF, less what tags may take.
_CLASSIC_TIFF = 2**32 - 2**25


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
        package, extra = _EXTRAS[suffix]
        optional_package(package, f"to write {suffix}", extra, OutputError, otherwise="write TIFF (.tif)")
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
    probe = working_name(path).with_suffix(".probe")
    with readable_errors(path):
        probe.touch()
        probe.unlink()
    return path


def write_volume(
    path: str | Path,
    shape: Shape,
    dtype: DTypeLike,
    slabs: Callable[[slice], Labels],
    *,
    n_classes: int,
    legend: Legend | None = None,
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
    legend : Legend, optional
        Colours of the classes in Zarr, and their names in Zarr and HDF5; those of the palette if not given.
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
    kind = stored_dtype(dtype)
    if len(shape) != 3 or min(shape) < 1:
        raise OutputError(f"expected a volume of shape (D, H, W), none of them 0, but got {shape}; give three sizes")
    if spacing is not None and (len(spacing) != 3 or not all(np.isfinite(step) and step > 0 for step in spacing)):
        raise OutputError(
            f"expected a spacing of three numbers above 0, z y x, but got {spacing}; correct it or leave it out"
        )
    if re.fullmatch(r"[\w.-]*\w", name) is None:
        raise OutputError(f"expected a name of letters, digits, '_', '-' and '.', but got '{name}'; choose another one")
    volume = _Volume(
        shape, kind, slabs, n_classes, legend or Legend(palette(n_classes), {}), spacing,
        unit_symbol(unit) if spacing else None, name, dict(provenance or {}),
    )  # fmt: skip
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


class _Volume:
    """What is written, whatever the format."""

    def __init__(
        self,
        shape: Shape,
        dtype: np.dtype[np.unsignedinteger[Any]],
        slabs: Callable[[slice], Labels],
        n_classes: int,
        legend: Legend,
        spacing: Spacing | None,
        unit: str | None,
        name: str,
        provenance: dict[str, Any],
    ) -> None:
        self.shape, self.dtype, self.n_classes, self.name = shape, dtype, n_classes, name
        self.legend, self.spacing, self.unit, self.provenance = legend, spacing, unit, provenance
        self.steps = tuple(float(step) for step in spacing or (1.0, 1.0, 1.0))
        self.n_bytes = prod(shape) * dtype.itemsize
        self._slabs = slabs

    def parts(self, depth: int) -> Iterator[tuple[slice, NDArray[np.unsignedinteger[Any]]]]:
        """Slices of the volume, `depth` at a time."""
        for start in range(0, self.shape[0], depth):
            z = slice(start, min(start + depth, self.shape[0]))
            shape = (z.stop - z.start, *self.shape[1:])
            yield (
                z,
                checked_labels(self._slabs(z), shape, self.dtype, self.n_classes - 1, f"slices {z.start} to {z.stop}"),
            )

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
        # Names of files need be no UTF-8.
        return json.dumps(self.provenance, ensure_ascii=False).encode("utf-8", "backslashreplace").decode()


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
            # The edges of a single voxel, because one place would tell no step.
            data[axis] = (np.arange(size) if size > 1 else np.array([-0.5, 0.5])) * step
            data[axis].attrs.update({"units": unit, "long_name": f"{axis} ({unit})"})
        data["title"] = volume.name
        labels = data.create_dataset(
            "labels", volume.shape, volume.dtype, chunks=chunks, compression="gzip", shuffle=True
        )
        labels.attrs.update({"long_name": volume.name, "interpretation": "image", "n_classes": volume.n_classes})
        if volume.legend.names:
            # No attribute, which would hold 64 KiB.
            data["class_names"] = [volume.legend.name(k) for k in range(volume.n_classes)]
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
    from numcodecs import Blosc  # type: ignore[import-untyped]  # it tells no types
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
        {"label-value": k, "rgba": [*map(int, colour), 0 if k == volume.legend.background else 255]}
        for k, colour in enumerate(volume.legend.colours)
    ]
    label: dict[str, Any] = {"version": ome_version, "colors": colours, "source": {"image": "../../"}}
    if volume.legend.names:
        label["properties"] = [{"label-value": k, "name": name} for k, name in sorted(volume.legend.names.items())]
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

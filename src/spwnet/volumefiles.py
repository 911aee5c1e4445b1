"""Volumes as files hold them: one reader for each format, which opens without reading voxels."""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import math
import re
import warnings
from collections import deque
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import InputError
from spwnet.images import MOST_CHANNELS, open_stack, open_tiff_stack, readable_image, single_image
from spwnet.packages import optional_package

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Steps = Mapping[str, tuple[float, str | None]]
    Take = Callable[[tuple[slice, ...]], NDArray[Any]]

logger = logging.getLogger(__name__)

MOST_NODES = 20_000
"""Groups and datasets of one file that are looked at in search of a volume."""

_CODECS = {"imagecodecs": "imagecodecs", "pcodec": "pcodec", "zfpy": "zfpy", "crc32c": "crc32c"}
_QUIET = Lock()


@dataclass(frozen=True, eq=False)
class Stored:
    """An array as a file holds it.

    Attributes
    ----------
    shape : tuple of int
        In the order of the file.
    dtype : dtype
        Of what `take` gives, in any byte order.
    take : callable
        Reads a part by slices, one for each axis.
    axes : str or None
        A letter for each axis: Z, Y, X, channels C and S, T or any other; None where nothing names them.
    steps : mapping
        Distance of voxels along an axis, by its letter, and the unit as the file spells it.
    chunks : tuple of int or None
        Shape of the parts that are read whole, in the order of the file.
    kept : int or None
        Channels before the alpha, where there is alpha.
    rgb : bool
        Whether three channels are red, green and blue.
    within : str
        Path of the dataset in the file, empty where the file is one array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    take: Take
    axes: str | None = None
    steps: Steps = field(default_factory=dict)
    chunks: tuple[int, ...] | None = None
    kept: int | None = None
    rgb: bool = False
    within: str = ""


@contextmanager
def readable(where: str) -> Iterator[None]:
    """Turn whatever a reader raises into one error for users."""
    try:
        yield
    except InputError as error:
        raise InputError(f"cannot read '{where}': {error}") from error
    except MemoryError:
        raise
    except Exception as error:
        remedy = "check that the file is complete, or copy it again from where it was written"
        if "unable to lock" in str(error).lower():
            remedy = "close the program that writes it, or set the environment variable HDF5_USE_FILE_LOCKING=FALSE"
        if type(error).__name__ == "UnknownCodecError":
            package = next((p for word, p in _CODECS.items() if word in str(error)), "numcodecs")
            remedy = f"install the package that has this codec, for example by `pip install {package}`"
        raise InputError(f"expected to read '{where}', but: {_reason(error)}; {remedy}") from error


@contextmanager
def _quiet(message: str) -> Iterator[None]:
    """Leave out warnings that begin like this; one at a time, because filters belong to all threads."""
    with _QUIET, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message)
        yield


def guess_axes(shape: tuple[int, ...]) -> str:
    """Name the axes of an array that nothing names: ZYX, or with channels ZYXC or CZYX.

    Raises
    ------
    InputError
        If the shape does not tell.
    """
    if len(shape) == 3:
        return "ZYX"
    if len(shape) == 4 and shape[0] != shape[-1] and min(shape[0], shape[-1]) <= MOST_CHANNELS:
        return "ZYXC" if shape[-1] < shape[0] else "CZYX"
    if len(shape) < 3:
        raise InputError(
            f"expected a volume, of three dimensions or four with channels, but the shape is {shape}; give several "
            "slices as a folder or a list, or segment it as an image"
        )
    raise InputError(
        f"expected three dimensions, or a first or last axis of at most {MOST_CHANNELS} channels beside them, but the "
        f'shape is {shape}; name its axes by `axes`, for example "CZYX"'
    )


def arrange(block: NDArray[Any], axes: str) -> NDArray[Any]:
    """Return a block as (d, h, w, C); axes other than Z, Y, X, C and S have length 1."""
    order = sorted(range(len(axes)), key=lambda k: "ZYXCS".find(axes[k]))
    depth, height, width = (block.shape[axes.index(axis)] if axis in axes else 1 for axis in "ZYX")
    return block.transpose(order).reshape(depth, height, width, -1)


# Arrays, and files that are one array


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
    take = _by_chunks(lambda index: np.asarray(array[index]), chunks)
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


# TIFF and slices


def open_slices(paths: Sequence[Path], axes: str | None) -> Stored:
    """Take files of one slice each as a volume; each is opened when it is read.

    Parameters
    ----------
    paths : sequence of path
        Image files in the order of z.
    axes : str or None
        Names of the axes of one slice, for TIFF and NPY.
    """
    with readable_image(str(paths[0])):
        first = single_image(open_stack(paths[0], axes))
        sample = first.take(tuple(slice(0, 1) for _ in first.axes))
        height, width = (first.shape[first.axes.index(axis)] for axis in "YX")
    # tifffile turns the bytes of a compressed page around, those of a memory map it leaves
    kind = height, width, first.channels, sample.dtype.newbyteorder("=")

    def take(index: tuple[slice, ...]) -> NDArray[Any]:
        parts = dict(zip("YX", index[1:3], strict=True))
        slices = []
        for path in paths[index[0]]:
            with readable_image(str(path)):
                stack = single_image(open_stack(path, axes))
                block = stack.take(tuple(parts.get(axis, slice(None)) for axis in stack.axes))
                size = (*(stack.shape[stack.axes.index(axis)] for axis in "YX"), stack.channels)
                found = (*size, block.dtype.newbyteorder("="))
                if found != kind:
                    raise InputError(
                        f"expected a slice like the first one, '{paths[0].name}', {_describe(kind)}, but this one is "
                        f"{_describe(found)}; leave it out, or save all slices alike"
                    )
                slices.append(arrange(block, stack.axes)[..., : stack.kept])
        return np.concatenate(slices)[..., index[3]]

    shape = (len(paths), height, width, first.channels)
    rgb = first.coloured and first.channels == 3
    return Stored(shape, sample.dtype, take, "ZYXC", chunks=(1, *shape[1:]), rgb=rgb)


def _describe(kind: tuple[Any, ...]) -> str:
    height, width, channels, dtype = kind
    return f"{height}×{width} of {channels} channel{'s' * (channels != 1)} of {dtype}"


def open_tiff(path: Path) -> Stored:
    """Open a TIFF of many pages, by memory map where it lies in one piece, else page by page."""
    from tifffile import TiffFile

    stack = open_tiff_stack(path, None)
    with TiffFile(path) as tiff:
        page: Any = tiff.pages[0]
        dtype, samples, inner = page.dtype, page.samplesperpixel, page.ndim
        steps = _tiff_steps(tiff)
        # an OME-TIFF may go on in other files
        shared = len(set(re.findall(r'FileName="([^"]+)"', tiff.ome_metadata or ""))) > 1
        missing = sum(part is None for part in tiff.series[0].pages) if shared else 0
    if missing:
        raise InputError(
            f"expected the other files of this OME-TIFF, but {missing} pages are missing; copy them beside it"
        )
    axes = stack.axes
    if axes == "YXC" and samples == 1:  # narrow pages without a name, taken for channels
        axes = "QYX"
    frames = [axis for axis, n in zip(axes, stack.shape, strict=True) if axis not in "YXCS" and n > 1]
    if "Z" not in axes and len(frames) == 1 and frames[0] in "TIQ":
        level = logging.INFO if frames[0] == "T" else logging.DEBUG
        logger.log(level, "the images of %s, along axis %s, are taken as slices along z", path, frames[0])
        axes = axes.replace(frames[0], "Z")
    rgb = stack.coloured and stack.channels == 3
    if stack.kept is not None:
        logger.warning("the alpha channel of '%s' is left out", path)
    mapped = getattr(stack.take, "__self__", None)
    if isinstance(mapped, np.memmap):
        return Stored(stack.shape, mapped.dtype, mapped.__getitem__, axes, steps, None, stack.kept, rgb)
    leading = len(axes) - inner
    lock = Lock()

    def take(index: tuple[slice, ...]) -> NDArray[Any]:
        # page by page, lest whole pages pile up of which only a part is wanted
        ranges = [range(*part.indices(n)) for part, n in zip(index, stack.shape, strict=True)]
        block = np.empty([len(r) for r in ranges], dtype)
        for place in np.ndindex(block.shape[:leading]):
            wanted = [r[k] for r, k in zip(ranges, place, strict=False)]
            try:
                with lock, _quiet(".*reading array from closed file") if shared else nullcontext():
                    page = stack.take((*(slice(k, k + 1) for k in wanted), *index[leading:]))
            except (InputError, MemoryError):
                raise
            except Exception as error:
                where = ", ".join(f"{axis} {k}" for axis, k in zip(axes, wanted, strict=False)) or "0"
                remedy = "save the file again"
                if "imagecodecs" in str(error):
                    remedy = "install that by `pip install imagecodecs`, or save the file uncompressed"
                raise InputError(f"expected to decode the page at {where}, but: {error}; {remedy}") from error
            block[place] = page[(0,) * leading] if leading else page
        return block

    chunks = (*(1 for _ in axes[:leading]), *stack.shape[leading:])
    return Stored(stack.shape, dtype, take, axes, steps, chunks, stack.kept, rgb)


def _tiff_steps(tiff: Any) -> Steps:
    """Find the spacing in the metadata of OME or ImageJ."""
    from tifffile import xml2dict

    if tiff.ome_metadata:
        with suppress(Exception):  # the pixels can be read without
            image = xml2dict(tiff.ome_metadata)["OME"]["Image"]
            pixels = (image[0] if isinstance(image, list | tuple) else image)["Pixels"]
            keys = {axis: f"PhysicalSize{axis}" for axis in "ZYX"}
            return {a: (float(pixels[k]), str(pixels.get(f"{k}Unit", "µm"))) for a, k in keys.items() if k in pixels}
    found = tiff.imagej_metadata or {}
    unit = found.get("unit")
    if not {"spacing", "unit"} & set(found) or str(unit).startswith("pixel"):
        return {}
    steps = {"Z": (float(found.get("spacing", 1)), unit)}  # ImageJ leaves out a spacing of 1
    for axis in "YX":
        tag = tiff.pages[0].tags.get(f"{axis}Resolution")
        dots, lengths = tag.value if tag is not None else (1, 1)
        steps[axis] = (lengths / dots if dots else 0.0, unit)
    return steps


# HDF5


def open_hdf5(path: Path, dataset: str | None = None) -> Stored:
    """Open a dataset of an HDF5 or NeXus file: the one named, or else the only one that is a volume.

    Raises
    ------
    InputError
        If it is not there, or several are volumes, or its filter is not installed.
    """
    h5py = optional_package("h5py", "to read HDF5", "hdf5", InputError)
    with suppress(ImportError):
        importlib.import_module("hdf5plugin")  # which registers its filters
    file = h5py.File(path, "r")
    try:
        at, found = _find_hdf5(file, dataset)
        group = file[at.rpartition("/")[0] or "/"]
        return describe_hdf5(found, group, at)
    except BaseException:
        file.close()
        raise


def describe_hdf5(dataset: Any, group: Any, at: str) -> Stored:
    """Describe an h5py dataset that the group holds."""
    _check_filters(dataset)
    axes, steps = _nexus_axes(group, dataset)
    with suppress(KeyError, TypeError, ValueError):
        axes = "".join(tag["key"] for tag in json.loads(_text(dataset.attrs["axistags"]))["axes"]).upper()
    with suppress(KeyError, TypeError, ValueError):
        sizes = [float(size) for size in dataset.attrs["element_size_um"]]
        steps = {axis: (size, "micrometer") for axis, size in zip("ZYX", sizes, strict=True)}
    take = _by_chunks(dataset.__getitem__, dataset.chunks)
    return Stored(dataset.shape, dataset.dtype, take, axes, steps, dataset.chunks, within=at)


def _find_hdf5(file: Any, dataset: str | None) -> tuple[str, Any]:
    import h5py

    start, at = file, "/"
    if dataset:
        at = "/" + dataset.strip("/")
        try:
            start = file[at]
        except Exception as error:
            everything = [(path, node) for path, node in _walk_hdf5(file, "/") if isinstance(node, h5py.Dataset)]
            raise InputError(
                f"expected the dataset {at}, but: {_reason(error)}; there {_listed(everything)}"
            ) from error
    if isinstance(start, h5py.Dataset):
        return at, start
    default = _default_signal(at, start)
    if default is not None and _plausible(default[1]):
        return default
    nodes = list(_walk_hdf5(start, at))
    groups = [(path, node) for path, node in nodes if isinstance(node, h5py.Group)]
    datasets = [(path, node) for path, node in nodes if isinstance(node, h5py.Dataset)]
    entries = [group for group in groups if _text(group[1].attrs.get("NX_class")) == "NXentry"]
    # what a NeXus file names comes before what merely looks like a volume
    for found in ([_default_signal(*entry) for entry in entries], [_signal(*group) for group in groups]):
        volumes = {_identity(item[1]): item for item in found if item is not None and _plausible(item[1])}
        if len(volumes) == 1:
            return next(iter(volumes.values()))
    return _only([item for item in datasets if _plausible(item[1])], datasets)


def _walk_hdf5(start: Any, at: str) -> Iterator[tuple[str, Any]]:
    """Go through groups and datasets, the nearest first, each once whatever links lead to it."""
    import h5py

    seen: set[Any] = set()
    queue = deque([(at, start)])
    while queue:
        path, node = queue.popleft()
        if _identity(node) in seen:
            continue
        seen.add(_identity(node))
        if len(seen) > MOST_NODES:
            raise InputError(f"expected at most {MOST_NODES:,} datasets, but there are more; give one by `dataset`")
        yield path, node
        if isinstance(node, h5py.Group):
            for name in node:
                if (child := _child(node, name)) is not None:
                    queue.append((f"{path.rstrip('/')}/{name}", child))


def _identity(node: Any) -> tuple[int, int]:
    import h5py

    info = h5py.h5o.get_info(node.id)
    return info.fileno, info.addr


def _child(group: Any, name: str) -> Any:
    """Return what a link leads to; None where it is broken or leads in circles."""
    import h5py

    try:
        child = group[name]
    except Exception as error:
        logger.debug("the link %s of %s leads nowhere: %s", name, group.name, error)
        return None
    return child if isinstance(child, h5py.Group | h5py.Dataset) else None


def _default_signal(path: str, group: Any) -> tuple[str, Any] | None:
    """Follow the attributes `default` of NeXus down to a signal."""
    import h5py

    for _ in range(32):
        name = _text(group.attrs.get("default"))
        child = _child(group, name) if name else None
        if not isinstance(child, h5py.Group):
            break
        path, group = f"{path.rstrip('/')}/{name}", child
    return _signal(path, group)


def _signal(path: str, group: Any) -> tuple[str, Any] | None:
    """Return the dataset that a group of NeXus is about."""
    import h5py

    name = _text(group.attrs.get("signal"))
    names = [name] if name else []
    if _text(group.attrs.get("NX_class")) in ("NXdata", "NXtomoproc"):
        # before 2014 the dataset itself was marked
        for child in group:
            if _text(getattr(_child(group, child), "attrs", {}).get("signal")) == "1":
                names.append(child)
        names.append("data")
    for name in names:
        found = _child(group, name)
        if isinstance(found, h5py.Dataset):
            return f"{path.rstrip('/')}/{name}", found
    return None


def _nexus_axes(group: Any, dataset: Any) -> tuple[str | None, Steps]:
    """Find names and spacing of the axes in the NXdata group that holds the dataset."""
    names = _texts(group.attrs.get("axes"))
    if len(names) != dataset.ndim:
        names = _text(dataset.attrs.get("axes")).strip("[]").replace(",", ":").split(":")
    if len(names) != dataset.ndim and all(name in group for name in "zyx"):
        names = list("zyx")
    if len(names) != dataset.ndim:
        return None, {}
    axes: str | None = "".join(name.strip().upper() for name in names)
    if sorted(axes or "") not in (sorted("ZYX"), sorted("ZYXC"), sorted("ZYXT"), sorted("ZYXCT")):
        axes = None
        with suppress(InputError):
            axes = guess_axes(dataset.shape)
    steps = {}
    for axis, name, n in zip(axes or "", names, dataset.shape, strict=bool(axes)):
        places: Any = _child(group, name.strip()) if name.strip() not in ("", ".") else None
        if getattr(places, "ndim", 0) != 1 or places.dtype.kind not in "uif" or places.shape[0] not in (n, n + 1):
            continue
        values = places[:].astype(float)  # centres, or edges
        if len(values) < 2:
            continue
        step = (values[-1] - values[0]) / (len(values) - 1)
        if np.allclose(np.diff(values), step, rtol=1e-3, atol=0):
            steps[axis] = (abs(float(step)), _text(places.attrs.get("units")))
        else:
            logger.info("the places along %s of %s are not evenly spaced; its spacing is left open", name, dataset.name)
    return axes, steps


def _check_filters(dataset: Any) -> None:
    """Refuse a dataset of which parts cannot come: HDF5 would fill them with zeros, or name a number alone."""
    import h5py

    properties = dataset.id.get_create_plist()
    for k in range(properties.get_nfilters()):
        code, _, _, label = properties.get_filter(k)
        if not h5py.h5z.filter_avail(code):
            raise InputError(
                f"expected the filter {_text(label) or code} (number {code}) that compresses {dataset.name}, but it is "
                "not installed; install hdf5plugin by `pip install 'spwnet[hdf5]'`"
            )
    if not dataset.is_virtual:
        return
    folder = Path(dataset.file.filename).parent
    for name, inner in {(source.file_name, source.dset_name) for source in dataset.virtual_sources()}:
        if "%b" in name + inner:
            continue
        path = next((place for place in (folder / name, Path(name)) if place.is_file()), None)
        if name != "." and path is None:
            raise InputError(
                f"expected the file {name} that holds a part of the virtual dataset {dataset.name}, but it is not in "
                f"{folder}; copy it there"
            )
        with nullcontext(dataset.file) if name == "." else h5py.File(path, "r") as file:
            if inner not in file:
                raise InputError(f"expected {inner} in {name} as a part of {dataset.name}, but it is not there")


# Zarr


def open_zarr(path: Path, dataset: str | None = None, level: int = 0) -> Stored:
    """Open an array of a Zarr folder or zip file: the one named, a level of OME-Zarr, or the only volume.

    Raises
    ------
    InputError
        If it is not there, or several are volumes, or the level is not there.
    """
    zarr = optional_package("zarr", "to read Zarr", "zarr", InputError)
    with _quiet("Object at|The data type"):  # of other files among the arrays, and of types without a standard
        root = zarr.open(zarr.storage.ZipStore(path, mode="r") if path.is_file() else path, mode="r")
        array = _find_zarr(root, (dataset or "").strip("/"), level)
        axes, steps = _ome_axes(root, array.path, array.ndim)
    take = _by_chunks(lambda index: np.asarray(array[index]), array.chunks)
    return Stored(array.shape, array.dtype, take, axes, steps, array.chunks, within=array.path)


def _find_zarr(root: Any, dataset: str, level: int) -> Any:
    import zarr

    node = root
    if dataset:
        try:
            node = root[dataset]
        except (KeyError, IndexError):  # the latter from an array
            arrays = [(p, n) for p, n in _walk_zarr(root) if isinstance(n, zarr.Array)]
            raise InputError(f"expected the array '{dataset}', but it is not there; there {_listed(arrays)}") from None
    if isinstance(node, zarr.Group) and not _multiscales(node):
        nodes = list(_walk_zarr(node))
        arrays = [(p, n) for p, n in nodes if isinstance(n, zarr.Array)]
        pyramids = [(p, n) for p, n in nodes if isinstance(n, zarr.Group) and _multiscales(n)]
        node = _only(pyramids + [item for item in arrays if _plausible(item[1])], arrays)[1]
    if isinstance(node, zarr.Group):
        levels: list[Any] = [node[entry["path"]] for entry in _multiscales(node)["datasets"]]
    else:
        levels = [node]
    if level >= len(levels):
        shapes = ", ".join(f"{k} {tuple(array.shape)}" for k, array in enumerate(levels))
        raise InputError(f"expected a level among {shapes}, but got {level}; choose another by `level`")
    return levels[level]


def _walk_zarr(start: Any) -> Iterator[tuple[str, Any]]:
    """Go through arrays and groups below a group, but not into the levels of OME-Zarr."""
    import zarr

    queue, count = deque([start]), 0
    while queue:
        node = queue.popleft()
        count += 1
        if count > MOST_NODES:
            raise InputError(f"expected at most {MOST_NODES:,} arrays, but there are more; give one by `dataset`")
        yield node.path, node
        if isinstance(node, zarr.Group) and not _multiscales(node):
            queue.extend(child for _, child in sorted(node.members(), key=lambda member: member[0]))


def _multiscales(group: Any) -> Any:
    """Return the first multiscale of OME-Zarr 0.4, or 0.5 which keeps it one level deeper; else None."""
    found = group.attrs.get("ome", group.attrs)
    scales = found.get("multiscales") if hasattr(found, "get") else None
    return scales[0] if isinstance(scales, list) and scales and scales[0].get("datasets") else None


def _ome_axes(root: Any, path: str, ndim: int) -> tuple[str | None, Steps]:
    """Find names and spacing of the axes of an array in the groups above it."""
    parts = path.split("/") if path else []
    for depth in reversed(range(len(parts))):
        group = root["/".join(parts[:depth])] if depth else root
        scales = _multiscales(group)
        entry = next((e for e in (scales or {}).get("datasets", ()) if e["path"] == "/".join(parts[depth:])), None)
        if entry is None:
            continue
        named = scales.get("axes", "tczyx" if ndim == 5 else None)  # up to 0.2 the axes were always these
        if named is None or len(named) != ndim:
            raise InputError(
                f"expected names of the {ndim} axes in the metadata of OME-Zarr, but got {named}; amend it"
            )
        known = [axis if isinstance(axis, dict) else {"name": axis} for axis in named]
        kinds = {"channel": "C", "time": "T"}
        axes = "".join(kinds.get(axis.get("type", ""), str(axis["name"])[:1].upper()) for axis in known)
        scale, told = np.ones(ndim), False
        for step in (entry.get("coordinateTransformations") or []) + (scales.get("coordinateTransformations") or []):
            if step.get("type") == "scale" and len(step.get("scale", ())) == ndim:
                scale, told = scale * np.asarray(step["scale"], float), True
        if not told:
            return axes, {}
        return axes, {a: (float(s), k.get("unit")) for a, s, k in zip(axes, scale, known, strict=True)}
    return None, {}


# NIfTI and MRC


def open_nifti(path: Path) -> Stored:
    """Open a NIfTI file, whose axes are x, y, z: by memory map, or through its compression."""
    nibabel = optional_package("nibabel", "to read NIfTI", "medical", InputError)
    image = nibabel.load(path)
    proxy, header = image.dataobj, image.header
    shape, dtype, slope, inter = proxy.shape, proxy.dtype, float(proxy.slope), float(proxy.inter)
    axes = "XYZTC"[: len(shape)]
    if len(shape) == 4 and shape[3] <= MOST_CHANNELS:
        axes = "XYZC"
    unit: str | None = None
    with suppress(KeyError):  # of a number that stands for no unit
        unit = header.get_xyzt_units()[0]
    steps = {axis: (abs(float(size)), unit) for axis, size in zip("XYZ", header.get_zooms(), strict=False)}
    chunks = None
    if path.suffix.lower() == ".gz":
        plain = nibabel.arrayproxy.ArrayProxy(path, (shape, dtype, proxy.offset, 1.0, 0.0), keep_file_open=True)
        chunks = tuple(n if axis in "XY" else 1 for axis, n in zip(axes, shape, strict=False))
        if math.prod(shape) > 2**28:
            logger.info("parts of %s are slow to read, because it is compressed as one piece; unpack it first", path)
    else:
        needed, found = proxy.offset + math.prod(shape) * dtype.itemsize, path.stat().st_size
        if found < needed:
            raise InputError(f"expected {needed:,} bytes, but the file ends after {found:,}; copy it again")
        plain = np.memmap(path, dtype, "r", proxy.offset, shape, order="F")
    if (slope, inter) == (1.0, 0.0):
        return Stored(shape, dtype, plain.__getitem__, axes, steps, chunks)
    # float32 holds integers of up to 24 bits without loss
    scaled = np.dtype(np.float32 if dtype.itemsize <= 2 or (dtype.kind == "f" and dtype.itemsize == 4) else np.float64)

    def take(index: tuple[slice, ...]) -> NDArray[Any]:
        block: NDArray[Any] = np.asarray(plain[index]).astype(scaled)
        return block * scaled.type(slope) + scaled.type(inter)

    return Stored(shape, scaled, take, axes, steps, chunks)


def open_mrc(path: Path) -> Stored:
    """Map an MRC file into memory."""
    mrcfile = optional_package("mrcfile", "to read MRC", "medical", InputError)
    with _quiet("MRC file is .* larger"), mrcfile.mmap(path, mode="r") as file:
        data, header, sizes = file.data, file.header, file.voxel_size
        order = [int(header.maps), int(header.mapr), int(header.mapc)]
        steps = {axis: (float(sizes[axis.lower()]), "angstrom") for axis in "ZYX"}
    axes = "".join("XYZ"[k - 1] for k in order) if sorted(order) == [1, 2, 3] else "ZYX"
    return Stored(data.shape, data.dtype, data.__getitem__, ("T" + axes)[-data.ndim :], steps)


# What the readers share


def _by_chunks(take: Take, chunks: tuple[int, ...] | None) -> Take:
    """Let an error of reading name the first chunk that cannot be read."""
    if not chunks:
        return take

    def named(index: tuple[slice, ...]) -> NDArray[Any]:
        try:
            return take(index)
        except MemoryError:
            raise
        except Exception as error:
            spans = [range(part.start // n, (part.stop - 1) // n + 1) for part, n in zip(index, chunks, strict=True)]
            for chunk in itertools.product(*spans):
                try:
                    take(tuple(slice(k * n, (k + 1) * n) for k, n in zip(chunk, chunks, strict=True)))
                except Exception as cause:
                    raise InputError(
                        f"expected to read chunk {chunk} of shape {tuple(chunks)}, but: {_reason(cause)}; copy the "
                        "file again, or leave this part out"
                    ) from error
            raise

    return named


def _plausible(array: Any) -> bool:
    """Whether an array looks like a volume."""
    named = "axistags" in array.attrs
    return _possible(array) and (
        named or array.ndim == 3 or (array.ndim == 4 and min(array.shape[::3]) <= MOST_CHANNELS)
    )


def _possible(array: Any) -> bool:
    """Whether an array is a volume if its axes are told."""
    return bool(array.dtype.kind in "buif" and len(array.shape or ()) > 2 and 0 not in array.shape)


def _only(volumes: list[tuple[str, Any]], everything: list[tuple[str, Any]]) -> tuple[str, Any]:
    """Return the only volume, or the only array that becomes one if its axes are told."""
    found = volumes or [item for item in everything if _possible(item[1])]
    if len(found) == 1:
        return found[0]
    count = f"there are {len(found)} of them" if found else "there is none"
    raise InputError(
        f"expected one volume, but {count}; give one by `dataset` / `--dataset`; there {_listed(found or everything)}"
    )


def _listed(arrays: Sequence[tuple[str, Any]]) -> str:
    """List datasets with path, shape and type, ten at most."""
    if not arrays:
        return "are no datasets"
    known = [
        f"{path or '/'} {tuple(array.shape or ())} of {array.dtype}"
        if hasattr(array, "shape")
        else f"{path or '/'} (OME-Zarr)"
        for path, array in arrays[:10]
    ]
    more = f" and {len(arrays) - 10} more" if len(arrays) > 10 else ""
    return f"{'is' if len(arrays) == 1 else 'are'} {', '.join(known)}{more}"


def _reason(error: Exception) -> str:
    """Return the text of an error; that of a KeyError would come in quotation marks."""
    return str(error.args[0] if isinstance(error, KeyError) and error.args else error) or type(error).__name__


def _text(value: Any) -> str:
    """Return an attribute as text, whether it is stored as text, bytes, a number or an array of one; else empty."""
    return texts[0] if len(texts := _texts(value)) == 1 else ""


def _texts(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bytes):
        return [value.decode("utf-8", "replace")]
    if isinstance(value, str | int):
        return [str(value)]
    values: Iterable[Any] = np.asarray(value).ravel().tolist()
    return [text for item in values for text in _texts(item if isinstance(item, bytes | str | int) else str(item))]

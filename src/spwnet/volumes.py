"""Volumes, such as tomograms, from files and arrays: opened without reading, and read part by part."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from spwnet.errors import InputError, did_you_mean
from spwnet.sources import MOST_PIXELS, Image, numbered
from spwnet.units import METRES, standard_unit
from spwnet.volumefiles import (
    Stored,
    arrange,
    choose_reader,
    describe_hdf5,
    find_slices,
    guess_axes,
    is_series,
    names_volume,
    open_array,
    open_hdf5,
    open_slices,
    readable,
    refuse_options,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

MOST_VOXELS = 2**44
"""Voxels of one volume at most, because a larger one comes of a damaged header."""

_TURNED = {"z": (0, 1, 2), "y": (1, 0, 2), "x": (2, 0, 1)}


class _Reading(Protocol):
    """Reads a region as a (d, h, w, C) array of any byte order and memory layout, but finite."""

    def read(self, where: tuple[slice, slice, slice]) -> NDArray[Any]: ...


@dataclass(frozen=True, eq=False)
class Volume:
    """A volume that is read part by part.

    It can be pickled: the file is then opened anew where the copy reads first. Several threads may read at once.

    Attributes
    ----------
    name : str
        Name of the file without suffix.
    shape : (int, int, int)
        Voxels along z, y, x.
    channels : int
        At least 1.
    dtype : dtype
        Integers or floats as stored, in native byte order; booleans are read as uint8.
    spacing : (float, float, float) or None
        Distance of voxels along z, y, x; None where unknown.
    unit : str or None
        Of the spacing, as OME spells it, for example "micrometer"; None where unknown.
    origin : str
        Where it comes from, with the dataset.
    chunks : (int, int, int) or None
        Shape of the parts, along z, y, x, that are stored as one piece and so read whole; None where any part can be
        read alone.
    rgb : bool
        Whether the channels are red, green and blue.
    """

    name: str
    shape: tuple[int, int, int]
    channels: int
    dtype: np.dtype[Any]
    spacing: tuple[float, float, float] | None
    unit: str | None
    origin: str
    chunks: tuple[int, int, int] | None
    rgb: bool
    _reader: _Reading = field(repr=False)

    def read(self, where: tuple[slice, slice, slice]) -> NDArray[Any]:
        """Read a region.

        Parameters
        ----------
        where : three slices
            Along z, y, x, as NumPy understands them, without a step.

        Returns
        -------
        (d, h, w, C) array
            Of `dtype` and its own memory, finite.

        Raises
        ------
        InputError
            If the region cannot be read, or has values that are NaN or infinite; it names the region. If the file has
            changed since it was opened.
        """
        if len(where) != 3 or not all(isinstance(part, slice) and part.step in (None, 1) for part in where):
            raise InputError(f"expected three slices without steps, along z, y, x, but got {where}")
        z, y, x = (slice(*part.indices(n)[:2]) for part, n in zip(where, self.shape, strict=True))
        size = tuple(max(part.stop - part.start, 0) for part in (z, y, x))
        if 0 in size:
            return np.empty((*size, self.channels), self.dtype)
        return np.array(self._reader.read((z, y, x)), dtype=self.dtype, order="C")


class _Reader:
    """Reads regions of what `opener` opens; the copy that another process gets opens it again."""

    def __init__(self, opener: Callable[[], Stored], stored: Stored, axes: str, kept: int | None, origin: str) -> None:
        self._opener, self._stored, self._axes, self._kept, self._origin = opener, stored, axes, kept, origin
        self._known = stored.shape, stored.dtype
        self._lock = Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_stored", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _stored=None, _lock=Lock())

    def _open(self) -> Stored:
        with self._lock:
            if self._stored is None:
                stored = self._opener()
                found = stored.shape, stored.dtype
                if found != self._known:
                    raise InputError(
                        f"expected shape {self._known[0]} of {self._known[1]} as when it was opened first, but now it "
                        f"is {found[0]} of {found[1]}; leave the file as it is while it is read"
                    )
                self._stored = stored
            return self._stored

    def read(self, where: tuple[slice, slice, slice]) -> NDArray[Any]:
        with readable(self._origin):
            stored = self._open()
            parts = dict(zip("ZYX", where, strict=True))
            index = tuple(parts.get(a, slice(0, n)) for a, n in zip(self._axes, stored.shape, strict=True))
            block = arrange(stored.take(index), self._axes)[..., : self._kept]
            bad = ~np.isfinite(block) if block.dtype.kind == "f" else np.zeros(0, bool)
            if bad.any():
                first = tuple(int(k) + part.start for k, part in zip(np.argwhere(bad)[0], where, strict=False))
                region = ", ".join(f"{a} {p.start}:{p.stop}" for a, p in zip("zyx", where, strict=True))
                raise InputError(
                    f"expected finite values, but {np.count_nonzero(bad)} of {bad.size} in {region} are NaN or "
                    f"infinite, the first at {first}; replace them"
                )
        return block


class _Joined:
    """Reads the channels of several volumes as one."""

    def __init__(self, volumes: Sequence[Volume]) -> None:
        self._volumes = tuple(volumes)

    def read(self, where: tuple[slice, slice, slice]) -> NDArray[Any]:
        return np.concatenate([volume.read(where) for volume in self._volumes], axis=-1)


def open_volume(
    entry: Any,
    *,
    axes: str | None = None,
    dataset: str | None = None,
    level: int = 0,
    spacing: Sequence[float] | float | None = None,
    unit: str | None = None,
    shape: Sequence[int] | None = None,
    dtype: str | None = None,
    offset: int = 0,
) -> Volume:
    """Open a volume without reading its voxels.

    Parameters
    ----------
    entry : path, list of paths, array or Volume
        A path is a TIFF of many pages, HDF5 or NeXus, a Zarr array or group, OME-Zarr, NPY, raw binary, NIfTI or MRC. A
        folder, a glob pattern or a list gives files of one slice each, the first two in natural order, the list in its
        own. HDF5 and NeXus need ``spwnet[hdf5]``, Zarr ``spwnet[zarr]``, NIfTI and MRC ``spwnet[medical]``. An array
        is NumPy, or anything with shape, dtype and indexing by slices.
    axes : str, optional
        Names of the axes in the order stored: Z, Y, X, channels C, and T if it has length 1; for example "CZYX". For
        slices, those of one slice. If not given, they are read from the file; else three dimensions are ZYX, and with a
        fourth the shorter of the first and the last axis is the channels if it is at most 16. A NumPy array is ZYXC if
        its last axis is at most 16; so is the fourth axis of NIfTI, even where it is time.
    dataset : str, optional
        Path of the dataset in HDF5 or Zarr, which ``"scan.h5:/entry/data"`` gives too. If not given, it is the one that
        NeXus names as default, or the only one that is a volume.
    level : int
        Resolution of OME-Zarr, 0 being the finest.
    spacing : float or three, optional
        Distance of voxels along z, y, x, above 0, in place of what the file tells.
    unit : str, optional
        Of `spacing`, for example "micrometer" or "nm"; without `spacing`, what that of the file is converted to.
    shape, dtype, offset : sequence of int, str, int
        Of raw binary, which needs the first two: lengths in the order stored, a type such as ">u2", and bytes before
        the data.

    Returns
    -------
    Volume

    Raises
    ------
    InputError
        If there is nothing there, or it is no volume, damaged, ambiguous, or at odds with what is given.
    """
    axes = axes.upper() if axes else None
    sizes, unit = _check_spacing(spacing), _check_unit(unit)
    if not isinstance(level, int | np.integer) or level < 0:
        raise InputError(f"expected a level of 0 or more, but got {level!r}")
    if isinstance(entry, Volume):
        refuse_options(
            "an open volume", axes=axes, dataset=dataset, level=level, shape=shape, dtype=dtype, offset=offset
        )
        return _with_spacing(entry, sizes, unit)
    is_path = isinstance(entry, str | Path)
    if isinstance(entry, list | tuple) or (is_path and is_series(str(entry))):
        refuse_options("slices", dataset=dataset, level=level, shape=shape, dtype=dtype, offset=offset)
        paths = find_slices(entry)
        if len(paths) == 1 and axes is None and is_path:
            return open_volume(paths[0], spacing=spacing, unit=unit)
        name, origin = paths[0].absolute().parent.name or "volume", str(entry if is_path else paths[0].parent)
        opener: partial[Stored] = partial(open_slices, paths, axes and axes.replace("Z", ""))
        axes = None
    elif is_path:
        name, origin, opener = choose_reader(str(entry), dataset, level, shape, dtype, offset)
    elif all(hasattr(entry, what) for what in ("shape", "dtype", "__getitem__")):
        refuse_options("an array", dataset=dataset, level=level, shape=shape, dtype=dtype, offset=offset)
        return _open_object(entry, axes, sizes, unit)
    else:
        raise InputError(f"expected a path, an array or a list of paths, but got {type(entry).__name__}")
    with readable(origin):
        stored = opener()
        if stored.within:
            origin = f"{origin.rstrip('/')}:/{stored.within.strip('/')}"
            opener = partial(opener.func, opener.args[0], stored.within)
        return _volume(name, origin, opener, stored, axes, sizes, unit)


def join_channels(volumes: Sequence[Volume]) -> Volume:
    """Join the channels of registered volumes in order; each keeps its values.

    Parameters
    ----------
    volumes : sequence of Volume
        Of one shape, and of one spacing, to 0.1 %, where it is known.

    Returns
    -------
    Volume
        Of the name of the first, and the type that NumPy promotes theirs to.

    Raises
    ------
    InputError
        If there are none, or shapes or spacings differ; it names both files.
    """
    if not volumes:
        raise InputError("expected at least one volume, but got none")
    first = volumes[0]
    if len(volumes) == 1:
        return first
    placed = next((volume for volume in volumes if volume.spacing is not None), first)
    for volume in volumes:
        if volume.shape != first.shape:
            raise InputError(
                f"expected volumes of one shape as channels, but '{first.origin}' has {first.shape} and "
                f"'{volume.origin}' has {volume.shape} (z, y, x); register and crop them first"
            )
        factor = METRES[volume.unit] / METRES[placed.unit] if volume.unit and placed.unit else 1.0
        if (
            volume.spacing
            and placed.spacing
            and not np.allclose(np.multiply(volume.spacing, factor), placed.spacing, rtol=1e-3, atol=0)
        ):
            raise InputError(
                f"expected volumes of one spacing as channels, but '{placed.origin}' has {placed.spacing} "
                f"{placed.unit or ''} and '{volume.origin}' has {volume.spacing} {volume.unit or ''} (z, y, x); "
                "register them first, or give the right one by `spacing`"
            )
    return replace(
        first,
        channels=sum(volume.channels for volume in volumes),
        dtype=np.result_type(*(volume.dtype for volume in volumes)),
        spacing=placed.spacing,
        unit=placed.unit,
        origin=" + ".join(volume.origin for volume in volumes),
        chunks=next((volume.chunks for volume in volumes if volume.chunks), None),
        rgb=False,
        _reader=_Joined(volumes),
    )


def is_volume(entry: Any) -> bool:
    """Tell whether an entry can only be a volume: by its type, its suffix, or as a Zarr folder."""
    if isinstance(entry, Volume):
        return True
    return isinstance(entry, str | Path) and names_volume(str(entry))


class SliceSource:
    """The slices of a volume along one axis, as images.

    Parameters
    ----------
    volume : Volume
        What to slice.
    axis : str
        "z" gives images of (y, x), "y" of (z, x), "x" of (z, y).

    Attributes
    ----------
    names : tuple of str
        ``NAME_z_0000``, ``NAME_z_0001``, …
    numbers : tuple of int
        0 … n − 1.

    Raises
    ------
    InputError
        For any other axis. Indexing raises it for a slice that cannot be read or is too large.
    """

    def __init__(self, volume: Volume, axis: str = "z") -> None:
        if axis not in _TURNED:
            raise InputError(f"expected an axis of z, y or x, but got {axis!r}")
        self.volume, self.axis = volume, axis
        self._along, *self._across = _TURNED[axis]
        count = volume.shape[self._along]
        self.names = tuple(numbered(f"{volume.name}_{axis}", count))
        self.numbers = tuple(range(count))

    def __len__(self) -> int:
        return len(self.names)

    def channels(self, position: int) -> int:
        """Count the channels of a slice without reading it: all have as many."""
        return self.volume.channels

    def size(self, position: int) -> tuple[int, int]:
        """Height and width of a slice in pixels, without reading it."""
        height, width = (self.volume.shape[k] for k in self._across)
        return height, width

    def __getitem__(self, position: int) -> Image:
        number = self.numbers[position]
        self._check_size(position)
        where = [slice(None)] * 3
        where[self._along] = slice(number, number + 1)
        block = self.volume.read((where[0], where[1], where[2]))
        pixels = np.ascontiguousarray(block.squeeze(self._along))
        return Image(pixels, self.names[number], self.volume.rgb)

    def _check_size(self, position: int) -> None:
        """Refuse a slice that does not fit into memory: the header of a small file can tell of any size."""
        height, width = self.size(position)
        if height * width > MOST_PIXELS:
            raise InputError(
                f"expected slices of at most {MOST_PIXELS:,} pixels, but those across {self.axis} of "
                f"'{self.volume.name}' have {height}×{width}; check that the file is not damaged, or cut it into parts"
            )


def _open_object(entry: Any, axes: str | None, sizes: tuple[float, float, float] | None, unit: str | None) -> Volume:
    """Open an array; one of h5py is told by its file, from which a copy in another process reads."""
    name = "volume"
    module = type(entry).__module__.partition(".")[0]
    where = str(getattr(entry, "name", "") or "")
    origin, opener = f"array of {module} {where}".rstrip(), partial(open_array, entry)
    with readable(origin):
        if module == "h5py":
            path = Path(entry.file.filename).absolute()
            name, origin = path.stem, f"{path}:{where}"
            opener = partial(open_hdf5, path, where)
            stored = describe_hdf5(entry, entry.parent, where)
        else:
            stored = opener()
        return _volume(name, origin, opener, stored, axes, sizes, unit)


# What a volume is made of


def _volume(
    name: str,
    origin: str,
    opener: Callable[[], Stored],
    stored: Stored,
    axes: str | None,
    sizes: tuple[float, float, float] | None,
    unit: str | None,
) -> Volume:
    """Check what a reader found, and turn it to z, y, x."""
    if stored.dtype.kind not in "buif":
        raise InputError(f"expected integers, floats or booleans, but got {stored.dtype}; convert them")
    if any(n < 1 for n in stored.shape):
        raise InputError(f"expected at least one voxel, but the shape is {stored.shape}")
    if math.prod(stored.shape) > MOST_VOXELS:
        raise InputError(
            f"expected at most 2**44 voxels, but the shape is {stored.shape}; check that the file is not damaged"
        )
    names = _name_axes(stored, axes)
    z, y, x = (stored.shape[names.index(axis)] for axis in "ZYX")
    # Alpha is the last of the channels that the file names; of an axis that is told to be another one nothing is.
    same = stored.axes is not None and _channel_axes(names) == _channel_axes(stored.axes)
    kept = stored.kept if same else None
    if kept is not None:
        logger.warning("the alpha channel of '%s' is left out", origin)
    channels = kept or math.prod(n for n, axis in zip(stored.shape, names, strict=True) if axis in "CS")
    chunks = None
    if stored.chunks is not None:
        depth, height, width = (stored.chunks[names.index(axis)] for axis in "ZYX")
        chunks = depth, height, width
    dtype = np.dtype(np.uint8) if stored.dtype.kind == "b" else stored.dtype.newbyteorder("=")
    spacing, known = _spacing_of(stored, names)
    reader = _Reader(opener, stored, names, kept, origin)
    rgb = stored.rgb and channels == 3
    volume = Volume(name, (z, y, x), channels, dtype, spacing, known, origin, chunks, rgb, reader)
    return _with_spacing(volume, sizes, unit)


def _channel_axes(axes: str) -> list[int]:
    return [k for k, axis in enumerate(axes) if axis in "CS"]


def _name_axes(stored: Stored, axes: str | None) -> str:
    """Name the axes as told, or as the file does, or by the shape."""
    shape = stored.shape
    if axes is not None:
        if len(axes) != len(shape) or len(set(axes)) != len(axes) or not set("ZYX") <= set(axes) <= set("ZYXCT"):
            raise InputError(
                f"expected `axes` to name each of the {len(shape)} axes of shape {shape} once, by Z, Y, X, C for "
                f'channels or T, with Z, Y and X among them, but got "{axes}"'
            )
    else:
        axes = stored.axes or guess_axes(shape)
    if not set("ZYX") <= set(axes):
        raise InputError(
            f"expected a volume with axes Z, Y and X, but the shape {shape} is {axes}; give several slices as a folder "
            "or a list, segment it as an image, or name its axes by `axes`"
        )
    if len(set(axes)) != len(axes):
        raise InputError(f'expected each axis once, but the file names them "{axes}"; name them by `axes`')
    for axis, n in zip(axes, shape, strict=True):
        if axis not in "ZYXCS" and n > 1:
            what = "one point in time" if axis == "T" else f"an axis {axis} of length 1"
            raise InputError(
                f'expected {what}, but axis {axis} has length {n} in shape {shape} ("{axes}"); save each of them as a '
                "volume of its own, or name the axes by `axes`"
            )
    return axes


def _spacing_of(stored: Stored, axes: str) -> tuple[tuple[float, float, float] | None, str | None]:
    """Return the spacing along z, y, x in one unit, that of x; None unless all three are known."""
    steps = stored.steps
    if stored.axes is not None:  # names given replace those of the file one by one: each axis keeps its step
        steps = {new: steps[old] for new, old in zip(axes, stored.axes, strict=True) if old in steps}
    if not all(0 < steps.get(axis, (0.0, None))[0] < math.inf for axis in "ZYX"):
        return None, None
    units = [standard_unit(steps[axis][1]) for axis in "ZYX"]
    z, y, x = (steps[axis][0] for axis in "ZYX")
    last = units[2]
    if last is None or None in units:
        # degrees and pixels are both no lengths, but not the same either
        spelled = {str(steps[axis][1] or "").strip().lower() for axis in "ZYX"}
        return ((z, y, x), None) if len(spelled) == 1 else (None, None)
    # of equal units no rounding may come
    z, y = (s if u == last or u is None else s * METRES[u] / METRES[last] for s, u in zip((z, y), units, strict=False))
    return (z, y, x), last


def _with_spacing(volume: Volume, sizes: tuple[float, float, float] | None, unit: str | None) -> Volume:
    """Put the spacing that a user gives in place of that of the file, or convert the latter."""
    if sizes is not None:
        return replace(volume, spacing=sizes, unit=unit)
    if unit is None or unit == volume.unit:
        return volume
    if volume.spacing is None:
        raise InputError(f"expected `spacing` with the unit {unit}, because the file tells none; give both")
    factor = METRES[volume.unit] / METRES[unit] if volume.unit else 1.0
    z, y, x = (size * factor for size in volume.spacing)
    return replace(volume, spacing=(z, y, x), unit=unit)


def _check_spacing(spacing: Sequence[float] | float | None) -> tuple[float, float, float] | None:
    if spacing is None:
        return None
    try:
        z, y, x = np.broadcast_to(np.asarray(spacing, float), 3).tolist()
    except (TypeError, ValueError):
        z = y = x = math.nan
    if not all(0 < size < math.inf for size in (z, y, x)) or np.shape(spacing) not in ((), (3,)):
        raise InputError(f"expected a spacing of one or three numbers above 0, along z, y, x, but got {spacing!r}")
    return z, y, x


def _check_unit(unit: str | None) -> str | None:
    if unit is None:
        return None
    known = standard_unit(unit)
    if known is None:
        raise InputError(
            f"expected a unit of {', '.join(METRES)}, but got {unit!r}; choose one.{did_you_mean(unit, METRES)}"
        )
    return known

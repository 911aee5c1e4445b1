"""HDF5, with what NeXus and ilastik say of axes, spacing and the dataset to open."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections import deque
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import InputError
from spwnet.packages import optional_package
from spwnet.storage import parse_json
from spwnet.volumefiles.choosing import MOST_NODES, is_plausible, listed, only_volume
from spwnet.volumefiles.stored import Stored, by_chunks, guess_axes, reason_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from spwnet.volumefiles.stored import Steps, Take

logger = logging.getLogger(__name__)

MOST_SECONDS = 5
"""Of a processor, for finding a dataset: thousands of them take less than one."""
PROBE = """
import resource, sys
from pathlib import Path
seconds = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from spwnet.volumefiles.hdf5 import open_hdf5
open_hdf5(Path(sys.argv[2]), sys.argv[3] or None)
"""


def check_ends(path: Path, dataset: str | None = None) -> None:
    """Open a file in a process of its own first: on damaged ones the HDF5 library may loop for ever, or crash.

    It does so in C, where neither a time limit nor Ctrl-C reaches it. What else is wrong with the file, opening tells.

    Parameters
    ----------
    path, dataset
        As in `open_hdf5`.

    Raises
    ------
    InputError
        If that process used `MOST_SECONDS` of a processor, or crashed.
    """
    # Without -P, modules of the working directory would come before those that are installed.
    command = [sys.executable, "-P", "-c", PROBE, str(MOST_SECONDS), str(path), dataset or ""]
    probe = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if probe.returncode < 0:
        what = "does not come to an end of it" if probe.returncode == -signal.SIGXCPU else "crashes on it"
        raise InputError(
            f"expected a readable HDF5 file, but the HDF5 library {what}: it is damaged; copy it again, or rescue what "
            "is in it by `h5dump` or `h5repack`"
        )


def open_hdf5(path: Path, dataset: str | None = None) -> Stored:
    """Open a dataset of an HDF5 or NeXus file: the one named, or else the only one that is a volume.

    Raises
    ------
    InputError
        If it is not there, or several are volumes, or its filter is not installed.
    """
    h5py = optional_package("h5py", "to read HDF5", "hdf5", InputError)
    with suppress(ImportError):
        import_module("hdf5plugin")  # which registers its filters
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
        tags = "".join(tag["key"] for tag in parse_json(_text(dataset.attrs["axistags"]))["axes"]).upper()
        # those of another dataset, which are copied along sometimes, say nothing
        axes = tags if len(tags) == dataset.ndim else axes
    with suppress(KeyError, TypeError, ValueError):
        sizes = [float(size) for size in dataset.attrs["element_size_um"]]
        steps = {axis: (size, "micrometer") for axis, size in zip("ZYX", sizes, strict=True)}
    take = _while_whole(Path(dataset.file.filename), by_chunks(dataset.__getitem__, dataset.chunks))
    return Stored(dataset.shape, dataset.dtype, take, axes, steps, dataset.chunks, within=at)


def _while_whole(path: Path, take: Take) -> Take:
    """Refuse what is read of a file that became shorter: beyond its end, HDF5 gives zeros without a word."""
    if not path.is_file():
        return take  # in memory
    size = path.stat().st_size

    def checked(index: tuple[slice, ...]) -> NDArray[Any]:
        values = take(index)
        # A name that is gone takes nothing from what is open.
        left = path.stat().st_size if path.is_file() else size
        if left < size:
            raise InputError(
                f"expected the {size:,} bytes that the file had when it was opened, but there are {left:,}; put it "
                "back, and go on by `--resume`"
            )
        return values

    return checked


def _find_hdf5(file: Any, dataset: str | None) -> tuple[str, Any]:
    import h5py

    start, at = file, "/"
    if dataset:
        at = "/" + dataset.strip("/")
        try:
            start = file[at]
        except Exception as error:  # broken links raise anything
            everything = [(path, node) for path, node in _walk_hdf5(file, "/") if isinstance(node, h5py.Dataset)]
            raise InputError(
                f"expected the dataset {at}, but: {reason_of(error)}; there {listed(everything)}"
            ) from error
    if isinstance(start, h5py.Dataset):
        return at, start
    default = _default_signal(at, start)
    if default is not None and is_plausible(default[1]):
        return default
    nodes = list(_walk_hdf5(start, at))
    groups = [(path, node) for path, node in nodes if isinstance(node, h5py.Group)]
    datasets = [(path, node) for path, node in nodes if isinstance(node, h5py.Dataset)]
    entries = [group for group in groups if _text(group[1].attrs.get("NX_class")) == "NXentry"]
    # what a NeXus file names comes before what merely looks like a volume
    for found in ([_default_signal(*entry) for entry in entries], [_signal(*group) for group in groups]):
        volumes = {_identity(item[1]): item for item in found if item is not None and is_plausible(item[1])}
        if len(volumes) == 1:
            return next(iter(volumes.values()))
    return only_volume([item for item in datasets if is_plausible(item[1])], datasets)


def _walk_hdf5(start: Any, at: str) -> Iterator[tuple[str, Any]]:
    """Go through groups and datasets, the nearest first, each once whatever links lead to it."""
    import h5py

    seen: set[Any] = set()
    links = 0
    queue = deque([(at, start)])
    while queue:
        path, node = queue.popleft()
        if _identity(node) in seen:
            continue
        seen.add(_identity(node))
        yield path, node
        if isinstance(node, h5py.Group):
            for name in node:
                # rather than datasets, because any number of links may lead to one
                links += 1
                if links > MOST_NODES:
                    raise InputError(
                        f"expected at most {MOST_NODES:,} datasets, but there are more; give one by `dataset`"
                    )
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
    except Exception as error:  # broken links raise anything
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

"""Zarr and OME-Zarr, as a folder or a zip file."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import InputError
from spwnet.packages import optional_package
from spwnet.volumefiles.choosing import MOST_NODES, is_plausible, listed, only_volume
from spwnet.volumefiles.stored import Stored, by_chunks, quiet

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from spwnet.volumefiles.stored import Steps


def open_zarr(path: Path, dataset: str | None = None, level: int = 0) -> Stored:
    """Open an array of a Zarr folder or zip file: the one named, a level of OME-Zarr, or the only volume.

    Raises
    ------
    InputError
        If it is not there, or several are volumes, or the level is not there.
    """
    zarr = optional_package("zarr", "to read Zarr", "zarr", InputError)
    with quiet("Object at|The data type"):  # of other files among the arrays, and of types without a standard
        root = zarr.open(zarr.storage.ZipStore(path, mode="r") if path.is_file() else path, mode="r")
        array = _find_zarr(root, (dataset or "").strip("/"), level)
        axes, steps = _ome_axes(root, array.path, array.ndim)
    take = by_chunks(lambda index: np.asarray(array[index]), array.chunks)
    return Stored(array.shape, array.dtype, take, axes, steps, array.chunks, within=array.path)


def _find_zarr(root: Any, dataset: str, level: int) -> Any:
    import zarr

    node = root
    if dataset:
        try:
            node = root[dataset]
        except (KeyError, IndexError):  # the latter from an array
            arrays = [(p, n) for p, n in _walk_zarr(root) if isinstance(n, zarr.Array)]
            raise InputError(f"expected the array '{dataset}', but it is not there; there {listed(arrays)}") from None
    if isinstance(node, zarr.Group) and not _multiscales(node):
        nodes = list(_walk_zarr(node))
        arrays = [(p, n) for p, n in nodes if isinstance(n, zarr.Array)]
        pyramids = [(p, n) for p, n in nodes if isinstance(n, zarr.Group) and _multiscales(n)]
        node = only_volume(pyramids + [item for item in arrays if is_plausible(item[1])], arrays)[1]
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

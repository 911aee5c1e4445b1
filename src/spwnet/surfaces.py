"""Surfaces of the classes of a volume, by marching cubes some slices at a time."""

from __future__ import annotations

import shutil
import struct
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import OutputError
from spwnet.storage import replacing
from spwnet.volumereport import SLAB_VOXELS, in_slabs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from spwnet.volumewriting import Shape, Spacing

    Labels = NDArray[np.integer[Any]]

_LARGEST_STEP = 8

_SURFACES = (".ply", ".stl")


def mesh(
    slabs: Callable[[slice], Labels],
    shape: Shape,
    class_id: int,
    path: str | Path,
    spacing: Spacing | None = None,
    step: int = 1,
) -> dict[str, int]:
    """Write the surface of a class as triangles, by marching cubes, some slices at a time.

    The surface is closed, also where the class reaches the border of the volume, and normals point out of it.

    Parameters
    ----------
    slabs : callable
        Returns the slices ``start … stop − 1`` of the labels, (d, H, W), for ``slice(start, stop)``.
    shape : (int, int, int)
        D, H, W in voxels.
    class_id : int
    path : path
        ``.ply`` (binary; vertices are shared by triangles) or ``.stl`` (binary; each triangle for itself). Coordinates
        are x, y, z in units of the spacing; the centre of the first voxel is 0, 0, 0.
    spacing : (float, float, float), optional
        Distance between voxels in z, y and x; 1 by default.
    step : int
        Voxels along the side of the cells that are looked at, 1 … 8: larger ones give a coarser, smoother and smaller
        surface. A cell belongs to the class by the share of its voxels that do.

    Returns
    -------
    dict of str to int
        "vertices" and "triangles".

    Raises
    ------
    OutputError
        If the class does not occur or is nowhere as large as a cell, the format is unknown, `step` is out of range, or
        the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in _SURFACES:
        raise OutputError(f"expected a surface named {', '.join(_SURFACES)}, but got '{path.name}'; rename it")
    if not 1 <= step <= _LARGEST_STEP:
        raise OutputError(f"expected a step of 1 to {_LARGEST_STEP} voxels, but got {step}; choose one of these")
    with replacing(path) as temporary, _SurfaceFile(temporary, path.suffix.lower()) as file:
        for vertices, triangles in _surface(slabs, shape, class_id, step):
            # From z, y, x in cells to x, y, z, which turns the triangles round: now they face outwards.
            places = (vertices * step + (step - 1) / 2) * np.asarray(spacing or (1.0, 1.0, 1.0))
            file.add(places[:, ::-1], triangles)
        if file.n_triangles == 0:
            where = "" if step == 1 else f" that fills half a cell of {step}×{step}×{step} voxels"
            raise OutputError(
                f"expected a class{where} for the surface {path.name}, but there is none of class {class_id}; choose "
                "another class" + ("" if step == 1 else " or a smaller step")
            )
    return {"vertices": file.n_vertices, "triangles": file.n_triangles}


def _surface(
    slabs: Callable[[slice], Labels], shape: Shape, class_id: int, step: int
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.int64]]]:
    """Pieces of a surface: (V, 3) vertices that are new, z, y, x in cells, and (T, 3) triangles of all until now."""
    from skimage.measure import marching_cubes

    # Between two shares that a cell can have: no vertex falls on a cell, so no triangle is without area.
    voxels = step**3
    level = (voxels // 2 + 0.5) / voxels if voxels % 2 else (voxels // 2 - 0.5) / voxels
    depth = step * max(1, SLAB_VOXELS // 4 // prod(shape[1:]) // step)
    n_cells = -(-shape[0] // step)
    before: NDArray[np.float32] | None = None
    seam = _Seam()
    for z, labels in in_slabs(slabs, shape, depth):
        first = z.start // step
        cells = _shares(labels == class_id, step)
        empty = np.zeros((1, *cells.shape[1:]), np.float32)
        above = empty if before is None else before
        last = first + len(cells) == n_cells
        before = cells[-1:]
        box = np.concatenate([above, cells, empty] if last else [above, cells])
        if box.max() > level > box.min():
            # The first classic method: unlike Lewiner's, it shares each edge between just two triangles.
            # scikit-image tells no types here
            vertices, triangles, _, _ = marching_cubes(box, level, method="lorensen")  # type: ignore[no-untyped-call]
            vertices = vertices.astype(np.float64) - (0, 1, 1)
            yield seam.join(vertices, triangles.astype(np.int64), len(box) - 1, first - 1)
        else:
            seam = _Seam(seam.n_vertices)


class _Seam:
    """Joins pieces of a surface: vertices in the slice where one piece ends and the next begins are the same."""

    def __init__(self, n_vertices: int = 0) -> None:
        self.n_vertices = n_vertices
        self._keys = np.empty(0, np.int64)
        self._numbers = np.empty(0, np.int64)

    def join(
        self, vertices: NDArray[np.float64], triangles: NDArray[np.int64], end: int, shift: int
    ) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return new vertices, moved along z, and triangles by the numbers of vertices in all pieces."""
        numbers = np.empty(len(vertices), np.int64)
        known = np.zeros(len(vertices), bool)
        begin = np.flatnonzero(vertices[:, 0] == 0)
        if len(self._keys):
            keys = self._edges(vertices[begin])
            places = np.searchsorted(self._keys, keys).clip(max=len(self._keys) - 1)
            same = self._keys[places] == keys
            known[begin[same]] = True
            numbers[begin[same]] = self._numbers[places[same]]
        numbers[~known] = self.n_vertices + np.arange(np.count_nonzero(~known))
        self.n_vertices += int(np.count_nonzero(~known))
        at_end = np.flatnonzero(vertices[:, 0] == end)
        keys = self._edges(vertices[at_end])
        order = np.argsort(keys)
        self._keys, self._numbers = keys[order], numbers[at_end][order]
        return vertices[~known] + (shift, 0, 0), numbers[triangles]

    @staticmethod
    def _edges(vertices: NDArray[np.float64]) -> NDArray[np.int64]:
        """Number of the edge between two cells of a slice that each vertex lies on, whatever rounding does to it."""
        place = vertices[:, 1:]
        whole = np.rint(place)
        double = np.where(np.abs(place - whole) < 4e-4, 2 * whole, 2 * np.floor(place) + 1).astype(np.int64) + 2
        keys: NDArray[np.int64] = (double[:, 0] << 32) + double[:, 1]
        return keys


def _shares(mask: NDArray[np.bool_], step: int) -> NDArray[np.float32]:
    """Share of each cell that is in a mask, with empty cells around it in y and x."""
    cells = mask.astype(np.float32)
    for axis, size in enumerate(mask.shape if step > 1 else ()):
        cells = np.add.reduceat(cells, range(0, size, step), axis=axis)
    padded: NDArray[np.float32] = np.pad(cells / np.float32(step**3), ((0, 0), (1, 1), (1, 1)))
    return padded


class _SurfaceFile:
    """A surface on its way to a file: numbers of vertices and triangles, which stand first in it, come out last."""

    def __init__(self, path: Path, suffix: str) -> None:
        self._path, self._ply = path, suffix == ".ply"
        self._vertices = path.with_name(path.name + ".vertices")
        self._triangles = path.with_name(path.name + ".triangles")
        self.n_vertices = self.n_triangles = 0

    def __enter__(self) -> _SurfaceFile:
        self._files = [part.open("w+b") for part in (self._vertices, self._triangles)]
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if error[0] is None:
                self._finish()
        finally:
            for file in self._files:
                file.close()
            self._vertices.unlink(missing_ok=True)
            self._triangles.unlink(missing_ok=True)

    def add(self, vertices: NDArray[np.float64], triangles: NDArray[np.int64]) -> None:
        """Add vertices x, y, z and triangles, which may be of earlier vertices."""
        self._files[0].write(vertices.astype("<f4").tobytes())
        self._files[1].write(triangles.astype("<u4").tobytes())
        self.n_vertices += len(vertices)
        self.n_triangles += len(triangles)

    def _finish(self) -> None:
        for file in self._files:
            file.flush()
            file.seek(0)
        with self._path.open("wb") as target:
            if self._ply:
                lines = ["ply", "format binary_little_endian 1.0", f"element vertex {self.n_vertices}"]
                lines += [f"property float {axis}" for axis in "xyz"]
                lines += [f"element face {self.n_triangles}", "property list uchar int vertex_indices", "end_header"]
                target.write("".join(f"{line}\n" for line in lines).encode())
                shutil.copyfileobj(self._files[0], target)
                for triangles in self._parts():
                    rows = np.empty(len(triangles), [("n", "u1"), ("vertices", "<i4", 3)])
                    rows["n"], rows["vertices"] = 3, triangles
                    target.write(rows.tobytes())
            else:
                target.write(b"spwnet".ljust(80) + struct.pack("<I", self.n_triangles))
                if self.n_vertices == 0:
                    return
                vertices = np.memmap(self._vertices, "<f4", "r", shape=(self.n_vertices, 3))
                for triangles in self._parts():
                    corners = vertices[triangles]
                    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
                    length = np.linalg.norm(normals, axis=1, keepdims=True)
                    rows = np.zeros(len(triangles), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("n", "<u2")])
                    rows["normal"], rows["corners"] = normals / np.maximum(length, 1e-30), corners
                    target.write(rows.tobytes())
                del vertices

    def _parts(self, count: int = 2**16) -> Iterator[NDArray[np.uint32]]:
        while data := self._files[1].read(12 * count):
            yield np.frombuffer(data, "<u4").reshape(-1, 3)

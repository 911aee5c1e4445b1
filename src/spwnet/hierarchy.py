"""A hierarchy of regions of one image: leaves, the order in which they merge, and any level cut out of that."""

from __future__ import annotations

import json
import lzma
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import InputError, SettingsError
from spwnet.sources import MOST_PIXELS
from spwnet.storage import atomic_write, parse_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

HIERARCHY_FORMAT = 1
ARRAYS = {"leaves": "i", "merges": "i", "heights": "f", "colours": "u", "description": "u"}
"""Arrays of the file and the kind of number in each."""


LEAF_BYTES = 9
"""Of a pixel in the file at most, and something for the header of an array."""
REGION_BYTES = 40
"""Of a leaf and what it is merged into, beside the pixels."""
DESCRIPTION_BYTES = 2**24

FAULTS = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    NotImplementedError,  # of a compression that zipfile does not know
    MemoryError,  # of a header that tells of more than there is
    RuntimeError,  # of an encrypted file
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
"""What reading a damaged file ends in."""


@dataclass(frozen=True, eq=False)
class RegionHierarchy:
    """Regions of one image at every level: each level's regions are unions of those of any finer one.

    Attributes
    ----------
    leaves : (H, W) int32 array
        The finest regions, 0 … L − 1.
    merges : (L − 1, 2) int32 array
        The two regions that become region L + k in step k, each below L + k.
    heights : (L − 1,) float64 array
        How different they are, 0…1, never falling from one step to the next.
    colours : (L, 3) uint8 array
        Mean colour of each leaf, sRGB, to draw regions without the image.
    info : dict
        What made it: settings, seed, versions, evidence; kept in the file.
    """

    leaves: NDArray[np.int32]
    merges: NDArray[np.int32]
    heights: NDArray[np.float64]
    colours: NDArray[np.uint8]
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def count(self) -> int:
        """Number of leaves L: the most regions a level can have."""
        return len(self.heights) + 1

    def regions_at(self, threshold: float) -> int:
        """Return the number of regions of `cut(threshold=threshold)`."""
        return self.count - int(np.searchsorted(self.heights, threshold, side="right"))

    def cut(self, *, regions: int | None = None, threshold: float | None = None) -> NDArray[np.int32]:
        """Label the pixels by the regions of one level.

        Parameters
        ----------
        regions : int
            Number of regions, 1 … `count`; exactly so many come.
        threshold : float
            Or: everything merged that is no more different than this, 0…1.

        Returns
        -------
        (H, W) int32 array
            0 … R − 1, numbered by each region's first pixel, row by row.

        Raises
        ------
        SettingsError
            If not exactly one of the two is given, or it is out of range.
        """
        if (regions is None) == (threshold is None):
            given = "neither" if regions is None else "both"
            raise SettingsError(f"expected either a number of regions or a threshold, but got {given}; give one")
        if regions is None:
            assert threshold is not None
            if not 0 <= threshold <= 1:
                raise SettingsError(f"expected a threshold of 0 to 1, but got {threshold}; give one in between")
            regions = self.regions_at(threshold)
        elif not 1 <= regions <= self.count:
            raise SettingsError(
                f"expected 1 to {self.count} regions, as many as this hierarchy has leaves, but got {regions}"
            )
        region_of_leaf = self.leaf_regions(regions)
        return region_of_leaf[self.leaves]

    def leaf_regions(self, regions: int) -> NDArray[np.int32]:
        """Region of each leaf, (L,) int32, at the level of so many regions; numbered as in `cut`."""
        top = np.arange(self.count + len(self.merges))
        steps = self.count - regions
        # Downwards, so that what a region became is known before its parts ask.
        for step in range(steps - 1, -1, -1):
            top[self.merges[step]] = top[self.count + step]
        _, region = np.unique(top[: self.count], return_inverse=True)
        _, first_pixel = np.unique(self.leaves, return_index=True)
        first = np.full(regions, self.leaves.size)
        np.minimum.at(first, region, first_pixel)
        rank = np.empty(regions, np.int32)
        rank[np.argsort(first)] = np.arange(regions, dtype=np.int32)
        return rank[region]

    def boundaries(self) -> NDArray[np.float32]:
        """Draw the ultrametric contour map: at each pixel the height at which its border to a neighbour disappears.

        Returns
        -------
        (H, W) float32 array
            0 within a leaf, else 0…1: the larger of the heights to the pixel on the right and the one below. Where
            it is above t, `cut(threshold=t)` has a border.
        """
        parent, height = self._parents
        drawn = np.zeros(self.leaves.shape, np.float32)
        for here, there in (
            ((slice(None), slice(None, -1)), (slice(None), slice(1, None))),
            ((slice(None, -1), slice(None)), (slice(1, None), slice(None))),
        ):
            a, b = self.leaves[here].astype(np.int64), self.leaves[there].astype(np.int64)
            apart = a != b
            codes, place = np.unique(a[apart] * self.count + b[apart], return_inverse=True)
            one, other = codes // self.count, codes % self.count
            # A parent's number is above its parts': raising the lower of the two meets at the first common one.
            while (differ := one != other).any():
                lower = one < other
                one = np.where(differ & lower, parent[one], one)
                other = np.where(differ & ~lower, parent[other], other)
            values = drawn[here]
            values[apart] = np.maximum(values[apart], height[one][place])
        return drawn

    @cached_property
    def _parents(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """What each region is merged into, the last one itself, and the height at which each came to be."""
        parent = np.arange(self.count + len(self.merges))
        parent[self.merges] = (self.count + np.arange(len(self.merges)))[:, None]
        return parent, np.concatenate([np.zeros(self.count), self.heights])

    def save(self, path: str | Path) -> None:
        """Write it to one ``.npz`` file, whole or not at all.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        description = json.dumps({"format": HIERARCHY_FORMAT, **self.info}, ensure_ascii=False, allow_nan=False)
        buffer = BytesIO()
        np.savez_compressed(
            buffer,
            leaves=self.leaves,
            merges=self.merges,
            heights=self.heights,
            colours=self.colours,
            description=np.frombuffer(description.encode(), np.uint8),
        )
        atomic_write(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> RegionHierarchy:
        """Read what `save` wrote.

        Raises
        ------
        InputError
            If there is no such file, it is damaged, of something else, or of a newer format.
        """
        path = Path(path)
        arrays = _read_arrays(path)
        try:
            info = dict(parse_json(arrays["description"].tobytes().decode()))
        except (ValueError, TypeError) as error:
            raise InputError(f"expected a description in {path}, but: {error}; make it again") from error
        version = info.pop("format", None)
        if not isinstance(version, int) or version > HIERARCHY_FORMAT:
            raise InputError(
                f"expected a hierarchy of format {HIERARCHY_FORMAT} or older in {path}, but got {version!r}; "
                "update spwnet to read it"
            )
        leaves, merges, heights, colours = (arrays[name] for name in ("leaves", "merges", "heights", "colours"))
        fault = _fault(leaves, merges, heights, colours)
        if fault:
            raise InputError(f"expected a hierarchy of regions in {path}, but {fault}; make it again")
        return cls(leaves.astype(np.int32), merges.astype(np.int32), heights.astype(np.float64), colours, info)


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        file = np.load(BytesIO(path.read_bytes()), allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise InputError(f"expected a hierarchy of regions (.npz) in {path}, but got one array; give another")
        with file:
            sizes = [(Path(info.filename).stem, info.file_size) for info in file.zip.infolist()]
            of_leaves = sum(size for name, size in sizes if name == "leaves")
            if of_leaves > LEAF_BYTES * MOST_PIXELS:
                raise InputError(f"expected leaves of at most {MOST_PIXELS:,} pixels in {path}, but got more")
            missing = [name for name in ARRAYS if name not in file]
            if missing:
                raise InputError(
                    f"expected a hierarchy of regions in {path}, but it has no {missing[0]!r}; give a file that "
                    "`spwnet regions` wrote"
                )
            arrays = {"leaves": file["leaves"]}
            # There are no more leaves than pixels.
            rest = sum(size for _, size in sizes) - of_leaves
            if rest > REGION_BYTES * arrays["leaves"].size + DESCRIPTION_BYTES:
                raise InputError(
                    f"expected arrays of one hierarchy in {path}, but got {rest:,} bytes beside its leaves"
                )
            arrays |= {name: file[name] for name in ARRAYS if name != "leaves"}
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"expected a hierarchy of regions at {path}, but there is no such file") from None
    except FAULTS as error:
        raise InputError(f"expected a readable hierarchy of regions (.npz) in {path}, but: {error}") from error
    return arrays


def _fault(leaves: NDArray[Any], merges: NDArray[Any], heights: NDArray[Any], colours: NDArray[Any]) -> str | None:
    """Say what keeps the arrays from being a hierarchy."""
    for name, array in (("leaves", leaves), ("merges", merges), ("heights", heights)):
        if array.dtype.kind != ARRAYS[name]:
            return f"its {name} are {array.dtype}"
    if leaves.ndim != 2 or not leaves.size:
        return f"its leaves have the shape {leaves.shape}"
    count, present = int(leaves.max()) + 1, np.unique(leaves)
    if leaves.min() < 0 or present.size != count:
        return f"its leaves are not numbered 0 to {present.size - 1}"
    if merges.shape != (count - 1, 2) or heights.shape != (count - 1,):
        return f"{count} leaves come with merges of the shape {merges.shape} and {heights.shape} heights"
    if colours.shape != (count, 3) or colours.dtype != np.uint8:
        return f"{count} leaves come with colours of the shape {colours.shape} and the type {colours.dtype}"
    if count == 1:
        return None
    made = count + np.arange(count - 1)
    if merges.min() < 0 or (merges >= made[:, None]).any() or np.unique(merges).size != merges.size:
        return "its merges are no tree"
    if not (np.isfinite(heights).all() and heights.min() >= 0 and heights.max() <= 1 and (np.diff(heights) >= 0).all()):
        return "its heights do not rise from 0 to 1"
    return None

"""NIfTI and MRC, the formats of medicine and of electron microscopy."""

from __future__ import annotations

import logging
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import InputError
from spwnet.packages import optional_package
from spwnet.stacks import MOST_CHANNELS
from spwnet.volumefiles.stored import Stored, quiet

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)


def open_nifti(path: Path) -> Stored:
    """Open a NIfTI file, whose axes are x, y, z: by memory map, or through its compression."""
    nibabel = optional_package("nibabel", "to read NIfTI", "medical", InputError)
    image = nibabel.load(path)
    proxy, header = image.dataobj, image.header
    shape, dtype, slope, inter = proxy.shape, proxy.dtype, float(proxy.slope), float(proxy.inter)
    axes = "XYZTC"[: len(shape)]
    if len(shape) == 4 and shape[3] <= MOST_CHANNELS:
        axes = "XYZC"
        logger.info("the fourth axis of %s, of length %d, is taken for channels", path, shape[3])
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
    with quiet("MRC file is .* larger"), mrcfile.mmap(path, mode="r") as file:
        data, header, sizes = file.data, file.header, file.voxel_size
        order = [int(header.maps), int(header.mapr), int(header.mapc)]
        steps = {axis: (float(sizes[axis.lower()]), "angstrom") for axis in "ZYX"}
    axes = "".join("XYZ"[k - 1] for k in order) if sorted(order) == [1, 2, 3] else "ZYX"
    return Stored(data.shape, data.dtype, data.__getitem__, ("T" + axes)[-data.ndim :], steps)

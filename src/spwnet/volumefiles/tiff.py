"""TIFF of many pages, and folders of slices as images."""

from __future__ import annotations

import logging
import re
from contextlib import nullcontext, suppress
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import InputError
from spwnet.stacks import leading_axes, open_stack, open_tiff_stack, readable_image, single_image
from spwnet.volumefiles.stored import Stored, arrange, quiet

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from spwnet.volumefiles.stored import Steps

logger = logging.getLogger(__name__)


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
        dtype, samples, inner = page.dtype, page.samplesperpixel, page.shape
        # a length of 1 is left out of the axes, also where the metadata name it
        one_slice = "Z" in tiff.series[0].get_axes(squeeze=False)
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
    mapped = getattr(stack.take, "__self__", None)
    if isinstance(mapped, np.memmap):
        stored = Stored(stack.shape, mapped.dtype, mapped.__getitem__, axes, steps, None, stack.kept, rgb)
        return _with_z(stored) if one_slice else stored
    leading = leading_axes(stack.shape, inner)
    lock = Lock()

    def take(index: tuple[slice, ...]) -> NDArray[Any]:
        # page by page, lest whole pages pile up of which only a part is wanted
        ranges = [range(*part.indices(n)) for part, n in zip(index, stack.shape, strict=True)]
        block = np.empty([len(r) for r in ranges], dtype)
        for place in np.ndindex(block.shape[:leading]):
            wanted = [r[k] for r, k in zip(ranges, place, strict=False)]
            try:
                with lock, quiet(".*reading array from closed file") if shared else nullcontext():
                    page = stack.take((*(slice(k, k + 1) for k in wanted), *index[leading:]))
            except (InputError, MemoryError):
                raise
            except Exception as error:  # damaged pages raise anything
                where = ", ".join(f"{axis} {k}" for axis, k in zip(axes, wanted, strict=False)) or "0"
                remedy = "save the file again"
                if "imagecodecs" in str(error) or isinstance(error, ImportError):
                    remedy = "install that by `pip install 'spwnet[tiff]'`, or save the file uncompressed"
                raise InputError(f"expected to decode the page at {where}, but: {error}; {remedy}") from error
            block[place] = page[(0,) * leading] if leading else page
        return block

    chunks = (*(1 for _ in axes[:leading]), *stack.shape[leading:])
    stored = Stored(stack.shape, dtype, take, axes, steps, chunks, stack.kept, rgb)
    return _with_z(stored) if one_slice else stored


def _with_z(stored: Stored) -> Stored:
    """Put an axis Z of length 1 before the others, if there is none."""
    axes = stored.axes or ""
    if "Z" in axes:
        return stored
    return replace(
        stored,
        shape=(1, *stored.shape),
        take=lambda index: stored.take(index[1:])[None][index[0]],
        axes=f"Z{axes}",
        chunks=stored.chunks and (1, *stored.chunks),
    )


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
    # ImageJ leaves out a spacing of 1, and that of a stack that goes upwards is negative
    steps = {"Z": (abs(float(found.get("spacing", 1))), unit)}
    for axis in "YX":
        tag = tiff.pages[0].tags.get(f"{axis}Resolution")
        dots, lengths = tag.value if tag is not None else (1, 1)
        steps[axis] = (lengths / dots if dots else 0.0, unit)
    return steps

"""What a label volume holds: volumes of the classes, curves along the axes, and pictures."""

from __future__ import annotations

import csv
import io
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import OutputError
from spwnet.outputs import grid, overlay, write_picture
from spwnet.storage import atomic_write
from spwnet.units import plain_unit, unit_symbol
from spwnet.volumewriting import write_volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import DTypeLike, NDArray

    from spwnet.classes import Legend
    from spwnet.volumewriting import Shape, Spacing

    Labels = NDArray[np.integer[Any]]
    Picture = NDArray[np.uint8]

LONGEST_NAME = 110
"""Pixels of the name of a class before its bar."""
SLAB_VOXELS = 2**24
"""Labels that are in memory at once, about."""


def summarise(
    slabs: Callable[[slice], Labels],
    shape: Shape,
    n_classes: int,
    spacing: Spacing | None = None,
    unit: str | None = None,
) -> dict[str, Any]:
    """Count the voxels of each class, in all and along each axis, going through a volume once.

    Parameters
    ----------
    slabs : callable
        Returns the slices ``start … stop − 1`` of the labels, (d, H, W), for ``slice(start, stop)``.
    shape : (int, int, int)
        D, H, W in voxels.
    n_classes : int
        Class ids are below it.
    spacing : (float, float, float), optional
        Distance between voxels in z, y and x.
    unit : str, optional
        Of the spacing, a length.

    Returns
    -------
    dict
        For JSON: "shape", "spacing" and "unit"; "classes", of each class that occurs, by its id as a string, its
        "voxels", its "fraction" of the volume, 0 … 1, and, with a spacing, its "volume" in cubed units; "along", of
        "z", "y" and "x", the fraction of each such class in each slice across that axis.

    Raises
    ------
    OutputError
        If there are other class ids, or the unit is none of length.
    """
    # Columns only for classes that occur: there can be many that do not.
    columns = np.full(n_classes, -1)
    classes: list[int] = []
    counts = [np.zeros((size, 0), np.int64) for size in shape]
    for z, labels in in_slabs(slabs, shape, max(1, SLAB_VOXELS // prod(shape[1:]))):
        if labels.min() < 0 or labels.max() >= n_classes:
            raise OutputError(
                f"expected class ids 0 to {n_classes - 1}, but got {labels.min()} to {labels.max()}; "
                "give the number of classes they were made with"
            )
        for start, plane in enumerate(labels, start=z.start):
            present = np.bincount(plane.ravel(), minlength=n_classes)
            new = [int(k) for k in np.flatnonzero(present) if columns[k] < 0]
            if new:
                columns[new] = range(len(classes), len(classes) + len(new))
                classes += new
                counts = [np.pad(table, ((0, 0), (0, len(new)))) for table in counts]
            counts[0][start] = present[classes]
            compact = columns[plane]
            for axis, table in ((1, counts[1]), (0, counts[2])):
                size, width = table.shape
                places = compact + width * np.expand_dims(np.arange(size), axis)
                table += np.bincount(places.ravel(), minlength=size * width).reshape(size, width)
    order = np.argsort(classes)
    names = [str(classes[column]) for column in order]
    voxels = counts[0].sum(axis=0)[order]
    entries = {
        name: {"voxels": int(n), "fraction": int(n) / prod(shape)} for name, n in zip(names, voxels, strict=True)
    }
    if spacing is not None:
        for entry in entries.values():
            entry["volume"] = entry["voxels"] * float(prod(spacing))
    curves = {
        axis: dict(zip(names, (table[:, order] * size / prod(shape)).T.tolist(), strict=True))
        for axis, table, size in zip("zyx", counts, shape, strict=True)
    }
    return {
        "shape": list(shape),
        "spacing": None if spacing is None else [float(step) for step in spacing],
        "unit": None if spacing is None else unit_symbol(unit),
        "classes": entries,
        "along": curves,
    }


def write_results(
    folder: Path,
    suffix: str,
    shape: Shape,
    dtype: DTypeLike,
    slabs: Callable[[slice], Labels],
    *,
    legend: Legend,
    spacing: Spacing | None,
    unit: str | None,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """Write a label volume ``labels`` with a suffix, its fractions as CSV and picture, and return its summary.

    Parameters
    ----------
    folder : Path
        Where files of these names are replaced.
    suffix, shape, dtype, slabs, spacing, unit, provenance
        As of `write_volume` and `summarise`; the slabs are gone through twice.
    legend : Legend
        Colours and names of as many classes as there are.
    """
    n_classes = len(legend.colours)
    write_volume(
        folder / f"labels{suffix}", shape, dtype, slabs, n_classes=n_classes, legend=legend, spacing=spacing, unit=unit,
        provenance=provenance, overwrite=True,
    )  # fmt: skip
    summary = summarise(slabs, shape, n_classes, spacing, unit)
    for k, entry in summary["classes"].items():
        if int(k) in legend.names:
            entry["name"] = legend.names[int(k)]
    write_curves(folder / "fractions.csv", summary)
    write_picture(folder / "fractions.png", figure(summary, legend.colours))
    return summary


def write_curves(path: str | Path, summary: Mapping[str, Any]) -> None:
    """Write the curves of a summary as CSV, a line for each slice across each axis.

    Parameters
    ----------
    path : path
        File to write: columns "axis", "slice" from 0, "position" (the slice times the spacing; in voxels if there is
        none) and a fraction for each class, 0 … 1, under its name or "class_3".
    summary : mapping
        What `summarise` returned.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    names = [_cell(entry.get("name")) or f"class_{k}" for k, entry in summary["classes"].items()]
    table.writerow(["axis", "slice", "position", *names])
    for axis, step in zip("zyx", summary["spacing"] or (1.0, 1.0, 1.0), strict=True):
        for number, fractions in enumerate(zip(*summary["along"][axis].values(), strict=True)):
            table.writerow([axis, number, f"{number * step:.9g}", *(f"{fraction:.7g}" for fraction in fractions)])
    atomic_write(path, text.getvalue().encode())


def _cell(name: str | None) -> str | None:
    """Keep spreadsheets from taking a name for a formula."""
    return f"'{name}" if name and name[0] in "=+-@" else name


def figure(summary: Mapping[str, Any], colours: Picture, size: tuple[int, int] = (900, 500)) -> Picture:
    """Draw the fractions of the classes, in all as bars and along z as curves.

    Parameters
    ----------
    summary : mapping
        What `summarise` returned. Of more than twelve classes the largest are drawn.
    colours : ndarray of uint8, shape (n_classes, 3)
        sRGB colour of each class.
    size : (int, int)
        Width and height in pixels.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        sRGB.
    """
    from PIL import Image, ImageDraw

    classes = sorted(summary["classes"], key=lambda k: -summary["classes"][k]["fraction"])[:12]
    classes.sort(key=int)
    width, height = size
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    top, bottom, middle = 46, height - 52, int(0.36 * width)
    _draw_bars(draw, (16, top, middle - 24, bottom), summary, classes, colours)
    # Drawn twice as large and halved: Pillow draws lines without smoothing them.
    left, right = middle + 62, width - 24
    curves = Image.new("RGB", (2 * (right - left), 2 * (bottom - top)), "white")
    highest = max((max(summary["along"]["z"][k]) for k in classes), default=1.0)
    step = _tick(highest, 5)
    limit = step * max(1, int(np.ceil(highest / step - 1e-9)))
    _draw_curves(ImageDraw.Draw(curves), curves.size, summary, classes, colours, limit, step)
    canvas.paste(curves.resize((right - left, bottom - top), Image.Resampling.LANCZOS), (left, top))
    _draw_axes(draw, (left, top, right, bottom), summary, limit, step)
    return np.array(canvas)


def orthogonal(
    image_slices: Sequence[NDArray[Any]],
    label_slices: Sequence[Labels],
    colours: Picture,
    spacing: Spacing | None = None,
    size: int = 480,
    clear: int | None = None,
) -> Picture:
    """Show three slices through a volume that are at right angles, beside the same with the classes drawn over them.

    Parameters
    ----------
    image_slices : three arrays, shapes (H, W), (D, W) and (D, H)
        The slices across z, y and x. uint8 is shown as it is, another type from its 0.1 to its 99.9 percentile.
    label_slices : three arrays of int, shapes as above
        Class ids.
    colours : ndarray of uint8, shape (n_classes, 3)
        sRGB colour of each class.
    spacing : (float, float, float), optional
        Distance between voxels in z, y and x; they are shown in proportion.
    size : int
        Pixels of the longer side of the three slices together, about.
    clear : int, optional
        Class that is not tinted.

    Returns
    -------
    ndarray of uint8, shape (h, w, 3)
        sRGB: the slice across z, on its right that across x, below it that across y.

    Raises
    ------
    OutputError
        If the slices do not fit together, or a class has no colour.
    """
    (height, width), (depth, _) = image_slices[0].shape[:2], image_slices[1].shape[:2]
    for image, labels, shape in zip(
        image_slices, label_slices, ((height, width), (depth, width), (depth, height)), strict=True
    ):
        if image.shape != shape or labels.shape != shape:
            raise OutputError(
                f"expected slices of shapes (H, W), (D, W) and (D, H), but got an image of {image.shape} and labels of "
                f"{labels.shape} where {shape} belongs; give those across z, y and x"
            )
    sz, sy, sx = spacing or (1.0, 1.0, 1.0)
    scale = size / max(width * sx + depth * sz, height * sy + depth * sz)
    z, y, x = (max(1, round(n * step * scale)) for n, step in zip((depth, height, width), (sz, sy, sx), strict=True))
    shown: list[list[list[Picture]]] = []
    grey = _grey(image_slices)
    classes = [_resized(part, target) for part, target in zip(label_slices, ((y, x), (z, x), (z, y)), strict=True)]
    plain = [_resized(part, target) for part, target in zip(grey, ((y, x), (z, x), (z, y)), strict=True)]
    for drawn in (False, True):
        parts = [np.repeat(part[..., None], 3, axis=2) for part in plain]
        if drawn:
            parts = [overlay(part, ids, colours, clear=clear) for part, ids in zip(parts, classes, strict=True)]
        front, above, side = parts
        shown.append([[front, side.transpose(1, 0, 2)], [above, np.full((1, 1, 3), 255, np.uint8)]])
    return grid([[grid(rows, gap=4) for rows in shown]], ["Image", "Classes"])


def in_slabs(slabs: Callable[[slice], Labels], shape: Shape, depth: int) -> Iterator[tuple[slice, Labels]]:
    """Yield the labels some slices at a time, and which these are."""
    for start in range(0, shape[0], depth):
        z = slice(start, min(start + depth, shape[0]))
        labels = slabs(z)
        if labels.shape != (z.stop - z.start, *shape[1:]) or labels.dtype.kind not in "iu":
            raise OutputError(
                f"expected integers of shape {(z.stop - z.start, *shape[1:])} for slices {z.start} to {z.stop}, but "
                f"got {labels.dtype} of shape {labels.shape}; give the labels of just these slices"
            )
        yield z, labels


def _draw_bars(
    draw: Any,
    box: tuple[int, int, int, int],
    summary: Mapping[str, Any],
    classes: Sequence[str],
    colours: Picture,
) -> None:
    """Draw a bar for each class, its name before and its fraction behind it."""
    from PIL import ImageFont

    left, top, right, bottom = box
    font = ImageFont.load_default(13)
    draw.text((left, 14), "Volume fraction", fill="black", font=ImageFont.load_default(15))
    fractions = [summary["classes"][k]["fraction"] for k in classes]
    pitch = min(34.0, (bottom - top) / max(len(classes), 1))
    names = [_bar_name(summary["classes"][k].get("name"), k, font) for k in classes]
    start = left + max(map(font.getlength, names), default=0) + 8
    room = right - start - font.getlength(" 100.00 %")
    for row, (k, name, fraction) in enumerate(zip(classes, names, fractions, strict=True)):
        middle = top + pitch * (row + 0.5)
        length = room * fraction / max(fractions)
        draw.text((left, middle), name, fill="black", font=font, anchor="lm")
        end = max(start + 1, start + length)
        draw.rectangle((start, middle - 0.32 * pitch, end, middle + 0.32 * pitch), fill=tuple(colours[int(k)].tolist()))
        draw.text((end + 6, middle), _percent(fraction), fill="black", font=font, anchor="lm")
    more = len(summary["classes"]) - len(classes)
    if more > 0:
        draw.text((left, bottom + 18), f"and {more} smaller classes", fill="black", font=font, anchor="lm")


def _bar_name(name: str | None, k: str, font: Any) -> str:
    """Return the name of a class, cut where it is long; its number where the font has not all of the letters."""
    missing = bytes(font.getmask("\uffff"))
    if not name or any(bytes(font.getmask(letter)) == missing for letter in name):
        return f"Class {k}"
    shown = name
    while font.getlength(shown) > LONGEST_NAME:
        name = name[:-1]
        shown = f"{name.rstrip()}…"
    return shown


def _draw_curves(
    draw: Any,
    size: tuple[int, int],
    summary: Mapping[str, Any],
    classes: Sequence[str],
    colours: Picture,
    limit: float,
    step: float,
) -> None:
    """Draw the fractions along z over lines of a grid, which fill the picture."""
    width, height = size[0] - 1, size[1] - 1
    for number in range(round(limit / step) + 1):
        y = height * (1 - number * step / limit)
        draw.line((0, y, width, y), fill=(225, 225, 225), width=2)
    n_slices = summary["shape"][0]
    # No more points than pixels: each is the mean of some slices.
    starts = np.unique(np.linspace(0, n_slices, min(n_slices, size[0] // 2), endpoint=False).astype(int))
    ends = np.append(starts[1:], n_slices)
    places = width * ((starts + ends - 1) / 2) / max(n_slices - 1, 1)
    for k in classes:
        curve = np.asarray(summary["along"]["z"][k])
        heights = height * (1 - np.add.reduceat(curve, starts) / (ends - starts) / limit)
        points = list(zip(places.tolist(), heights.tolist(), strict=True))
        if len(points) == 1:
            points = [(0.0, points[0][1]), (float(width), points[0][1])]
        draw.line(points, fill=tuple(colours[int(k)].tolist()), width=4, joint="curve")


def _draw_axes(
    draw: Any, box: tuple[int, int, int, int], summary: Mapping[str, Any], limit: float, step: float
) -> None:
    """Frame the curves and name what stands on their axes."""
    from PIL import ImageFont

    left, top, right, bottom = box
    font = ImageFont.load_default(13)
    draw.text((left, 14), "Fraction of each slice along z", fill="black", font=ImageFont.load_default(15))
    draw.line((left, top, left, bottom, right, bottom), fill="black")
    digits = max(0, int(np.ceil(-np.log10(100 * step) - 1e-9)))
    for number in range(round(limit / step) + 1):
        y = bottom - (bottom - top) * number * step / limit
        draw.line((left - 4, y, left, y), fill="black")
        draw.text((left - 8, y), f"{100 * number * step:.{digits}f} %", fill="black", font=font, anchor="rm")
    spacing = summary["spacing"]
    length = (summary["shape"][0] - 1) * (spacing[0] if spacing else 1)
    # The font that comes with Pillow has no µ.
    name = (
        f"z ({plain_unit(summary['unit']) if summary['unit'] else 'units of the spacing'})" if spacing else "z (slice)"
    )
    pitch = _tick(length, 6) if length else 1.0
    if not spacing:
        pitch = max(pitch, 1.0)
    for number in range(int(length / pitch + 1e-9) + 1):
        x = left + (right - left) * (number * pitch / length if length else 0.5)
        draw.line((x, bottom, x, bottom + 4), fill="black")
        draw.text((x, bottom + 8), f"{number * pitch:.6g}", fill="black", font=font, anchor="mt")
    draw.text(((left + right) / 2, bottom + 27), name, fill="black", font=font, anchor="mt")


def _tick(length: float, most: int) -> float:
    """Round distance between the marks of an axis, 1, 2 or 5 times a power of ten, such that there are few of them."""
    rough = length / most
    power = 10.0 ** np.floor(np.log10(rough))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9)))


def _percent(fraction: float) -> str:
    """A fraction in percent, with as many digits as tell it from 0."""
    share = 100 * fraction
    return f"{share:.1f} %" if share >= 9.95 else f"{share:.2f} %" if share >= 0.01 else "< 0.01 %"


def _grey(slices: Sequence[NDArray[Any]]) -> list[Picture]:
    """Slices of one volume as they are shown, on one scale."""
    if all(part.dtype == np.uint8 for part in slices):
        return [np.asarray(part) for part in slices]
    values = np.concatenate([part.ravel() for part in slices]).astype(np.float64)
    low, high = np.percentile(values[np.isfinite(values)], (0.1, 99.9)) if np.isfinite(values).any() else (0.0, 1.0)
    width = high - low if high > low else 1.0
    units = [np.nan_to_num((part.astype(np.float64) - low) / width).clip(0, 1) for part in slices]
    return [np.rint(unit * 255).astype(np.uint8) for unit in units]


def _resized(array: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """The nearest pixels, as many as asked for."""
    rows, columns = ((np.arange(n) + 0.5) * size // n for n, size in zip(shape, array.shape, strict=True))
    resized: NDArray[Any] = array[rows.astype(int)[:, None], columns.astype(int)]
    return resized

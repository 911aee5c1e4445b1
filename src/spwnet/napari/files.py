"""What the plugin opens and saves: samples, segmentations, labels with the names of their classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet import outputs, storage
from spwnet.classes import Legend, palette
from spwnet.config import LabelSettings, NamedClass
from spwnet.errors import InputError, OutputError
from spwnet.images import image_size, label_image, open_images
from spwnet.lazylabels import PlaneArray
from spwnet.napari.inputs import LayerLabels, common_spacing
from spwnet.napari.logic import METADATA, OPACITY, colours_of, features_of
from spwnet.samples import SLICE_SPACING, sample
from spwnet.storage import parse_json
from spwnet.volumes import open_volume
from spwnet.volumewriting import SUFFIXES, write_volume

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    LayerData = tuple[Any, dict[str, Any], str]

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".mp4")
"""Of labels of images that `segment` writes."""
NAMELESS = (".tif", ".tiff", ".npy")
"""Formats of volumes that hold neither names nor colours of classes."""
MOST_LISTED = 65_536
"""Classes that a file lists one by one, with colours or names."""


def composite() -> list[LayerData]:
    """Return slices through a fibre composite as a layer."""
    found = sample("composite")
    pixels = np.stack(found.images)[..., 0]
    return [(pixels, {"name": "composite", "scale": (SLICE_SPACING, 1, 1), "axis_labels": ("z", "y", "x")}, "image")]


def swim() -> list[LayerData]:
    """Return frames of swimming fish as a layer."""
    pixels = np.stack(sample("swim").images)
    return [(pixels, {"name": "swim", "rgb": True, "axis_labels": ("t", "y", "x")}, "image")]


def get_reader(path: str | Sequence[str]) -> Callable[[str], list[LayerData]] | None:
    """Return a reader of the folder of a segmentation, by its ``segmentation.json``; None for anything else."""
    if isinstance(path, str) and Path(path).name == "segmentation.json":
        return read_segmentation
    return None


def read_segmentation(path: str | Path) -> list[LayerData]:
    """Open the labels that `segment` or `segment_volume` wrote, read where they are looked at.

    Parameters
    ----------
    path : path
        The ``segmentation.json``.

    Raises
    ------
    InputError
        If it is none.
    """
    file = Path(path)
    try:
        summary = parse_json(file.read_text(encoding="utf-8"))
        suffix, solid = str(summary["suffix"]), "volume" in summary
        known = SUFFIXES if solid else IMAGE_SUFFIXES
        if suffix.lower() not in known:
            # It becomes part of a path: a folder from elsewhere must not choose what is opened.
            raise ValueError(f"its suffix is none of {', '.join(known)}: {suffix!r}")
        n_classes = int(summary["n_classes"]) if solid else max(map(int, summary["classes"])) + 1
        entries = LabelSettings.model_validate(summary["labels"]).named or [
            NamedClass(id=k, name=f"class {k}", members=(k,)) for k in range(n_classes)
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"expected the segmentation.json of a finished segmentation at {file}, but: {error}; segment once more"
        ) from error
    name = file.absolute().parent.name
    looks = {"colormap": colours_of(entries), "features": features_of(entries), "opacity": OPACITY}
    if solid:
        volume = open_volume(file.parent / f"labels{suffix}")
        place: dict[str, Any] = {"axis_labels": ("z", "y", "x")}
        if volume.spacing is not None:
            place |= {"scale": volume.spacing, "units": (volume.unit or "pixel",) * 3}
        return [(_VolumePlanes(volume), {"name": name, **place, **looks}, "labels")]
    source = open_images(file.parent / ("labels.mp4" if suffix == ".mp4" else "labels"))
    groups: dict[tuple[int, int], list[int]] = {}
    for k in range(len(source)):
        groups.setdefault(image_size(source, k), []).append(k)
    layers = []
    for number, (size, positions) in enumerate(groups.items()):
        planes = _ImagePlanes(source, positions, size)
        title = name if len(groups) == 1 else f"{name} {number}"
        layers.append((planes if len(positions) > 1 else planes[0], {"name": title, **looks}, "labels"))
    return layers


def write_labels(path: str, data: Any, meta: dict[str, Any]) -> list[str]:
    """Write a layer of labels, and beside it ``NAME.classes.toml`` if it has classes by name; both are replaced.

    Parameters
    ----------
    path : str
        PNG or TIFF for an image; TIFF, OME-Zarr, HDF5 or NPY for a stack or a volume, with spacing and unit.
    data : array
    meta : dict
        As napari passes it.

    Returns
    -------
    list of str
        The files.

    Raises
    ------
    OutputError
        If it has more axes than three, negative values, or more than the format holds, or cannot be written.
    """
    target, known = Path(path), meta.get("metadata", {}).get(METADATA, {})
    if data.ndim not in (2, 3):
        raise OutputError(
            f"expected labels of two or three axes, but got {data.ndim}; save them by napari's own writer, or segment "
            "into a folder"
        )
    names = _names(meta)
    if isinstance(data, LayerLabels):
        names = {k: name for k, name in names.items() if k < data.blank}
        data = np.asarray(data)
    lowest, highest = _extremes(data)
    if lowest < 0:
        raise OutputError(
            f"expected labels of 0 and above, but '{target.name}' would have {lowest}; give those pixels another label"
        )
    n_classes = max([highest, *names]) + 1
    dtype = outputs.label_dtype(n_classes, ".tif")
    if data.ndim == 2 and target.suffix.lower() in (".png", ".tif", ".tiff"):
        outputs.write_labels(target, np.asarray(data).astype(dtype), n_classes)
    else:
        volume = data if data.ndim == 3 else np.asarray(data)[None]
        spacing, unit = _spacing(meta)
        write_volume(
            target, volume.shape, dtype, lambda z: np.asarray(volume[z]).astype(dtype), n_classes=n_classes,
            legend=_legend(target, names, meta.get("colormap"), n_classes), spacing=spacing, unit=unit,
            provenance=outputs.provenance(), overwrite=True,
        )  # fmt: skip
    written = [str(target)]
    if "classes" in known:
        beside = target.with_suffix(".classes.toml")
        storage.atomic_write(beside, known["classes"].encode())
        written.append(str(beside))
    return written


def _extremes(data: Any) -> tuple[int, int]:
    """Return the smallest and the largest label, read plane by plane: what is opened may be larger than memory."""
    planes = (data[k] for k in range(data.shape[0])) if data.ndim == 3 else (data,)
    found = [(int(plane.min(initial=0)), int(plane.max(initial=0))) for plane in map(np.asarray, planes)]
    return min((low for low, _ in found), default=0), max((high for _, high in found), default=0)


def _names(meta: dict[str, Any]) -> dict[int, str]:
    """Return the names of labels in the table of a layer, which may lack some."""
    features = meta.get("features", {})
    pairs = zip(features.get("index", ()), features.get("name", ()), strict=False)
    return {
        int(k): name
        for k, name in pairs
        if isinstance(k, int | float | np.number) and 0 <= k < np.inf and isinstance(name, str) and name.strip()
    }


def _legend(target: Path, names: dict[int, str], colormap: Any, n_classes: int) -> Legend:
    """Return what a format holds of names and colours."""
    suffix = target.suffix.lower()
    if suffix in NAMELESS:
        return Legend(palette(0), {})
    # Zarr names some of the classes, HDF5 each of them.
    if names and suffix != ".zarr" and n_classes > MOST_LISTED:
        raise OutputError(
            f"expected labels below {MOST_LISTED} where HDF5 names them, but got {n_classes - 1}; write OME-Zarr "
            "(.zarr), or number them anew"
        )
    colours = palette(min(n_classes, MOST_LISTED))
    for k in names:
        colour = _colour_of(colormap, k)
        if colour is not None and k < len(colours):
            colours[k] = colour
    return Legend(colours, names)


def _colour_of(colormap: Any, k: int) -> tuple[int, ...] | None:
    """Return the colour of a label in a colour map of napari, if it has colours for each of them."""
    colour = getattr(colormap, "color_dict", {}).get(k)
    return None if colour is None else tuple(round(255 * float(part)) for part in colour[:3])


def _spacing(meta: dict[str, Any]) -> tuple[tuple[float, float, float] | None, str | None]:
    """Return the spacing of three axes and its unit."""
    steps = [abs(float(step)) for step in meta.get("scale", ())]
    units = [str(unit) for unit in meta.get("units", ())] or ["pixel"] * len(steps)
    return common_spacing(steps, units) if len(steps) == len(units) == 3 else (None, None)


class _VolumePlanes(PlaneArray):
    """A label volume in a file."""

    def __init__(self, volume: Any) -> None:
        self._volume, self.shape, self.dtype = volume, volume.shape, volume.dtype

    def plane(self, *where: int) -> NDArray[Any]:
        (k,) = where
        found: NDArray[Any] = self._volume.read((slice(k, k + 1), slice(None), slice(None)))[0, ..., 0]
        return found


class _ImagePlanes(PlaneArray):
    """Label images of one size in files."""

    def __init__(self, source: Any, positions: Sequence[int], size: tuple[int, int]) -> None:
        self._source, self._positions = source, positions
        self.shape, self.dtype = (len(positions), *size), label_image(source, positions[0]).dtype

    def plane(self, *where: int) -> NDArray[Any]:
        (k,) = where
        return label_image(self._source, self._positions[k])

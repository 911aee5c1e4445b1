"""What the plugin opens and saves: samples, segmentations, labels with the names of their classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet import outputs, storage
from spwnet.classes import legend
from spwnet.config import LabelSettings, NamedClass
from spwnet.errors import InputError, OutputError
from spwnet.images import image_size, label_image, open_images
from spwnet.lazylabels import PlaneArray
from spwnet.napari.inputs import LayerLabels
from spwnet.napari.logic import METADATA, OPACITY, colours_of, features_of
from spwnet.samples import SLICE_SPACING, sample
from spwnet.units import standard_unit
from spwnet.volumes import open_volume
from spwnet.volumewriting import write_volume

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    LayerData = tuple[Any, dict[str, Any], str]


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
        summary = json.loads(file.read_text(encoding="utf-8"))
        suffix, solid = str(summary["suffix"]), "volume" in summary
        n_classes = int(summary["n_classes"]) if solid else max(map(int, summary["classes"])) + 1
        entries = LabelSettings.model_validate(summary["labels"]).named or [
            NamedClass(id=k, name=f"class {k}", members=(k,)) for k in range(n_classes)
        ]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
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
    """Write a layer of labels, and beside it ``NAME.classes.toml`` if it has classes by name.

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
        If it has more axes than three, or cannot be written.
    """
    target, known = Path(path), meta.get("metadata", {}).get(METADATA, {})
    if data.ndim not in (2, 3):
        raise OutputError(
            f"expected labels of two or three axes, but got {data.ndim}; save them by napari's own writer, or segment "
            "into a folder"
        )
    given = data
    if isinstance(data, LayerLabels):
        data = np.asarray(data)
    values = dict(zip(*([*meta.get("features", {}).get(key, ())] for key in ("index", "name")), strict=False))
    colours = meta.get("colormap")
    values = {int(k): name for k, name in values.items() if not isinstance(given, LayerLabels) or k < given.blank}
    n_classes = max([int(data.max()), *values]) + 1
    dtype = outputs.label_dtype(n_classes, ".tif")
    named = [
        NamedClass(id=k, name=str(name), members=(k,), colour=_hexadecimal(colours, k)) for k, name in values.items()
    ]
    looks = legend(LabelSettings(named=tuple(named)), n_classes)
    if data.ndim == 2 and target.suffix.lower() in (".png", ".tif", ".tiff"):
        outputs.write_labels(target, np.asarray(data).astype(dtype), n_classes)
    else:
        volume = data if data.ndim == 3 else data[None]
        spacing, unit = _spacing(meta)
        write_volume(
            target, volume.shape, dtype, lambda z: np.asarray(volume[z]).astype(dtype), n_classes=n_classes,
            legend=looks, spacing=spacing, unit=unit, provenance=outputs.provenance(), overwrite=True,
        )  # fmt: skip
    written = [str(target)]
    if "classes" in known:
        names = target.with_suffix(".classes.toml")
        storage.atomic_write(names, known["classes"].encode())
        written.append(str(names))
    return written


def _hexadecimal(colormap: Any, k: int) -> str | None:
    """Return the colour of a class in a colour map of napari, if it has colours for each of them."""
    colour = getattr(colormap, "color_dict", {}).get(k)
    return None if colour is None else "#" + bytes(round(255 * float(part)) for part in colour[:3]).hex()


def _spacing(meta: dict[str, Any]) -> tuple[tuple[float, float, float] | None, str | None]:
    """Return the spacing of three axes and its unit, if it is a length and the same for all."""
    steps, units = [abs(float(step)) for step in meta.get("scale", ())], {str(unit) for unit in meta.get("units", ())}
    if len(steps) != 3 or len(units) > 1:
        return None, None
    return (steps[0], steps[1], steps[2]), standard_unit(units.pop()) if units else None


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

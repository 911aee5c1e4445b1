"""Image layers as what is trained on and segmented: which of their axes are which, and how far apart pixels are."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from napari.layers import Image

from spwnet.errors import InputError
from spwnet.images import JoinedImages, open_images
from spwnet.lazylabels import LazyLabels, PlaneArray
from spwnet.outputs import label_dtype
from spwnet.units import METRES, standard_unit
from spwnet.volumes import join_channels, open_volume

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from spwnet.images import ImageSource
    from spwnet.naming import ClassMap
    from spwnet.trained import TrainedModel
    from spwnet.training import Progress
    from spwnet.volumes import Volume

    Kind = Literal["images", "volume"]

_WORDS = {
    "T": "t time times frame frames",
    "Z": "z depth plane planes slice slices",
    "C": "c ch channel channels",
    "Y": "y row rows height",
    "X": "x column columns width",
}
_LETTERS = {word: letter for letter, words in _WORDS.items() for word in words.split()}
_NAMELESS = re.compile(r"(axis )?-?\d+")
_SPARE = "TPQRUVW"
"""For axes that nothing names."""
LEAST_SLICES = 16
"""Of what is taken for a volume: supervoxels need some on either side."""
FLATTEST = 8
"""Times that a volume is wider than it is deep, at most, if its axes have no names."""


@dataclass(frozen=True, eq=False)
class LayerInput:
    """Image layers of one shape, each one channel or red, green and blue, as images or as volumes.

    Attributes
    ----------
    layers : tuple of napari.layers.Image
    kind : {"images", "volume"}
        Whether each plane is an image of its own, or Z, Y and X are a volume.
    axes : str
        A letter for each axis of the labels: Y and X last, Z in a volume, T and others before them.
    shape : tuple of int
        Of the labels.
    channels_first : bool
        Whether the layer has channels along an axis before these.
    """

    layers: tuple[Any, ...]
    kind: Kind
    axes: str
    shape: tuple[int, ...]
    channels_first: bool

    @property
    def data(self) -> tuple[Any, ...]:
        """Arrays of the layers as they are now."""
        return tuple(map(_data, self.layers))

    @property
    def name(self) -> str:
        """Name of the first layer."""
        return str(self.layers[0].name)

    @property
    def lead(self) -> tuple[int, ...]:
        """Lengths of the axes before the last two."""
        return self.shape[:-2]

    @property
    def time_axes(self) -> tuple[int, ...]:
        """Axes along which volumes lie."""
        return tuple(k for k in range(len(self.lead)) if self.kind == "volume" and self.axes[k] != "Z")

    @property
    def times(self) -> tuple[int, ...]:
        """Lengths of the axes along which volumes lie."""
        return tuple(self.lead[k] for k in self.time_axes)

    @property
    def planes(self) -> int:
        """How many images there are, or slices of one volume."""
        return self.shape[self.axes.index("Z")] if self.kind == "volume" else math.prod(self.lead)

    def split(self, where: Sequence[int]) -> tuple[tuple[int, ...], int]:
        """Return which volume a plane is in and which slice of it, or () and which of the images it is."""
        if self.kind == "images":
            return (), int(np.ravel_multi_index(tuple(where), self.lead)) if self.lead else 0
        z = self.axes.index("Z")
        return tuple(int(k) for axis, k in enumerate(where) if axis != z), int(where[z])

    def place(self, volume: tuple[int, ...], plane: int) -> tuple[int, ...]:
        """Return the position of a plane along the axes before the last two, the inverse of `split`."""
        if self.kind == "images":
            return tuple(int(k) for k in np.unravel_index(plane, self.lead)) if self.lead else ()
        z = self.axes.index("Z")
        return (*volume[:z], plane, *volume[z:])

    def current(self, viewer: Any) -> tuple[int, ...]:
        """Return the position of the plane that a viewer shows."""
        return current_plane(self.layers[0], viewer)[int(self.channels_first) :]

    def images(self) -> ImageSource:
        """Return all planes as images, read one by one."""
        sources = [open_images(data, self.axes + colours) for data, colours in self._arrays()]
        return sources[0] if len(sources) == 1 else JoinedImages(sources)

    def volume(self, which: tuple[int, ...] = ()) -> Volume:
        """Return a volume, that of a point in time for example, read part by part."""
        spacing, unit = self.spacing()
        times = iter(which)
        where = [slice(None) if axis in "ZYX" else next(times) for axis in self.axes]
        opened = []
        for data, colours in self._arrays():
            part = _Section(data, [*where, *[slice(None)] * len(colours)])
            opened.append(open_volume(part, axes="ZYX" + colours, spacing=spacing, unit=unit))
        return join_channels(opened)

    def _arrays(self) -> list[tuple[Any, str]]:
        """Arrays of the channels, each with "C" if it has an axis of colours at the end."""
        found: list[tuple[Any, str]] = []
        for layer in self.layers:
            data = _data(layer)
            if self.channels_first:
                rest = [slice(None)] * (layer.ndim - 1)
                found += [(_Section(data, [k, *rest]), "") for k in range(data.shape[0])]
            elif layer.rgb:
                # Without alpha.
                found.append((_Section(data, [*[slice(None)] * layer.ndim, slice(0, 3)]), "C"))
            else:
                found.append((data, ""))
        return found

    def spacing(self) -> tuple[tuple[float, float, float] | None, str | None]:
        """Spacing along z, y, x and its unit; none where steps are in unlike or unknown units."""
        layer = self.layers[0]
        skip = int(self.channels_first)
        at = [skip + self.axes.index(axis) for axis in "ZYX"]
        return common_spacing([abs(float(layer.scale[k])) for k in at], [str(layer.units[k]) for k in at])

    def labels(self, model: TrainedModel, classes: ClassMap) -> LayerLabels:
        """Return the labels of all planes by a model, worked out where they are looked at.

        Raises
        ------
        SpwnetError
            If the model is for something else.
        """
        if self.kind == "images":
            parts = {(): LazyLabels(model, self.images(), classes=classes)}
        else:
            parts = {where: LazyLabels(model, self.volume(where), classes=classes) for where in np.ndindex(self.times)}
        return LayerLabels(self, {where: part.with_classes(classes, by_plane=True) for where, part in parts.items()})

    def placement(self) -> dict[str, Any]:
        """Return where the layer lies in the world, for a layer of the labels."""
        layer, skip = self.layers[0], int(self.channels_first)
        found = {
            name: tuple(getattr(layer, name))[skip:] for name in ("scale", "translate", "units", "axis_labels")
        }  # what turns a layer is of all its axes together
        if not skip:
            found |= {"rotate": layer.rotate, "shear": layer.shear, "affine": layer.affine}
        return found


class LayerLabels(PlaneArray):
    """The labels of layers in their shape.

    Indexing never waits: planes that are not worked out are of the id `blank`. ``np.asarray``, and so whatever saves
    them, works everything out.

    Parameters
    ----------
    given : LayerInput
    parts : dict of {position among the times: LazyLabels}
        Of each volume, or of all the images under ().

    Attributes
    ----------
    blank : int
        Above the ids of all classes.
    """

    def __init__(self, given: LayerInput, parts: dict[tuple[int, ...], LazyLabels]) -> None:
        self.given, self._parts = given, parts
        part = next(iter(parts.values()))
        self.blank = part.model.n_classes(part.labels)
        self.shape, self.dtype = given.shape, label_dtype(self.blank + 1, ".tif")

    @property
    def volumes(self) -> tuple[tuple[int, ...], ...]:
        """Positions of the volumes among the times; () alone for images."""
        return tuple(self._parts)

    def part(self, volume: tuple[int, ...]) -> LazyLabels:
        """Return what the labels of a volume, or of all images, are taken from."""
        return self._parts[volume]

    def is_ready(self, *where: int) -> bool:
        """Whether a plane is worked out."""
        volume, k = self.given.split(where)
        return self._parts[volume].is_ready(k)

    def plane(self, *where: int) -> NDArray[np.unsignedinteger[Any]]:
        """Return the class of each pixel of a plane, (H, W), or `blank` if it is not worked out."""
        volume, k = self.given.split(where)
        if not self._parts[volume].is_ready(k):
            return np.full(self.shape[-2:], self.blank, self.dtype)
        return self._parts[volume].plane(k).astype(self.dtype, copy=False)

    def finest(self, *where: int) -> NDArray[np.unsignedinteger[Any]]:
        """Work out a plane; return the finest class of each of its pixels, (H, W)."""
        volume, k = self.given.split(where)
        return self._parts[volume].finest(k)

    def with_classes(self, classes: ClassMap) -> LayerLabels:
        """Return the same for other classes."""
        changed = {where: part.with_classes(classes, by_plane=True) for where, part in self._parts.items()}
        return LayerLabels(self.given, changed)

    def compute(
        self,
        on_progress: Callable[[Progress], None] = lambda _: None,
        volumes: Sequence[tuple[int, ...]] | None = None,
    ) -> LayerLabels:
        """Work out everything that is missing, of some of the volumes or all, and clean volumes whole.

        What `on_progress` raises ends it.
        """
        for volume in self.volumes if volumes is None else volumes:
            self._parts[volume].compute(on_progress)
        return self

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        self.compute()
        return super().__array__(dtype, copy)


class _Section:
    """Part of an array, read where it is looked at: a number fixes an axis, a slice keeps it from its beginning."""

    def __init__(self, array: Any, where: Sequence[int | slice]) -> None:
        self._array, self._where = array, tuple(where)
        self._kept = [range(n)[w] for n, w in zip(array.shape, where, strict=True) if isinstance(w, slice)]
        self.shape, self.dtype = tuple(map(len, self._kept)), array.dtype

    def __getitem__(self, key: Any) -> NDArray[Any]:
        parts = iter(key if isinstance(key, tuple) else (key,))
        kept = iter(self._kept)
        index: list[int | slice] = []
        for w in self._where:
            if isinstance(w, slice):
                found = next(kept)[next(parts, slice(None))]
                index.append(slice(found.start, found.stop, found.step) if isinstance(found, range) else found)
            else:
                index.append(w)
        return np.asarray(self._array[tuple(index)])


def open_layers(layers: Sequence[Any], kind: Kind | None = None, viewer: Any = None) -> LayerInput:
    """Take image layers for images or a volume.

    Parameters
    ----------
    layers : sequence of napari.layers.Image
        Several are channels of the same, and have one shape.
    kind : {"images", "volume"}, optional
        What they are: a stack of images, each by itself, or volumes. If not given, layers of three axes or more are
        volumes if they have at least 16 slices along an axis called z; or, where axes have no names, if they have no
        colours and are not eight times as wide as they are deep.
    viewer : napari.components.ViewerModel, optional
        Whose names of axes count where the layers have none.

    Raises
    ------
    InputError
        If there is no image layer, they differ in shape, or have too few axes.
    """
    if not layers:
        raise InputError("expected an image layer, but none is chosen; open an image, or choose one of its layers")
    first = layers[0]
    for layer in layers:
        if not isinstance(layer, Image):
            raise InputError(f"expected image layers, but '{layer.name}' is of {type(layer).__name__}; choose an image")
        if _shape(layer) != _shape(first):
            ours, theirs = (" × ".join(map(str, _shape(one))) for one in (first, layer))
            raise InputError(
                f"expected layers of one shape as channels, but '{first.name}' has {ours} and '{layer.name}' {theirs}; "
                "choose one of them, or crop them to what they have in common"
            )
    shape, letters = _shape(first), _letters(first, viewer)
    if "C" in letters[1:] or ("C" in letters and first.rgb):
        raise InputError(
            f"expected channels along the first axis, or as layers of their own, but those of '{first.name}' are along "
            f"axis {letters.index('C')}; split it by Layer > Split Stack"
        )
    channels_first = letters[0] == "C"
    if channels_first:
        letters, shape = letters[1:], shape[1:]
    if kind is None:
        kind = _likely(letters, shape, rgb=bool(first.rgb))
    if kind == "volume" and len(shape) < 3:
        raise InputError(
            f"expected at least three axes for a volume, but '{first.name}' has {len(shape)}; take it for images"
        )
    return LayerInput(tuple(layers), kind, _filled(letters, kind), shape, channels_first)


def common_spacing(
    steps: Sequence[float], units: Sequence[str]
) -> tuple[tuple[float, float, float] | None, str | None]:
    """Bring steps along z, y, x to the unit of the last; no unit for equal unknown ones, nothing for unlike ones."""
    z, y, x = steps
    known = [standard_unit(unit) for unit in units]
    last = known[2]
    if last is None or None in known:
        return ((z, y, x), None) if len(set(units)) == 1 else (None, None)
    # Of equal units no rounding may come.
    z, y = (step if u == last else step * METRES[str(u)] / METRES[last] for step, u in zip((z, y), known, strict=False))
    return (z, y, x), last


def current_plane(layer: Any, viewer: Any) -> tuple[int, ...]:
    """Return the position of the plane of a layer that a viewer shows, along its axes before the last two."""
    point = layer.world_to_data(viewer.dims.point)
    lead = layer.ndim - 2
    return tuple(int(min(max(round(float(at)), 0), n - 1)) for at, n in zip(point[:lead], _shape(layer), strict=False))


def _letters(layer: Any, viewer: Any) -> list[str | None]:
    """Letter of each axis by its name, None where there is none; the last two are rows and columns."""
    names = list(layer.axis_labels)
    if viewer is not None and all(_NAMELESS.fullmatch(name) for name in names):
        names = list(viewer.dims.axis_labels)[-layer.ndim :]
    found: list[str | None] = [_LETTERS.get(name.strip().lower()) for name in names]
    found[-2:] = ["Y", "X"]
    # A second axis of the same name, or rows that are not among the last two, tell nothing.
    return [None if letter and (letter in found[k + 1 :]) else letter for k, letter in enumerate(found)]


def _likely(letters: Sequence[str | None], shape: Sequence[int], *, rgb: bool) -> Kind:
    if "Z" in letters:
        return "volume" if shape[letters.index("Z")] >= LEAST_SLICES else "images"
    if rgb or len(shape) < 3 or letters[-3] is not None:
        return "images"
    return "volume" if shape[-3] >= max(LEAST_SLICES, max(shape[-2:]) / FLATTEST) else "images"


def _filled(letters: Sequence[str | None], kind: Kind) -> str:
    """Name the axes that have no name: in a volume the last of them is Z."""
    named = list(letters)
    if kind == "volume" and "Z" not in named:
        free = [k for k, letter in enumerate(named) if letter is None]
        named[free[-1] if free else len(named) - 3] = "Z"
    spare = iter(letter for letter in _SPARE if letter not in named)
    return "".join(letter or next(spare) for letter in named)


def _data(layer: Any) -> Any:
    """Data of a layer, the finest level of several."""
    return layer.data[0] if layer.multiscale else layer.data


def _shape(layer: Any) -> tuple[int, ...]:
    """Shape of a layer without colours."""
    return tuple(map(int, _data(layer).shape[: layer.ndim]))

"""What the plugin does: train, segment, show and edit the classes, save; on a viewer's model, without a window."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from napari.layers import Labels
from napari.utils.colormaps import DirectLabelColormap

from spwnet.api import train
from spwnet.classes import hexadecimal, palette
from spwnet.errors import InputError, RunError, SettingsError, SpwnetError
from spwnet.naming import read_classes
from spwnet.napari.editing import Editing
from spwnet.napari.inputs import open_layers
from spwnet.napari.jobs import Job
from spwnet.pointing import from_points
from spwnet.runs import Run, load
from spwnet.segmenting import segment
from spwnet.volumesegmenting import segment_volume

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from spwnet.config import NamedClass, Settings
    from spwnet.naming import ClassMap
    from spwnet.napari.inputs import LayerInput, LayerLabels
    from spwnet.trained import TrainedModel

METADATA = "spwnet"
"""Under which a layer of labels says what its classes are."""
DIMMED = 0.3
"""Opacity of classes that are not selected while others are."""
OPACITY = 0.6
BRUSH_PIXELS = 4
CLICK_PIXELS = 4
"""Of the screen that the mouse may move while it is clicked."""
KEYS = {"Shift-M": "merge", "Shift-S": "split", "Shift-U": "undo", "Shift-R": "redo"}
"""Keys in a layer of labels, and what of `Editing` they do."""


@dataclass(eq=False)
class Result:
    """A layer of labels and what it was made of.

    Attributes
    ----------
    layer : napari.layers.Labels
    given : LayerInput
    labels : LayerLabels
        What the layer shows.
    data : tuple of arrays
        Of the image layers, as they were then.
    """

    layer: Any
    given: LayerInput
    labels: LayerLabels
    data: tuple[Any, ...]

    def is_current(self) -> bool:
        """Whether the image layers still have the arrays that it was made of."""
        return all(one is other for one, other in zip(self.data, self.given.data, strict=True))


@dataclass(frozen=True)
class Missing:
    """What a result lacks to be shown as the viewer is set: one plane, or volumes, or images, whole.

    Attributes
    ----------
    result : Result
    plane : tuple of int or None
        Its position, if it is but one.
    volumes : sequence of tuple of int
        Positions of volumes among the times.
    """

    result: Result
    plane: tuple[int, ...] | None
    volumes: tuple[tuple[int, ...], ...]


class Session:
    """A model, its classes while they are edited, and the layers they are shown in, in one viewer.

    Parameters
    ----------
    viewer : napari.components.ViewerModel
    on_change : callable
        Called after each change of model, classes or selection.
    on_missing : callable
        Called with what results lack when the viewer is moved; `filling` is the work of it.
    on_error : callable
        Called with a `SpwnetError` that comes of a key; if not given it is raised.

    Attributes
    ----------
    model : TrainedModel or None
    run : Path or None
        Directory that the model is kept in.
    editing : Editing or None
    results : list of Result
    """

    def __init__(
        self,
        viewer: Any,
        on_change: Callable[[], None] = lambda: None,
        on_missing: Callable[[Sequence[Missing]], None] = lambda _: None,
        on_error: Callable[[Exception], None] | None = None,
    ) -> None:
        self.viewer = viewer
        self.model: TrainedModel | None = None
        self.run: Path | None = None
        self.editing: Editing | None = None
        self.results: list[Result] = []
        self._on_change, self._on_missing, self._on_error = on_change, on_missing, on_error
        self._shown: ClassMap | None = None
        events = viewer.dims.events
        self._watched = events.point, events.ndisplay, events.order
        for event in self._watched:
            event.connect(self._moved)

    def close(self) -> None:
        """Look at the viewer no more."""
        for event in self._watched:
            event.disconnect(self._moved)

    # What there is

    def trained(self) -> TrainedModel:
        """Return the model.

        Raises
        ------
        RunError
            If there is none yet.
        """
        if self.model is None:
            raise RunError("expected a trained network, but there is none yet; train one, or open a run directory")
        return self.model

    def edited(self) -> Editing:
        """Return the classes that are edited.

        Raises
        ------
        RunError
            If there are none yet.
        """
        self.trained()
        assert self.editing is not None
        return self.editing

    def use(self, model: TrainedModel, run: str | Path | None = None) -> None:
        """Go on with a model, and the classes that its run directory keeps; results of another one are let go."""
        classes = model.class_map() if run is None else Run(run).class_map(model)
        self.model, self.run = model, None if run is None else Path(run)
        self.results = []
        self._shown = classes
        self.editing = Editing(classes, self._changed)
        self._on_change()

    def open_run(self, folder: str | Path) -> None:
        """Go on with the model of a run directory.

        Raises
        ------
        RunError
            If it is none.
        """
        self.use(load(folder), folder)

    # Training

    def training(
        self,
        given: LayerInput,
        settings: Settings,
        frames: Sequence[int] | str | None = None,
        *,
        run: str | Path | None = None,
        overwrite: bool = False,
    ) -> Job[TrainedModel]:
        """Return the work of training on layers; of several volumes, on the one that the viewer shows.

        Parameters
        ----------
        given : LayerInput
        settings : Settings
        frames : sequence of int, "auto" or "all", optional
            Images or slices, as of `train`; see `chosen_frames`.
        run : path, optional
            Run directory to write.
        overwrite : bool
            Replace what is in it.
        """
        images: Any = given.images()
        if given.kind == "volume":
            images = given.volume(given.split(given.current(self.viewer))[0])

        def work(job: Job[TrainedModel]) -> TrainedModel:
            return train(
                images, run, settings=settings, frames=frames, overwrite=overwrite, on_progress=job.tell,
                watch=[job.watcher()],
            )  # fmt: skip

        return Job(work)

    # Segmenting

    def segment(self, given: LayerInput) -> Result:
        """Add a layer of labels, or return the one there is; it is clear where nothing is worked out yet: see `look`.

        Raises
        ------
        SpwnetError
            If there is no model, or it is for something else.
        """
        found = self._result_of(given)
        if found is not None:
            return found
        labels = given.labels(self.trained(), self.edited().classes)
        layer = Labels(labels, name=f"{given.name} classes", opacity=OPACITY, **given.placement())
        layer.mouse_drag_callbacks.append(self._pick)
        for key, action in KEYS.items():
            layer.bind_key(key, self._on_key(action))
        result = Result(layer, given, labels, given.data)
        self._draw(result)
        self.viewer.add_layer(layer)
        self.results.append(result)
        return result

    def _result_of(self, given: LayerInput) -> Result | None:
        """Return what there is of these layers as they are now."""
        self._let_go()
        for result in self.results:
            other = result.given
            if (other.layers, other.kind, other.axes) == (given.layers, given.kind, given.axes):
                return result
        return None

    def _let_go(self) -> None:
        """Forget results that were deleted, or are of other pixels than their image has now."""
        self.results = [result for result in self.results if result.layer in self.viewer.layers and result.is_current()]

    def look(self) -> list[Missing]:
        """Return what results that are visible lack where the viewer looks; `filling` is the work of it."""
        self._let_go()
        return [missing for result in self.results if result.layer.visible and (missing := self._missing(result))]

    def _moved(self, _: Any) -> None:
        if missing := self.look():
            self._on_missing(missing)

    def _missing(self, result: Result) -> Missing | None:
        given, labels = result.given, result.labels
        current = given.current(self.viewer)
        offset = self.viewer.dims.ndim - len(given.shape)
        displayed = {axis - offset for axis in self.viewer.dims.displayed}
        if displayed & set(range(len(given.lead))):
            seen = [
                where
                for where in labels.volumes
                if all(k in displayed or at == current[k] for k, at in zip(given.time_axes, where, strict=True))
            ]
            lacking = tuple(where for where in seen if not labels.part(where).complete)
            return Missing(result, None, lacking) if lacking else None
        volume, _ = given.split(current)
        if not labels.is_ready(*current):
            return Missing(result, current, (volume,))
        part = labels.part(volume)
        # Each slice is cleaned by itself until the volume is, which may take its time.
        return Missing(result, None, (volume,)) if part.is_worked_out and not part.complete else None

    def filling(self, missing: Missing) -> Job[None]:
        """Return the work of what is missing."""
        labels = missing.result.labels

        def work(job: Job[None]) -> None:
            if missing.plane is not None:
                labels.finest(*missing.plane)
            else:
                labels.compute(job.tell, missing.volumes)

        return Job(work)

    def segmenting_all(self, result: Result) -> Job[None]:
        """Return the work of everything in a result that is not worked out; volumes are then cleaned whole."""
        return self.filling(Missing(result, None, result.labels.volumes))

    def refresh(self) -> None:
        """Draw anew what has been worked out."""
        for result in self.results:
            if result.layer.visible:
                result.layer.refresh(extent=False)

    def writing(self, given: LayerInput, folder: str | Path, suffix: str, *, overwrite: bool = False) -> Job[Path]:
        """Return the work of segmenting layers into a folder, as `segment` and `segment_volume` write it.

        Parameters
        ----------
        given : LayerInput
        folder : path
            Of several volumes each has its own folder in it.
        suffix : str
            ".png" or ".tif" for images; ".tif", ".zarr", ".h5" or ".npy" for volumes.
        overwrite : bool
            Replace what is in it.
        """
        model, classes, folder = self.trained(), self.edited().classes, Path(folder)

        def work(job: Job[Path]) -> Path:
            places: dict[str, Any] = {"suffix": suffix, "overwrite": overwrite, "on_progress": job.tell}
            if given.kind == "images":
                segment(model, given.images(), folder, classes=classes, **places)
            else:
                for where in np.ndindex(given.times):
                    place = folder.joinpath(*(f"{k:04d}" for k in where))
                    segment_volume(model, given.volume(where), place, classes=classes, **places)
            classes.save(folder / "classes.toml")
            return folder

        return Job(work)

    # Classes

    def _changed(self) -> None:
        assert self.editing is not None
        if self.editing.classes != self._shown:
            self._shown = self.editing.classes
            for result in self.results:
                result.labels = result.labels.with_classes(self._shown)
                result.layer.data = result.labels
        for result in self.results:
            self._draw(result)
        self._on_change()

    def _draw(self, result: Result) -> None:
        """Give a layer the colours and names of the classes, and what its writers need to know."""
        editing, layer = self.edited(), result.layer
        layer.editable = False
        layer.colormap = colours_of(editing.classes.classes, editing.selected)
        layer.features = features_of(editing.classes.classes, result.labels.blank)
        run = None if self.run is None else str(self.run)
        layer.metadata = {**layer.metadata, METADATA: {"classes": editing.classes.to_toml(), "run": run}}

    def _pick(self, layer: Any, event: Any) -> Iterator[None]:
        """Select the class below the mouse, or no longer so, by a click that is no drag."""
        start = np.array(event.pos)
        yield
        while event.type == "mouse_move":
            yield
        if self.editing is None or np.abs(np.array(event.pos) - start).max() > CLICK_PIXELS:
            return
        value = layer.get_value(
            event.position, view_direction=event.view_direction, dims_displayed=event.dims_displayed, world=True
        )
        if value is not None and self._shows(layer):
            self.editing.toggle(int(value))

    def _shows(self, layer: Any) -> bool:
        """Whether a layer shows the classes that are edited, and not those of an earlier model."""
        return any(result.layer is layer for result in self.results)

    def _on_key(self, action: str) -> Callable[[Any], None]:
        def act(layer: Any) -> None:
            if not self._shows(layer):
                return
            try:
                getattr(self.edited(), action)()
            except SpwnetError as error:
                if self._on_error is None:
                    raise
                self._on_error(error)

        return act

    def save_classes(self, path: str | Path | None = None) -> Path:
        """Write the classes to a file, or to the run directory, where the commands and the next session find them.

        Raises
        ------
        SettingsError
            If there is neither.
        """
        classes = self.edited().classes
        if path is not None:
            return classes.save(path)
        if self.run is None:
            raise SettingsError(
                "expected a file to save the classes in, because the model is in no run directory; give one"
            )
        Run(self.run).save_classes(classes)
        return Run(self.run).classes

    def load_classes(self, path: str | Path) -> None:
        """Take classes from a file.

        Raises
        ------
        SettingsError
            If it is none, or of another model.
        """
        base = self.edited().classes
        self.edited().replace(read_classes(path, base.n_finest, base.parents, base.model))

    # Scribbles

    def add_scribbles(self, given: LayerInput, names: Sequence[str] = ()) -> Any:
        """Add a layer to paint a few pixels of each class in: 1 is the first name, 2 the second, and so on."""
        marked = {METADATA: {"scribbles": True}}
        layer = Labels(np.zeros(given.shape, np.uint8), name="scribbles", metadata=marked, **given.placement())
        layer.brush_size = BRUSH_PIXELS
        self.viewer.add_layer(layer)
        # A layer that is added pans first.
        layer.mode = "paint"
        name_scribbles(layer, names)
        return layer

    def naming(self, layer: Any, names: Sequence[str], given: LayerInput) -> Job[ClassMap]:
        """Return the work of merging and naming the classes by what is painted in a layer; nothing is trained.

        What it gives is to take the place of the classes; planes that are painted and not worked out yet take time.

        Raises
        ------
        SpwnetError
            If a colour has no name, or the layer has another shape; if nothing is painted, from the work.
        """
        classes, found = self.edited().classes, self._result_of(given)
        labels = given.labels(self.trained(), classes) if found is None else found.labels
        painted = np.asarray(layer.data)
        if painted.shape != given.shape:
            raise InputError(
                f"expected scribbles of shape {given.shape} as '{given.name}' has, but '{layer.name}' has "
                f"{painted.shape}; paint in a layer that 'scribbles' has made"
            )
        points, planes = _points(painted, names)

        def work(job: Job[ClassMap]) -> ClassMap:
            finest = []
            for where in planes:
                job.tell(None)
                finest.append(labels.finest(*where))
            return from_points(classes, finest, points)

        return Job(work)


def is_scribbles(layer: Any) -> bool:
    """Whether `Session.add_scribbles` made a layer."""
    return "scribbles" in layer.metadata.get(METADATA, {})


def is_result(layer: Any) -> bool:
    """Whether `Session.segment` made a layer, with this model or another."""
    return "classes" in layer.metadata.get(METADATA, {})


def hexadecimal_colours(classes: Sequence[NamedClass]) -> dict[int, str]:
    """Return "#rrggbb" of each class by its id: its own colour, or that of its id in the palette."""
    default = palette(max(one.id for one in classes) + 1)
    return {one.id: one.colour or hexadecimal(default[one.id]) for one in classes}


def colours_of(classes: Sequence[NamedClass], selected: Sequence[int] = ()) -> DirectLabelColormap:
    """Return the colours of classes: those not selected are dim while some are; the background is clear."""
    colours: dict[int | None, tuple[float, ...]] = {None: (0.0, 0.0, 0.0, 0.0)}
    own = hexadecimal_colours(classes)
    for one in classes:
        rgb = bytes.fromhex(own[one.id][1:])
        opacity = 0.0 if one.background else 1.0
        if selected:
            opacity = 1.0 if one.id in selected else DIMMED * opacity
        colours[one.id] = (*(value / 255 for value in rgb), opacity)
    return DirectLabelColormap(color_dict=colours)


def features_of(classes: Sequence[NamedClass], blank: int | None = None) -> dict[str, list[Any]]:
    """Return the table by which napari says what is below the mouse, `blank` being what is not worked out."""
    names = {one.id: one.name for one in classes} | ({} if blank is None else {blank: "not worked out yet"})
    return {"index": list(names), "name": list(names.values())}


def name_scribbles(layer: Any, names: Sequence[str]) -> None:
    """Give the scribbles of each name the colour that its class will have."""
    rgb = palette(max(len(names), 1)) / 255
    colours: dict[int | None, tuple[float, ...]] = {None: (0.0, 0.0, 0.0, 1.0), 0: (0.0, 0.0, 0.0, 0.0)}
    colours |= {k: (*map(float, colour), 1.0) for k, colour in enumerate(rgb, start=1)}
    layer.colormap = DirectLabelColormap(color_dict=colours)
    layer.features = {"index": range(1, len(names) + 1), "name": list(names)}


def _points(
    painted: NDArray[np.integer[Any]], names: Sequence[str]
) -> tuple[dict[str, list[tuple[int, int, int]]], list[tuple[int, ...]]]:
    """Return {name: points} of what is painted, and the planes that the points number."""
    points: dict[str, list[tuple[int, int, int]]] = {name: [] for name in names}
    planes: list[tuple[int, ...]] = []
    for where in np.ndindex(painted.shape[:-2]):
        rows, columns = np.nonzero(painted[where])
        if not len(rows):
            continue
        for value, row, column in zip(painted[where][rows, columns], rows.tolist(), columns.tolist(), strict=True):
            if value > len(names):
                raise SettingsError(
                    f"expected scribbles of 1 to {len(names)}, as many as there are names, but got {value}; give it a "
                    "name, or paint over it"
                )
            points[names[value - 1]].append((len(planes), row, column))
        planes.append(where)
    return {name: places for name, places in points.items() if places}, planes


def picked_layers(viewer: Any, names: Sequence[str], kind: Literal["images", "volume"] | None = None) -> LayerInput:
    """Take the layers of these names for images or a volume, as `open_layers`.

    Raises
    ------
    InputError
        If there is none of a name, or as `open_layers`.
    """
    for name in names:
        if name not in viewer.layers:
            raise InputError(f"expected the layer '{name}', but there is none of this name any more; choose again")
    return open_layers([viewer.layers[name] for name in names], kind, viewer)

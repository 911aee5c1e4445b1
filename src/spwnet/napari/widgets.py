"""The panel in napari's window, in the order of work: image, training, labels, classes, scribbles."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from magicgui.types import FileDialogMode
from magicgui.widgets import (
    CheckBox,
    ComboBox,
    Container,
    FileEdit,
    FloatSpinBox,
    Label,
    LineEdit,
    ProgressBar,
    PushButton,
    Select,
    SpinBox,
)
from napari.layers import Image, Labels
from napari.qt.threading import create_worker
from napari.utils.notifications import show_error, show_info
from qtpy.QtGui import QColor, QIcon, QPixmap
from qtpy.QtWidgets import QColorDialog, QScrollArea, QTabWidget

from spwnet.errors import InputError, SpwnetError, Stopped
from spwnet.napari.logic import Session, hexadecimal_colours, is_result, is_scribbles, name_scribbles, picked_layers
from spwnet.napari.reading import chosen_frames, read_names, read_settings
from spwnet.outputs import data_uri
from spwnet.presets import PRESETS
from spwnet.previews import Snapshot, preview
from spwnet.training import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from spwnet.config import NamedClass
    from spwnet.naming import ClassMap
    from spwnet.napari.inputs import LayerInput
    from spwnet.napari.jobs import Job
    from spwnet.napari.logic import Missing

KINDS: dict[str, Literal["images", "volume"] | None] = {"by its shape": None, "images": "images", "volume": "volume"}
WIDTH = 330
"""Of the panel, at least, in pixels."""
TOUCHED = -1
"""In place of the id of a class that removed pieces become: the class that each touches most."""
PREVIEW_PIXELS = 300
"""Width of the previews of a training."""
MOST_PREVIEWS = 2
"""Training images in them."""
REDRAW_SECONDS = 1.0
"""Between two looks at what is worked out in the background."""


class PanelWidget(QTabWidget):
    """The panel as napari docks it.

    Parameters
    ----------
    napari_viewer : napari.Viewer

    Attributes
    ----------
    panel : Panel
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.panel = Panel(napari_viewer)
        for title, container in self.panel.pages.items():
            area = QScrollArea()
            area.setWidgetResizable(True)
            area.setWidget(container.native)
            self.addTab(area, title)
        self.setMinimumWidth(WIDTH)
        # Not bound to this widget, which is gone by then.
        self.destroyed.connect(self.panel.close)


class Panel:
    """Train on layers, show the classes, merge, name and clean them.

    Parameters
    ----------
    viewer : napari.components.ViewerModel

    Attributes
    ----------
    pages : dict of {str: magicgui Container}
        What belongs together, by its title.
    session : Session
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self.session = Session(viewer, self._update, self._fill, self._fail)
        self._job: Job[Any] | None = None
        self._filled: Job[Any] | None = None
        self._updating = False
        self._redrawn = 0.0
        self._offered: dict[str, Any] = {}
        pages = {
            "Train": [*self._make_image(), *self._make_training(), *self._make_labels(), self.preview],
            "Classes": self._make_classes(),
            "Scribbles": self._make_scribbles(),
        }
        self.pages: dict[str, Container[Any]] = {
            title: Container(widgets=widgets, labels=False) for title, widgets in pages.items()
        }
        for page in self.pages.values():
            page.native.layout().addStretch(1)
        events = viewer.layers.events
        # Older versions do not tell of new names; choosing is then asked for again.
        self._watched = [getattr(events, name) for name in ("inserted", "removed", "renamed") if hasattr(events, name)]
        for event in self._watched:
            event.connect(self._offer_layers)
        self._offer_layers()
        self._update()

    # Parts

    def _make_image(self) -> list[Any]:
        self.layers = Select(label="layers", choices=self._image_names, tooltip="Several are channels of one image.")
        self.layers.min_height = self.layers.max_height = 70
        self.kind = ComboBox(
            label="taken for", choices=list(KINDS), tooltip="Each plane an image by itself, or Z, Y and X a volume."
        )
        return [_title("Image"), _rows(self.layers, self.kind)]

    def _make_training(self) -> list[Any]:
        self.preset = ComboBox(
            label="preset", choices=list(PRESETS), tooltip="'instant' trains no network: it takes seconds."
        )
        self.frames = LineEdit(
            label="train on", tooltip="Nothing: some spread evenly. Or: auto, all, current, or numbers, 0, 4, 10-12."
        )
        self.more = LineEdit(label="settings", tooltip="training.epochs = 2; seed = 1")
        self.run = FileEdit(
            label="run folder",
            mode=FileDialogMode.EXISTING_DIRECTORY,
            nullable=True,
            value=None,
            tooltip="Keeps the model, if one is given.",
        )
        self.overwrite_run = CheckBox(label="overwrite", tooltip="Replace the run that is in the folder.")
        self.train = self._button("Train", self._train)
        self.keep = self._button("Stop and keep", self._keep, enabled=False)
        self.open = self._button("Open run", self._open_run, "Go on with the model of the run folder.")
        self.cancel = self._button("Cancel", self._cancel, enabled=False)
        self.bar = ProgressBar(min=0, max=1, value=0, visible=False)
        self.state = Label(value="")
        self.preview = Label(value="", visible=False)
        return [
            _title("Training"), _rows(self.preset, self.frames, self.more, self.run, self.overwrite_run),
            _row(self.train, self.open), self.bar, self.state, _row(self.keep, self.cancel),
        ]  # fmt: skip

    def _make_labels(self) -> list[Any]:
        self.show_classes = self._button(
            "Show classes", self._segment, "Where you look; other slices when you come there."
        )
        self.segment_all = self._button("Segment all", self._segment_all, "Everything, in the background.")
        self.folder = FileEdit(label="folder", mode=FileDialogMode.EXISTING_DIRECTORY, nullable=True, value=None)
        self.overwrite_folder = CheckBox(label="overwrite", tooltip="Replace what is in the folder.")
        self.suffix = ComboBox(label="format", choices=[".tif", ".png", ".zarr", ".h5", ".npy"])
        self.write = self._button("Segment into folder", self._write, "For what is larger than memory.")
        return [
            _title("Labels"), _row(self.show_classes, self.segment_all),
            _rows(self.folder, self.overwrite_folder, self.suffix), self.write,
        ]  # fmt: skip

    def _make_classes(self) -> list[Any]:
        self.number = SpinBox(
            label="how many", min=1, max=4096, value=1, tooltip="Begins anew, by the tree of the model."
        )
        self.classes = Select(tooltip="Or click on the classes in the image.")
        self.classes.min_height = 140
        self.name_edit = LineEdit(label="name", tooltip="Of the selected class; Enter gives it.")
        self.merge = self._button("Merge", self._do("merge"), "Shift-M")
        self.split = self._button("Split", self._do("split"), "Shift-S")
        self.background = self._button("Background", self._do("mark_background"), "Class 0, not drawn.")
        self.colour = self._button("Colour", self._choose_colour)
        self.undo = self._button("Undo", self._do("undo"), "Shift-U")
        self.redo = self._button("Redo", self._do("redo"), "Shift-R")
        self.deselect = self._button("Deselect", lambda: self.session.edited().select([]))
        self.smooth = FloatSpinBox(label="smooth borders", min=0, max=100, step=0.5, tooltip="Pixels.")
        self.fill_holes = SpinBox(label="fill holes below", min=0, max=10**9, tooltip="Pixels.")
        self.remove_objects = SpinBox(label="remove pieces below", min=0, max=10**9, tooltip="Pixels.")
        self.remove_to = ComboBox(label="they become", choices=[("what each touches most", TOUCHED)])
        self.keep_largest = CheckBox(label="only the largest piece")
        self.file = FileEdit(
            label="file", mode=FileDialogMode.OPTIONAL_FILE, filter="*.toml", nullable=True, value=None
        )
        self.save = self._button("Save classes", self._save, "To the file, or to the run folder if no file is given.")
        self.load = self._button("Load classes", self._load)
        self.number.changed.connect(lambda n: self._edit(lambda: self.session.edited().cut(n)))
        self.classes.changed.connect(lambda ids: self._edit(lambda: self.session.edited().select(ids or [])))
        self.name_edit.native.editingFinished.connect(self._name)
        for key in ("smooth", "fill_holes", "remove_objects", "keep_largest"):
            getattr(self, key).changed.connect(partial(self._change, key))
        self.remove_to.changed.connect(self._change_target)
        self.cleaning = (self.smooth, self.fill_holes, self.remove_objects, self.remove_to, self.keep_largest)
        return [
            _rows(self.number), self.classes, _rows(self.name_edit),
            _row(self.merge, self.split, self.deselect), _row(self.background, self.colour), _row(self.undo, self.redo),
            _title("Cleaning of the selected classes"), _rows(*self.cleaning),
            _rows(self.file), _row(self.save, self.load),
        ]  # fmt: skip

    def _make_scribbles(self) -> list[Any]:
        self.names = LineEdit(label="names", tooltip="matrix, fibre, pore: what the colours 1, 2, 3 stand for.")
        self.scribble = self._button("New scribbles", self._scribble, "A layer to paint a few pixels of each class in.")
        self.by_scribbles = self._button(
            "Name by scribbles", self._by_scribbles, "Merges and names; nothing is trained."
        )
        return [_rows(self.names), _row(self.scribble, self.by_scribbles)]

    def _button(self, text: str, act: Callable[[], Any], tooltip: str = "", *, enabled: bool = True) -> PushButton:
        button = PushButton(text=text, tooltip=tooltip, enabled=enabled)
        button.changed.connect(lambda _: self._try(act))
        return button

    # Image and training

    def _image_names(self, _: Any) -> list[str]:
        return list(self._offered)

    def _offer_layers(self, _: Any = None) -> None:
        chosen = [self._offered[name] for name in self.layers.value]
        self._offered = {layer.name: layer for layer in self._viewer.layers if isinstance(layer, Image)}
        self.layers.reset_choices()
        # Layers that have another name now stay chosen.
        names = [name for name, layer in self._offered.items() if layer in chosen]
        self.layers.value = names or list(self._offered)[-1:]

    def given(self) -> LayerInput:
        """Return the layers that are chosen, as what they are taken for."""
        return picked_layers(self._viewer, self.layers.value, KINDS[self.kind.value])

    def _train(self) -> None:
        given = self.given()
        run = _path(self.run)
        job = self.session.training(
            given,
            read_settings(self.preset.value, self.more.value),
            chosen_frames(self.frames.value, given, self._viewer),
            run=run,
            overwrite=self.overwrite_run.value,
        )

        def use(model: Any) -> None:
            self.session.use(model, run)
            self.session.segment(given)

        self._start(job, use, "reading")
        self.keep.enabled = True

    def _open_run(self) -> None:
        self.session.open_run(_needed(self.run, "run folder to open"))
        if self.layers.value:
            self.session.segment(self.given())
            self._look()

    # Segmenting

    def _segment(self) -> None:
        self.session.segment(self.given())
        self._look()

    def _segment_all(self) -> None:
        result = self.session.segment(self.given())
        self._start(self.session.segmenting_all(result), lambda _: self.session.refresh(), "segmenting")

    def _write(self) -> None:
        folder = _needed(self.folder, "folder to segment into")
        job = self.session.writing(self.given(), folder, str(self.suffix.value), overwrite=self.overwrite_folder.value)
        self._start(job, lambda place: show_info(f"The labels are in {place}"), "segmenting")

    def _look(self) -> None:
        if missing := self.session.look():
            self._fill(missing)

    def _fill(self, missing: Sequence[Missing]) -> None:
        """Work out what is looked at, one plane after another: where the user has gone on since, that comes next.

        What takes longer, volumes whole, is the one piece of work that has the progress bar.
        """
        if missing[0].plane is None:
            if self._job is None:
                self._start(self.session.filling(missing[0]), lambda _: self.session.refresh(), "segmenting")
            return
        if self._filled is not None:
            return
        self._filled = self.session.filling(missing[0])
        if self._job is None:
            self.state.value = "working out what you look at …"

        def settle() -> None:
            self._filled = None
            if self._job is None:
                self.state.value = ""

        def done(_: Any) -> None:
            self.session.refresh()
            self._look()

        self._work(self._filled, done, settle, self._redraw)

    # Work in the background

    def _start(self, job: Job[Any], use: Callable[[Any], None], what: str) -> None:
        """Begin the one piece of work that has the progress bar."""
        if self._job is not None:
            raise InputError("expected to do one thing at a time, but something is going on; wait for it, or cancel it")
        self._job = job
        self.bar.max, self.bar.value, self.bar.visible = 1, 0, True
        self.state.value = f"{what} …"
        self._allow()

        def settle() -> None:
            self._job = None
            self.bar.visible = self.preview.visible = self.keep.enabled = False
            self.state.value = ""
            self._allow()

        def done(found: Any) -> None:
            use(found)
            self._look()

        self._work(job, done, settle, self._follow)

    def _work(
        self, job: Job[Any], use: Callable[[Any], None], settle: Callable[[], None], follow: Callable[[Any], None]
    ) -> None:
        """Do a job in the background, `settle` when it is over, and use what it gives."""

        def go() -> Generator[Any, None, tuple[Any, SpwnetError | None]]:
            # As an error it would be shown with its traceback.
            try:
                return (yield from job.news()), None
            except SpwnetError as error:
                return None, error

        def end(outcome: tuple[Any, SpwnetError | None]) -> None:
            settle()
            found, error = outcome
            if error is not None:
                self._fail(error)
            else:
                self._try(lambda: use(found))

        create_worker(go, _connect={"yielded": follow, "returned": end, "errored": lambda _: settle()})

    def _keep(self) -> None:
        if self._job is not None:
            self._job.keep()

    def _cancel(self) -> None:
        if self._job is not None:
            self._job.stop()

    def close(self) -> None:
        """Let everything stop that goes on in the background, and look at the viewer no more."""
        self.session.close()
        for event in self._watched:
            event.disconnect(self._offer_layers)
        for job in (self._job, self._filled):
            if job is not None:
                job.close()

    def _follow(self, news: Any) -> None:
        if isinstance(news, Progress):
            self.bar.max, self.bar.value = news.total, news.done
            loss = f", loss {news.values['total']:.3g}" if "total" in news.values else ""
            self.state.value = f"{news.done} of {news.total}, {_time(news.seconds_left)} left{loss}"
            if news.stage == "segment":
                self._redraw(news)
        elif isinstance(news, Snapshot):
            picture = preview(replace(news, rows=news.rows[:MOST_PREVIEWS]))
            self.preview.value = f'<img src="{data_uri(picture, PREVIEW_PIXELS)}">'
            self.preview.visible = True

    def _redraw(self, _: Any) -> None:
        now = time.monotonic()
        if now - self._redrawn > REDRAW_SECONDS:
            self._redrawn = now
            self.session.refresh()

    # Classes

    def _do(self, action: str) -> Callable[[], None]:
        return lambda: getattr(self.session.edited(), action)()

    def _edit(self, what: Callable[[], None]) -> None:
        """Follow the user, not what this panel shows by itself."""
        if not self._updating:
            self._try(what)

    def _name(self) -> None:
        name = self.name_edit.value.strip()
        if name and self._chosen() and name != self._chosen()[0].name:
            self._edit(lambda: self.session.edited().change(name=name))

    def _change(self, key: str, value: Any) -> None:
        self._edit(lambda: self.session.edited().change(**{key: value}))

    def _change_target(self, k: int) -> None:
        self._edit(lambda: self.session.edited().change(remove_to=None if k == TOUCHED else k))

    def _choose_colour(self) -> None:
        editing, chosen = self.session.edited(), self._chosen()
        colour = QColorDialog.getColor(QColor(hexadecimal_colours(chosen)[chosen[0].id]) if chosen else QColor())
        if colour.isValid():
            editing.change(colour=colour.name())

    def _chosen(self) -> list[NamedClass]:
        editing = self.session.editing
        return [] if editing is None else [editing.classes.find(k) for k in editing.selected]

    def _update(self) -> None:
        """Show classes and selection as they are."""
        editing = self.session.editing
        self._updating = True
        try:
            if editing is not None:
                entries = editing.classes.classes
                self.number.max = editing.classes.n_finest
                self.number.value = min(len(entries), self.number.max)
                # Emptied first: of choices that stay, those that are new come last.
                self.classes.choices = []
                self.classes.choices = [(f"{one.id}  {one.name}", one.id) for one in entries]
                self.classes.value = list(editing.selected)
                for row, colour in enumerate(hexadecimal_colours(entries).values()):
                    pixmap = QPixmap(14, 14)
                    pixmap.fill(QColor(colour))
                    self.classes.native.item(row).setIcon(QIcon(pixmap))
                chosen = self._chosen()
                others = [(f"{one.id}  {one.name}", one.id) for one in entries if one not in chosen]
                self.remove_to.choices = [("what each touches most", TOUCHED), *others]
                self._show_class(chosen[0] if chosen else None)
        finally:
            self._updating = False
        self._allow()
        self._look()

    def _show_class(self, one: NamedClass | None) -> None:
        self.name_edit.value = "" if one is None else one.name
        self.smooth.value, self.fill_holes.value = (0, 0) if one is None else (one.smooth, one.fill_holes)
        self.remove_objects.value = 0 if one is None else one.remove_objects
        self.keep_largest.value = one is not None and one.keep_largest
        to = TOUCHED if one is None or one.remove_to is None else one.remove_to
        self.remove_to.value = to if to in self.remove_to.choices else TOUCHED

    def _allow(self) -> None:
        """Offer what can be done now."""
        editing, busy = self.session.editing, self._job is not None
        chosen = len(editing.selected) if editing is not None else 0
        self.cancel.enabled = busy
        for button in (self.train, self.open):
            button.enabled = not busy
        for button in (self.show_classes, self.segment_all, self.write):
            button.enabled = editing is not None and (not busy or button is self.show_classes)
        everywhere: tuple[Any, ...] = (self.number, self.classes, self.save, self.load, self.by_scribbles)
        for widget in everywhere:
            widget.enabled = editing is not None
        self.merge.enabled = chosen > 1
        for widget in (self.split, self.colour, self.deselect, *self.cleaning):
            widget.enabled = chosen > 0
        self.name_edit.enabled = self.background.enabled = chosen == 1
        self.undo.enabled = editing is not None and editing.can_undo
        self.redo.enabled = editing is not None and editing.can_redo

    def _save(self) -> None:
        show_info(f"The classes are in {self.session.save_classes(_path(self.file))}")

    def _load(self) -> None:
        self.session.load_classes(_needed(self.file, "file of classes to load"))

    # Scribbles

    def _scribble(self) -> None:
        self.session.add_scribbles(self.given(), read_names(self.names.value))

    def _by_scribbles(self) -> None:
        names = read_names(self.names.value)
        layer = self._viewer.layers.selection.active
        if not isinstance(layer, Labels) or is_result(layer):
            layer = next((one for one in reversed(self._viewer.layers) if is_scribbles(one)), None)
        if layer is None:
            raise InputError(
                "expected a layer of scribbles, but there is none; make one by 'New scribbles' and paint in it"
            )

        def use(classes: ClassMap) -> None:
            self.session.edited().replace(classes)
            if is_scribbles(layer):
                name_scribbles(layer, names)

        self._start(self.session.naming(layer, names, self.given()), use, "naming")

    # What goes wrong

    def _try(self, what: Callable[[], Any]) -> None:
        try:
            what()
        except SpwnetError as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        (show_info if isinstance(error, Stopped) else show_error)(str(error))
        self._update_quietly()

    def _update_quietly(self) -> None:
        """Take back what the panel shows of a change that was refused."""
        self._updating = True
        try:
            if self.session.editing is not None:
                self.number.value = len(self.session.editing.classes.classes)
            chosen = self._chosen()
            if chosen:
                self._show_class(chosen[0])
        finally:
            self._updating = False


def _path(edit: FileEdit) -> Path | None:
    value = edit.value
    return value if isinstance(value, Path) and str(value) != "." else None


def _needed(edit: FileEdit, what: str) -> Path:
    path = _path(edit)
    if path is None:
        raise InputError(f"expected a {what}, but none is given; choose one")
    return path


def _title(text: str) -> Label:
    return Label(value=f"<b>{text}</b>")


def _rows(*widgets: Any) -> Container[Any]:
    return Container(widgets=list(widgets), labels=True)


def _row(*widgets: Any) -> Container[Any]:
    return Container(widgets=list(widgets), layout="horizontal", labels=False)


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"

"""The page of a run: its training images, classes to be merged, named and cleaned, losses and settings."""

from __future__ import annotations

import hashlib
import json
import threading
import zlib
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.charting import History
from spwnet.classes import clean, hexadecimal, legend, palette
from spwnet.config import LabelSettings, Settings
from spwnet.errors import OutputError, RunError
from spwnet.gallery import NEVER, read_gallery
from spwnet.outputs import data_uri, overlay
from spwnet.presets import flat
from spwnet.runs import Run
from spwnet.serving import Page, Server
from spwnet.storage import atomic_write

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spwnet.gallery import Exhibit
    from spwnet.naming import ClassMap

MOST_BYTES = 9 * 2**20
"""Of the pictures on a page: with all else it stays below 10 MiB."""
LARGEST = 2048
"""Pixels along the longer side of a picture on a page."""
LARGEST_LOSS = 1e38
CITATION = (
    "K. Leng, R. Atwood, W. Kockelmann, D. Chekrygina, J. Thiyagalingam. SP-WNet: Unsupervised Image Segmentation with "
    "Dense Representative Learning and Sparse Labelling. Science and Technology Facilities Council, 2022."
)


class ClassPage:
    """What the page of a run shows, and what it does when it is served.

    Parameters
    ----------
    run : path
        Directory of a finished run.

    Raises
    ------
    RunError
        If the run is not finished, is damaged, or keeps nothing of its training images.
    """

    def __init__(self, run: str | Path) -> None:
        self._run = Run(run)
        self._model = self._run.load()
        gallery = read_gallery(self._run.gallery)
        self._measures = gallery.classes
        self._check()
        try:
            self._history = [entry for entry in self._run.read_history() if _whole(entry)]
        except OutputError as error:
            raise RunError(
                f"expected the losses of a run in {self._run.history}, but a line of it is damaged; delete the file, "
                "or train the run again"
            ) from error
        self._exhibits, self._images = _fitting(gallery.exhibits)
        self._left_out = len(gallery.exhibits) - len(self._exhibits)
        self._lock = threading.Lock()

    def _check(self) -> None:
        """Check what the page shows of the run and nothing else reads."""
        model, channels = self._model, self._model.info["channels"]
        whole = [not one["pixels"] or len(one["means"] or ()) == channels for one in self._measures]
        if len(whole) != model.n_finest or not all(whole):
            raise RunError(
                f"expected measures of {model.n_finest} finest classes in {channels} channels at {self._run.gallery}, "
                "but they are of another run or damaged; train the run again"
            )
        images = model.info.get("images")
        kinds = {"name": str, "shape": list, "working_shape": list, "sha256": str}
        if not isinstance(images, list) or not all(
            isinstance(one, dict) and all(isinstance(one.get(key), kind) for key, kind in kinds.items())
            for one in images
        ):
            raise RunError(
                f"expected {', '.join(kinds)} of each training image in {self._run.description}, but they are missing "
                "or damaged; train the run again"
            )

    @property
    def name(self) -> str:
        """What the page calls the run: its folder and the one around it, since many runs are called "run"."""
        return "/".join(self._run.folder.resolve().parts[1:][-2:])

    def page(self, *, served: bool) -> Page:
        """Return the page with the classes as they are now.

        Parameters
        ----------
        served : bool
            Whether `routes` answer it; without them it keeps classes by offering them as a download.

        Raises
        ------
        SettingsError
            If ``classes.toml`` is not of this run.
        """
        with self._lock:
            classes, version = self._run.class_map(self._model), self._run.classes_version()
        model = self._model
        tree = model.codebook
        data = {
            "served": served,
            "version": version,
            "place": str(self._run.classes),
            "run": str(self._run.folder),
            "solid": model.solid,
            "model": classes.model,
            "finest": classes.n_finest,
            "parents": classes.parents,
            "heights": None if tree is None else [float(height) for height in tree.heights],
            "suggested": classes.n_finest if tree is None else tree.suggested,
            "palette": [hexadecimal(colour) for colour in palette(classes.n_finest)],
            "images": self._images,
            "measures": self._measures,
            "classes": classes.to_json(),
        }
        history = History()
        for entry in self._history:
            values = dict(entry)
            history.add(int(values.pop("step")), values)
        return Page(
            "classes.html",
            {
                "name": self.name,
                "served": served,
                "data": data,
                "left_out": self._left_out,
                "solid": model.solid,
                "channels": model.normalisation.low,
                "rows": self._rows(classes),
                "sketch": self._sketch(classes),
                "chart": history.chart().to_json(),
                "losses": _losses(self._history),
                "facts": self._facts(),
                "trained_on": model.info["images"],
                "settings": _settings(model.settings),
                "citation": CITATION,
            },
        )

    def _rows(self, classes: ClassMap) -> list[dict[str, Any]]:
        """Return the table of classes for where no script runs."""
        total = max(sum(entry["pixels"] for entry in self._measures), 1)
        rows = []
        for one in classes.classes:
            members = [self._measures[k] for k in one.members if self._measures[k]["pixels"]]
            pixels = sum(entry["pixels"] for entry in members)
            means = None
            if pixels:
                means = np.sum([np.multiply(entry["means"], entry["pixels"] / pixels) for entry in members], axis=0)
            rows.append(
                {"id": one.id, "name": one.name, "share": pixels / total, "means": [] if means is None else means}
            )
        return rows

    def _sketch(self, classes: ClassMap) -> str:
        """Return the first picture with its classes, for where no script runs."""
        shown = self._exhibits[0]
        colours = legend(classes.labels(), max(one.id for one in classes.classes) + 1)
        labels = classes.table()[shown.labels]
        return data_uri(overlay(shown.picture, labels, colours.colours, clear=colours.background), 640)

    def _facts(self) -> dict[str, str]:
        """Return what made the run, to be read."""
        info = self._model.info
        facts = {
            "Training images": str(len(info["images"])),
            "Channels": str(info["channels"]),
            "Score without truth": str(info.get("score", "")),
            "Time": f"{info['seconds']} s" if "seconds" in info else "",
            "Device": f"{info.get('device', '')}, {info.get('precision', '')}".strip(", "),
            "Finished": str(info.get("time", "")),
        }
        names = ("spwnet", "torch", "numpy", "scikit-image", "python", "platform")
        facts |= {name: str(info[name]) for name in names if name in info}
        facts["Fingerprint"] = self._model.fingerprint
        return {name: text for name, text in facts.items() if text}

    def routes(self) -> dict[tuple[str, str], Any]:
        """Return what answers the page when it is served, for a `Server`."""
        return {
            ("GET", ""): lambda: self.page(served=True),
            ("POST", "save"): self._save,
            ("POST", "preview"): self._preview,
        }

    def _save(self, body: dict[str, Any]) -> dict[str, Any]:
        """Write the classes that came, unless the file is no longer what the page began from."""
        with self._lock:
            classes = self._model.class_map().from_json(body.get("classes"))
            version = self._run.classes_version()
            # What is there already was saved by this page, whose answer was lost or has not come yet.
            same = version == hashlib.sha256(classes.to_toml().encode()).hexdigest()
            if body.get("overwrite") is not True and not same and version != body.get("version"):
                return {"saved": False}
            self._run.save_classes(classes)
            return {"saved": True, "version": self._run.classes_version()}

    def _preview(self, body: dict[str, Any]) -> dict[str, Any]:
        """Clean the classes that came in the pictures of the page."""
        classes = self._model.class_map().from_json(body.get("classes"))
        settings, table = classes.labels(self._model.settings.labels), classes.table()
        found, changed, pixels = [], 0, 0
        with self._lock:
            for exhibit in self._exhibits:
                labels = table[exhibit.labels]
                cleaned = clean(labels, _thinned(settings, self._step(exhibit)))
                found.append(_packed(cleaned))
                changed += int((cleaned != labels).sum())
                pixels += labels.size
        return {"labels": found, "changed": changed / pixels}

    def _step(self, exhibit: Exhibit) -> int:
        """Every how many-th row and column a picture shows of those that are cleaned."""
        if self._model.solid:
            # Volumes are cleaned in stored voxels.
            left, right = exhibit.region[1]
            return max(1, round((right - left) / int(exhibit.labels.shape[1])))
        shapes = [image.get("working_shape") for image in self._model.info["images"] if image["name"] == exhibit.name]
        return max(1, round(shapes[0][-1] / exhibit.labels.shape[1])) if shapes and shapes[0] else 1


def _fitting(exhibits: tuple[Exhibit, ...]) -> tuple[list[Exhibit], list[dict[str, Any]]]:
    """Take as many images as a page can hold, one at least, and encode them."""
    taken: list[Exhibit] = []
    images: list[dict[str, Any]] = []
    size = 0
    for exhibit in exhibits:
        doubt = exhibit.uncertainty
        image = {
            "name": exhibit.name,
            "width": exhibit.labels.shape[1],
            "height": exhibit.labels.shape[0],
            "picture": data_uri(exhibit.picture, LARGEST),
            "labels": _packed(exhibit.labels),
            "uncertainty": None if doubt is None else _packed(np.rint(doubt * NEVER).astype(np.int32)),
        }
        size += len(json.dumps(image))
        if images and size > MOST_BYTES:
            break
        taken.append(exhibit)
        images.append(image)
    return taken, images


def _packed(values: NDArray[np.int32]) -> dict[str, Any]:
    """Pack numbers for a page: bytes, or pairs of them, lowest first."""
    kind = "<u1" if values.max() < 256 else "<u2"
    return {"bytes": int(kind[-1]), "data": b64encode(zlib.compress(values.astype(kind).tobytes(), 9)).decode()}


def _thinned(settings: LabelSettings, step: int) -> LabelSettings:
    """Return the cleaning for pictures of every `step`-th row and column."""
    if step == 1:
        return settings

    def fewer(pixels: int) -> int:
        return -(-pixels // step**2)

    named = [
        one.model_copy(
            update={
                "smooth": one.smooth / step,
                "fill_holes": fewer(one.fill_holes),
                "remove_objects": fewer(one.remove_objects),
            }
        )
        for one in settings.named
    ]
    return settings.model_copy(
        update={
            "named": tuple(named),
            "fill_holes": fewer(settings.fill_holes),
            "remove_objects": fewer(settings.remove_objects),
        }
    )


def _whole(entry: Any) -> bool:
    """Whether a line of the history is one: a step, and losses as float32 has them."""
    return (
        isinstance(entry, dict)
        and "step" in entry
        and all(isinstance(value, int | float) and abs(value) < LARGEST_LOSS for value in entry.values())
    )


def _losses(history: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Return first, lowest and last value of each loss, what the curves say in numbers."""
    names = dict.fromkeys(name for entry in history for name in entry if name != "step")
    columns = {name: [entry[name] for entry in history if name in entry] for name in names}
    return [{"name": name, "first": v[0], "lowest": min(v), "last": v[-1]} for name, v in columns.items()]


def _settings(settings: Settings) -> list[dict[str, str]]:
    """Return every setting with its value, and the default where that is another."""
    own, default = (flat(one.model_dump(mode="json")) for one in (settings, Settings()))
    return [
        {
            "name": name,
            "value": json.dumps(value, ensure_ascii=False),
            "default": "" if value == default[name] else json.dumps(default[name], ensure_ascii=False),
        }
        for name, value in own.items()
    ]


def report(run: str | Path, output: str | Path | None = None, *, overwrite: bool = False) -> Path:
    """Write what a run has come to as one HTML file that works offline: pictures, classes, losses, settings.

    Parameters
    ----------
    run : path
        Directory of a finished run.
    output : path, optional
        The file; ``report.html`` in the run directory if not given.
    overwrite : bool
        Replace a file of that name.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    RunError
        If the run is not finished, is damaged, or keeps nothing of its training images.
    SettingsError
        If ``classes.toml`` is not of this run.
    OutputError
        If the file is there already, is not named .html or .htm, or cannot be written.
    """
    path = Run(run).report if output is None else Path(output)
    if path.exists() and not overwrite:
        raise OutputError(
            f"expected a new file for the report, but {path} is there already; choose another one, or pass "
            "`overwrite=True` / `--overwrite` to replace it"
        )
    if path.suffix.lower() not in (".html", ".htm"):
        raise OutputError(f"expected a report named .html, but got '{path.name}'; rename it")
    atomic_write(path, ClassPage(run).page(served=False).render("report").encode())
    return path


def view(run: str | Path, *, port: int = 0) -> Server:
    """Serve the page of a run on this machine: to look, merge, name and clean its classes, and to save them.

    Parameters
    ----------
    run : path
        Directory of a finished run.
    port : int
        A free one if 0.

    Returns
    -------
    Server
        Which answers already, at its `url`, until `close` or the end of the program.

    Raises
    ------
    RunError
        If the run is not finished, is damaged, or keeps nothing of its training images.
    SettingsError
        If the port is taken, or ``classes.toml`` is not of this run.

    Examples
    --------
    >>> with spwnet.view("results/run") as page:  # doctest: +SKIP
    ...     input(f"{page.url} - press Enter when done")
    """
    shown = ClassPage(run)
    # What cannot be shown is to be said here, not when the browser asks.
    shown.page(served=True).render()
    return Server(shown.routes(), port=port).start()

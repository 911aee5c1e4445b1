"""The folder of a segmentation: every file name, what is in each, and going on from what is there."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from spwnet.classes import Legend, hexadecimal, legend
from spwnet.errors import InputError, OutputError
from spwnet.outputs import overlay, provenance, write_labels, write_picture
from spwnet.steadying import Before
from spwnet.storage import (
    append_line,
    atomic_write,
    parse_json,
    prepare_folder,
    read_lines,
    readable_errors,
    write_json,
)
from spwnet.videowriting import PART, VideoParts

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from spwnet.config import LabelSettings
    from spwnet.trained import TrainedModel
    from spwnet.videowriting import Track

logger = logging.getLogger(__name__)

VIDEOS = ("labels", "overlay", "uncertainty")
"""Names of the videos of a segmentation."""


@dataclass(frozen=True)
class Prediction:
    """Labels of one image.

    Attributes
    ----------
    name : str
    labels : (H, W) int32 array
        Class of each pixel, in the size of the input.
    uncertainty : (H, W) float32 array in 0…1, or None if not asked for
        How uncertain each pixel is: 0 is sure.
    areas : dict of {int: int}
        Pixels of each class that occurs.
    picture : (h, w, 3) uint8 array or None
        Every `stride`-th pixel of the input, to draw the classes over.
    stride : int
    sha256 : str or None
        Fingerprint of the input, if asked for.
    now : Before or None
        What is carried to the next frame, if labels are made steady.
    """

    name: str
    labels: NDArray[np.int32]
    uncertainty: NDArray[np.float32] | None
    areas: dict[int, int]
    picture: NDArray[np.uint8] | None
    stride: int
    sha256: str | None
    now: Before | None = None


class Results:
    """The folder of a segmentation: writes labels and overlays as they come, and knows what is written already.

    ::

        FOLDER/
          segmentation.json     settings, versions, seed, classes with areas and colours, their tree, images
          labels/NAME.png       class ids, in the size of the input
          uncertainty/NAME.png  how uncertain each pixel is, 0 to 255, if asked for
          overlays/NAME.jpg     the classes drawn over the input, which is thinned if it is large
          labels.mp4            instead of these three folders: the class ids as a lossless video,
          uncertainty.mp4       0 to 255 likewise,
          overlay.mp4           and a video to look at
          images.jsonl          the images written so far, while work goes on
          carried_000032.npz    what the frame before that number hands on, while work goes on
          parts/                of the videos, while work goes on

    Parameters
    ----------
    folder : path
    model : TrainedModel
    cleaning : LabelSettings
    names : sequence of str
        Of all the images, in order; `write` speaks of their positions here.
    n_classes : int
        Class ids are below it.
    suffix : str
        Of the label images; ".mp4" writes videos.
    overlays : bool or "full"
        Write these, too.
    uncertainty : bool
        Write this, too.
    stride : int
        Step between the rows, and columns, of the overlays of a video.
    overwrite, resume : bool
        What to do with a folder that is not empty.
    steady : bool
        Whether each image is labelled in the light of the one before.
    track : Track, optional
        For videos.
    source : str, optional
        Fingerprint of a video that is segmented.

    Raises
    ------
    OutputError
        If the folder cannot be written, holds something, or holds another segmentation to go on from.
    """

    def __init__(
        self,
        folder: str | Path,
        model: TrainedModel,
        cleaning: LabelSettings,
        *,
        names: Sequence[str],
        n_classes: int,
        suffix: str,
        overlays: bool | Literal["full"],
        uncertainty: bool,
        overwrite: bool,
        resume: bool,
        stride: int = 1,
        steady: bool = False,
        track: Track | None = None,
        source: str | None = None,
    ) -> None:
        self.folder, self.suffix, self.model = Path(folder), suffix, model
        self.names, self.n_classes, self.track, self.steady = tuple(names), n_classes, track, steady
        self.stride = stride
        self.legend = legend(cleaning, n_classes)
        self.summary, self.journal = self.folder / "segmentation.json", self.folder / "images.jsonl"
        self.head: dict[str, Any] = {
            "complete": False,
            "model": model.fingerprint,
            "suffix": suffix,
            "overlays": overlays,
            "uncertainty": uncertainty,
            "steady": steady,
            "labels": json.loads(cleaning.model_dump_json()),
        }
        if track is not None:
            self.head |= {"time_base": str(track.time_base)}
        if steady or track is not None:
            # Where each image builds on those before it, others in another order are other work.
            order = hashlib.sha256(json.dumps(self.names).encode()).hexdigest()
            self.head |= {"source": source, "frames": len(self.names), "names": order}
        self.tree = None
        if cleaning.mode == "codebook" and model.codebook is not None and not cleaning.named:
            self.tree = model.codebook.tree(n_classes)
        prepare_folder(self.folder, overwrite=overwrite, resume=resume)
        self.done: dict[str, dict[str, Any]] = {}
        self.unreadable: dict[str, str] = {}
        self.complete = False
        self._upto = 0
        self._pending: dict[str, dict[str, Any]] = {}
        self._now: Before | None = None
        if resume and self.summary.exists():
            before = self._read_summary()
            self._check_same_work(before)
            self.complete = before.get("complete") is True
            self.done = self._written()
            if track is None:
                self.done = {name: entry for name, entry in self.done.items() if self._label_file(name).exists()}
        elif overwrite:
            self._remove_earlier()
        self.videos = self._open_videos()
        if self.complete:
            # A crash right after the summary leaves the parts of videos that are whole, and the journal.
            for video in self.videos.values():
                video.remove_parts()
            self._forget()
        else:
            self.open()

    def open(self) -> None:
        """Say that the folder is not complete, before the first image is written."""
        self.complete = False
        write_json(self.summary, {**self.head, "images": self.done if self.track is None else {}})
        if self.track is None:
            prepare_folder(self.folder / "labels", resume=True)
            for name in ("overlays", "uncertainty"):
                if self.head[name]:
                    prepare_folder(self.folder / name, resume=True)

    def begin(self) -> tuple[int, Before | None]:
        """Return the position to go on from where images are worked on strictly in order, and what is carried to it."""
        upto = self._upto
        if self.track is None:
            # Those that cannot be read are tried again, but not at the price of all the others.
            there = self.done.keys() | (self.unreadable if self.complete else {})
            upto = next((k for k, name in enumerate(self.names) if name not in there), len(self.names))
        elif self.complete:
            upto = len(self.names)
        if not self.steady or upto == len(self.names):
            return upto, None
        carried = self._carried()
        start = max((position for position in carried if position <= upto), default=0)
        if start == 0:
            return 0, None
        with readable_errors(carried[start]):
            self._now = Before.from_bytes(carried[start].read_bytes())
        return start, self._now

    def _open_videos(self) -> dict[str, VideoParts]:
        if self.track is None:
            return {}
        common: dict[str, Any] = {
            "size": self.track.size, "time_base": self.track.time_base, "rate": self.track.rate
        }  # fmt: skip
        paths = {name: self.folder / f"{name}.mp4" for name in VIDEOS}
        videos = {"labels": VideoParts(paths["labels"], kind="labels", n_classes=self.n_classes, **common)}
        if self.head["overlays"]:
            height, width = (-(-size // self.stride) for size in self.track.size)
            videos["overlay"] = VideoParts(paths["overlay"], kind="overlay", **{**common, "size": (height, width)})
        if self.head["uncertainty"]:
            videos["uncertainty"] = VideoParts(paths["uncertainty"], kind="labels", n_classes=256, **common)
        return videos

    def _carried(self) -> dict[int, Path]:
        """Files of what is carried, by the position that it is carried to."""
        files = ((re.fullmatch(r"carried_(\d{6,18})\.npz", file.name), file) for file in self.folder.iterdir())
        return {int(found[1]): file for found, file in files if found}

    def _label_file(self, name: str) -> Path:
        return self.folder / "labels" / f"{name}{self.suffix}"

    def _read_summary(self) -> dict[str, Any]:
        with _readable(self.summary):
            return dict(parse_json(self.summary.read_text(encoding="utf-8")))

    def _written(self) -> dict[str, dict[str, Any]]:
        """Images written so far, {name: {"sha256": of the image, "areas": {class: pixels}}}."""
        summary = self._read_summary()
        with _readable(self.summary):
            entries = _entries(summary.get("images", {}))
            self.unreadable = dict(summary.get("unreadable", {}))
        with _readable(self.journal):
            for record in read_lines(self.journal):
                if "upto" in record:
                    self._upto = max(self._upto, int(record["upto"]))
                    self.unreadable |= dict(record["unreadable"])
                    entries |= _entries(record["images"])
                else:
                    entries |= _entries({record.pop("name"): record})
        return entries

    def _remove_earlier(self) -> None:
        """Remove what an earlier segmentation wrote: its classes mean something else."""
        if self.summary.exists():
            try:
                earlier = self._written()
            except OutputError as error:
                logger.warning("files of an earlier segmentation in %s may be left: %s", self.folder, error)
                earlier = {}
            for name in earlier:
                (self.folder / "overlays" / f"{name}.jpg").unlink(missing_ok=True)
                (self.folder / "uncertainty" / f"{name}.png").unlink(missing_ok=True)
                for suffix in (".png", ".tif", ".tiff"):
                    (self.folder / "labels" / f"{name}{suffix}").unlink(missing_ok=True)
            for name in VIDEOS:
                one = Fraction(1)
                VideoParts(
                    self.folder / f"{name}.mp4", kind="overlay", size=(1, 1), time_base=one, rate=one
                ).remove_earlier()
        self._upto, self.unreadable = 0, {}
        self._forget()

    def _forget(self) -> None:
        """Remove what only work in progress needs."""
        for file in (self.journal, *self._carried().values()):
            file.unlink(missing_ok=True)

    def _check_same_work(self, before: dict[str, Any]) -> None:
        for key, value in self.head.items():
            if key != "complete" and before.get(key) != value:
                raise OutputError(
                    f"expected the segmentation in {self.folder} to be of the same model, settings and input, but its "
                    f"'{key}' differs; write to another folder, or use `--overwrite`"
                )

    def write(self, position: int, outcome: Prediction | InputError) -> None:
        """Write one image: labels, uncertainty, overlay, and what the summary says of it; or that it cannot be read."""
        name = self.names[position]
        if isinstance(outcome, InputError):
            self.unreadable[name] = str(outcome)
        else:
            self._now = outcome.now
            self.unreadable.pop(name, None)
            entry: dict[str, Any] = {"areas": outcome.areas}
            if outcome.sha256 is not None:
                entry = {"sha256": outcome.sha256, **entry}
            if self.track is None:
                self._write_images(outcome)
                # Last, so that an image in the journal is an image whose files are complete.
                append_line(self.journal, {"name": name, **entry})
                self.done[name] = entry
            else:
                self._write_frames(position, outcome)
                self._pending[name] = {**entry, "timestamp": self.track.timestamps[position]}
        if (self.track is not None or self.steady) and (position + 1) % PART == 0:
            self._checkpoint(position + 1)

    def _write_images(self, prediction: Prediction) -> None:
        name, labels, stride = prediction.name, prediction.labels, prediction.stride
        write_labels(self._label_file(name), labels, self.n_classes)
        if prediction.uncertainty is not None:
            write_picture(self.folder / "uncertainty" / f"{name}.png", _as_bytes(prediction.uncertainty))
        if prediction.picture is not None:
            drawn = self._drawn(prediction, stride)
            write_picture(self.folder / "overlays" / f"{name}.jpg", drawn)

    def _drawn(self, prediction: Prediction, stride: int) -> NDArray[np.uint8]:
        assert prediction.picture is not None
        ids = prediction.labels[::stride, ::stride]
        return overlay(prediction.picture, ids, self.legend.colours, clear=self.legend.background)

    def _write_frames(self, position: int, prediction: Prediction) -> None:
        assert self.track is not None
        time = self.track.timestamps[position]
        self.videos["labels"].write(position, time, prediction.labels)
        if prediction.uncertainty is not None:
            self.videos["uncertainty"].write(position, time, _as_bytes(prediction.uncertainty))
        if prediction.picture is not None:
            drawn = self._drawn(prediction, prediction.stride)
            self.videos["overlay"].write(position, time, drawn)

    def _checkpoint(self, position: int) -> None:
        """Make everything before a position safe from a crash; what is carried comes last."""
        for video in self.videos.values():
            video.close_part()
        if self.track is not None:
            record = {"upto": position, "images": self._pending, "unreadable": self.unreadable}
            append_line(self.journal, record)
            self.done |= self._pending
            self._pending = {}
        if self.steady and self._now is not None:
            older = self._carried().values()
            newest = self.folder / f"carried_{position:06d}.npz"
            atomic_write(newest, self._now.to_bytes())
            for file in older:
                if file != newest:
                    file.unlink(missing_ok=True)

    def stop(self) -> None:
        """Leave videos that are shorter but whole, and everything to go on from."""
        for video in self.videos.values():
            video.finish(complete=False)

    def finish(self) -> None:
        """Join the videos and write the summary of all images."""
        for video in self.videos.values():
            video.close_part()
            video.finish(complete=False)
        self.done |= self._pending
        write_json(
            self.summary,
            {
                **self.head,
                "complete": True,
                **provenance(),
                "seed": self.model.settings.seed,
                "settings": self.model.settings.model_dump(mode="json"),
                "tree": self.tree,
                "classes": class_table(self.done, self.legend),
                "unreadable": self.unreadable,
                "images": self.done,
            },
        )
        # Only now: without the summary, a run that resumes makes the videos from them again.
        for video in self.videos.values():
            video.remove_parts()
        self._forget()


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what is wrong with a file that may be anybody's into an error for people."""
    try:
        yield
    except (OSError, ValueError, TypeError, LookupError) as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"expected a readable {path} to go on from, but: {error!r}; use `--overwrite`") from error


def is_plain(name: str) -> bool:
    """Whether a name that comes from a file can be joined to a folder, and leads nowhere else."""
    return name not in ("", "..") and Path(name).name == name and "\0" not in name


def _entries(images: Any) -> dict[str, dict[str, Any]]:
    """Return what a file says of images, but for names that lead out of the folder; raises what `_readable` turns."""
    found = {name: dict(entry) for name, entry in dict(images).items() if is_plain(name)}
    for entry in found.values():
        entry["areas"] = {int(k): int(n) for k, n in dict(entry["areas"]).items()}
    return found


def _as_bytes(share: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Bring 0…1 to 0…255."""
    return np.rint(share * 255).astype(np.uint8)


def class_table(images: dict[str, dict[str, Any]], legend: Legend) -> dict[str, dict[str, Any]]:
    """Return name, if it has one, pixels, share and colour of each class that occurs, from the areas of the images."""
    total: dict[int, int] = {}
    for entry in images.values():
        for k, n in entry["areas"].items():
            total[int(k)] = total.get(int(k), 0) + n
    pixels = sum(total.values())
    return {
        str(k): {
            **({"name": legend.names[k]} if k in legend.names else {}),
            "pixels": total[k],
            "share": total[k] / pixels,
            "colour": hexadecimal(legend.colours[k]),
        }
        for k in sorted(total)
    }

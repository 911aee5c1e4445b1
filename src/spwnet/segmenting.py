"""Segmenting images and videos with a trained model."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from spwnet import outputs, storage
from spwnet.config import FRAME_RATE
from spwnet.devices import available_memory
from spwnet.errors import InputError, OutputError, SettingsError, Stopped
from spwnet.gathering import PREDICTION_BYTES, STITCHING_BYTES, check_memory, label_source_of, memory_ratio
from spwnet.images import check_same_channels, fingerprint, frame_indices, image_size, open_images
from spwnet.prediction import LEAST_SIDE, MOST_WORKERS, predict_all, thinning
from spwnet.results import Results
from spwnet.runs import load
from spwnet.trained import TrainedModel
from spwnet.training import Progress, stoppable
from spwnet.videos import VideoSource
from spwnet.videowriting import Track, check_installed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from spwnet.config import ImageSettings, LabelSettings
    from spwnet.naming import ClassMap
    from spwnet.sources import ImageSource

logger = logging.getLogger(__name__)

VIDEO = ".mp4"
MOST_PICTURE_PIXELS = 1_000_000
"""Overlays of larger images are thinned."""
MOST_NAMED = 10
"""Images that cannot be read, of which more are only counted."""


@dataclass(frozen=True)
class Segmentation:
    """The labels of a set of images.

    Attributes
    ----------
    names : tuple of str
        One for each image, in order.
    labels : list of (H, W) int32 arrays
        Class of each pixel in the images' own sizes; empty if they were written to a folder.
    areas : dict of {str: dict of {int: int}}
        Pixels of each class in each image.
    folder : Path or None
        Where labels, overlays and ``segmentation.json`` were written.
    uncertainty : list of (H, W) float32 arrays in 0…1
        How uncertain each pixel is, see `predict`: 0 is sure. Empty if not asked for, or written.
    """

    names: tuple[str, ...]
    labels: list[NDArray[np.int32]]
    areas: dict[str, dict[int, int]]
    folder: Path | None = None
    uncertainty: list[NDArray[np.float32]] = field(default_factory=list)


@storage.claiming("output")
def segment(
    model: TrainedModel | str | Path,
    images: Any,
    output: str | Path | None = None,
    *,
    frames: Sequence[int | str] | Literal["all"] | None = None,
    superpixels: Any = None,
    labels: LabelSettings | None = None,
    classes: ClassMap | str | Path | None = None,
    suffix: str | None = None,
    rate: float = FRAME_RATE,
    overlays: bool | Literal["full"] = True,
    uncertainty: bool = False,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Segmentation:
    """Segment images with a trained model; a class has the same id in every one of them.

    Parameters
    ----------
    model : TrainedModel or path
        What `train` or `load` returned, or a run directory.
    images : path, glob, array, or sequence of these
    output : path, optional
        Folder for ``labels/``, ``overlays/`` and ``segmentation.json``, or the videos ``labels.mp4`` (lossless: class
        ids) and ``overlay.mp4``; without one the labels are returned.
    frames : sequence of int or str, or "all", optional
        Frame numbers to segment, or times in a video such as "2.5s"; all of them if not given.
    superpixels : path or sequence of (H, W) int arrays, optional
        The user's superpixels, if the model was trained on such.
    labels : LabelSettings, optional
        Labelling and cleaning other than the run's own.
    classes : ClassMap or path, optional
        Classes by name, or a file of them, in place of those of `labels`.
    suffix : str, optional
        ".png" or ".tif" for label images, ".mp4" for videos; if not given, a video gives videos, all else PNG. Videos
        keep the size and the times of the input.
    rate : float
        Frames a second of videos that are made of images.
    overlays : bool or "full"
        Write the overlays, too: of more than a million pixels only every second, third … row and column, or "full".
    uncertainty : bool
        Return, or write to ``uncertainty/``, how uncertain each pixel is, too.
    device : str
        Where a model from a run directory is loaded to; a `TrainedModel` stays where it is.
    overwrite, resume : bool
        Replace what is in `output`, or write only what is missing there.
    on_progress : callable
        Called with a `Progress` after each image.

    Returns
    -------
    Segmentation

    Raises
    ------
    SpwnetError
        For any input, setting or place that cannot be used.
    Stopped
        After Ctrl-C; what is written is complete.
    """
    if not isinstance(model, TrainedModel):
        model = load(model, device=device)
    cleaning = model.labels(labels, classes)
    check_images_for(model, cleaning)
    n_classes = model.n_classes(cleaning)
    source = open_images(images, model.settings.images.axes)
    chosen = frame_indices(source, "all" if frames is None else frames)
    is_video = isinstance(source, VideoSource)
    channels = check_same_channels(source, chosen)
    if channels != model.info["channels"]:
        raise InputError(
            f"expected images of {model.info['channels']} channels as in training, but '{source.names[chosen[0]]}' "
            f"has {channels}; segment images of the same kind"
        )
    label_source = label_source_of(superpixels, model.settings, source)
    steady = is_video if cleaning.steady == "auto" else cleaning.steady
    steady = steady and cleaning.mode == "codebook"
    at_once, most_pixels = _memory_for(source, chosen, model.settings.images, whole=steady)
    names = tuple(source.names[index] for index in chosen)
    writer, carry = None, None
    todo: Sequence[int] = range(len(chosen))
    if output is not None:
        suffix, track = check_output(source, chosen, suffix, rate)
        if track is None:
            outputs.label_dtype(n_classes, suffix)
        storage.check_folder(output, overwrite=overwrite, resume=resume)
        writer = Results(
            output,
            model,
            cleaning,
            names=names,
            n_classes=n_classes,
            suffix=suffix,
            overlays=overlays,
            uncertainty=uncertainty,
            overwrite=overwrite,
            resume=resume,
            stride=1 if track is None else thinning(track.size, None if overlays == "full" else MOST_PICTURE_PIXELS),
            steady=steady,
            track=track,
            source=_file_digest(source.path) if isinstance(source, VideoSource) and (steady or track) else None,
        )
        if not (steady or track):
            todo = _unwritten(writer, source, chosen)
        else:
            odd = [] if is_video else [k for k in _unwritten(writer, source, chosen) if names[k] in writer.done]
            if odd:
                raise OutputError(
                    f"expected the images that the segmentation in {output} was begun with, but '{names[odd[0]]}' is "
                    "another one or cannot be read; write to another folder, or use `--overwrite`"
                )
            start, carry = writer.begin()
            todo = todo[start:]
        if todo and writer.complete:
            writer.open()

    found: list[NDArray[np.int32]] = []
    doubts: list[NDArray[np.float32]] = []
    counts: dict[str, dict[int, int]] = {}
    unreadable: dict[str, InputError] = {}
    if writer is not None:
        counts = {name: entry["areas"] for name, entry in writer.done.items()}
    start_time = time.monotonic()
    stream = predict_all(
        model,
        source,
        [chosen[k] for k in todo],
        cleaning,
        label_source,
        most_picture_pixels=0
        if not overlays or writer is None
        else None
        if overlays == "full"
        else MOST_PICTURE_PIXELS,
        uncertainty=uncertainty,
        sha256=writer is not None and not (is_video and writer.track is not None),
        carry=carry if steady else False,
        most_workers=max(1, int(min(at_once, MOST_WORKERS))),
        most_pixels=most_pixels,
    )
    with stoppable() as should_stop:
        for done, (position, outcome) in enumerate(zip(todo, stream, strict=True), start=1):
            name = names[position]
            if isinstance(outcome, InputError):
                unreadable[name] = outcome
                if len(unreadable) <= MOST_NAMED:
                    logger.error("%s is left out: %s", name, outcome)
            else:
                counts[name] = outcome.areas
            if writer is not None:
                writer.write(position, outcome)
            elif not isinstance(outcome, InputError):
                found.append(outcome.labels)
                doubts += [] if outcome.uncertainty is None else [outcome.uncertainty]
            left = (time.monotonic() - start_time) / done * (len(todo) - done)
            on_progress(Progress("segment", done, len(todo), left, {}))
            if done < len(todo) and should_stop():
                if writer is not None:
                    writer.stop()
                further = (
                    "nothing was kept, because no output folder was given"
                    if writer is None
                    else "go on by `--resume` (in Python `resume=True`)"
                )
                raise Stopped(f"stopped after {done} of {len(todo)} images; {further}")
    if len(unreadable) > MOST_NAMED:
        logger.error("%d of %d images are left out, because they cannot be read", len(unreadable), len(names))
    if unreadable and len(unreadable) == len(todo) and not (writer is not None and writer.done):
        raise next(iter(unreadable.values()))
    if writer is not None and not writer.complete:
        writer.finish()
    names = tuple(name for name in names if name in counts)
    counts = {name: counts[name] for name in names}
    return Segmentation(names, found, counts, None if writer is None else writer.folder, doubts)


def _memory_for(
    source: ImageSource, chosen: Sequence[int], settings: ImageSettings, *, whole: bool
) -> tuple[float, int | None]:
    """How many images fit into memory at once; if not one does, in patches of how many working pixels.

    Raises
    ------
    SettingsError
        If they must be labelled whole, or there is not the memory for patches either.
    """
    ratio = memory_ratio(source, chosen, settings, PREDICTION_BYTES, together=False)
    if ratio >= 1:
        return ratio, None
    check_memory(
        source, chosen, settings, PREDICTION_BYTES if whole else 2 * STITCHING_BYTES, "segment", together=False
    )
    # Half of the memory is for what is put together.
    side = math.isqrt(int(available_memory() / 2 / PREDICTION_BYTES))
    if side < LEAST_SIDE:
        check_memory(source, chosen, settings, PREDICTION_BYTES, "segment", together=False)
    # A power of two, so that labels do not depend on every byte that happens to be free.
    side = max(LEAST_SIDE, 2 ** int(math.log2(side)))
    logger.warning("images do not fit into memory whole: labelling them in patches of %d² working pixels", side)
    return 1.0, side**2


def check_output(
    source: ImageSource, chosen: Sequence[int], suffix: str | None, rate: float
) -> tuple[str, Track | None]:
    """Check what images can be written as; return the suffix, and size and times of the frames of a video.

    Raises
    ------
    InputError, SettingsError, OutputError
    """
    if suffix is None:
        suffix = VIDEO if isinstance(source, VideoSource) else ".png"
    if suffix == VIDEO:
        check_installed()
        return suffix, _track(source, chosen, rate)
    outputs.label_dtype(1, suffix)
    return suffix, None


def check_images_for(model: TrainedModel, labels: LabelSettings) -> None:
    """Check that a model can label images as the settings say.

    Raises
    ------
    InputError, SettingsError
    """
    if model.solid:
        raise InputError(
            "expected a volume for this model, which was trained on one, but got images; open it by `open_volume` and "
            "use `segment_volume` (on the command line: `spwnet segment` with --volume)"
        )
    if labels.mode == "codebook" and model.codebook is None:
        raise SettingsError(
            "expected a model trained with `labels.mode = 'codebook'` to label by codebook, but this one has none; "
            "use 'argmax_of_mean' or 'max_count_of_argmax'"
        )
    if labels.mode != "codebook" and model.network is None:
        raise SettingsError(
            f"expected a model with a network to label by {labels.mode!r}, but this one was made without training; "
            "use `labels.mode = 'codebook'`, or train with `codebook.evidence = 'all'`"
        )
    model.members(labels)


def _track(source: ImageSource, chosen: Sequence[int], rate: float) -> Track:
    """Size and times of the frames of a video of these images: those of the video, or evenly spaced."""
    if isinstance(source, VideoSource):
        times = tuple(source.timestamps[index] for index in chosen)
        if any(b <= a for a, b in pairwise(times)):
            raise SettingsError("expected frames of a video in their order, but got others; give them in order")
        return Track(source.shape, source.time_base, source.rate, times)
    if not 0.001 < rate <= 1000:
        raise SettingsError(f"expected a rate above 0.001, at most 1000 frames a second, but got {rate}")
    first = image_size(source, chosen[0])
    for index in chosen:
        size = image_size(source, index)
        if size != first:
            raise InputError(
                f"expected images of one size for a video, but '{source.names[chosen[0]]}' has {first[0]}×{first[1]} "
                f"and '{source.names[index]}' has {size[0]}×{size[1]} pixels; write label images instead (.png or .tif)"
            )
    one = Fraction(rate).limit_denominator(1001)
    return Track(first, 1 / one, one, tuple(range(len(chosen))))


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unwritten(writer: Results, source: ImageSource, chosen: Sequence[int]) -> list[int]:
    """Places in `chosen` of which the labels of this very image, not only of one of its name, are not there yet."""
    left = []
    with stoppable() as should_stop:
        for k, index in enumerate(chosen):
            if should_stop():
                raise Stopped("stopped while images were compared with those that are done; go on by `--resume`")
            entry = writer.done.get(source.names[index])
            try:
                if entry is None or entry.get("sha256") != fingerprint(source[index]):
                    left.append(k)
            except InputError:
                # It is told when its turn comes.
                left.append(k)
    return left

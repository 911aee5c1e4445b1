"""The main job in Python: train, load, segment, and run, which is train and segment in one."""

from __future__ import annotations

import logging
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet import outputs, report
from spwnet.classes import areas, palette
from spwnet.codebook import fit_codebook
from spwnet.config import Settings, flat
from spwnet.descriptors import kinds
from spwnet.devices import convolution_type, memory_format, pick_device
from spwnet.errors import InputError, RunError, SettingsError, Stopped
from spwnet.images import check_same_channels, fingerprint, frame_indices, label_image, open_images
from spwnet.prediction import describe, predict, predict_all, prepare_image
from spwnet.preparation import measure
from spwnet.runs import Results, Run, TrainedModel, make_network
from spwnet.training import Progress, check_images, fit, set_up_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from spwnet.codebook import Codebook
    from spwnet.config import LabelSettings
    from spwnet.images import ImageSource
    from spwnet.model import WNet
    from spwnet.preparation import Normalisation, Prepared
    from spwnet.superpixels import Superpixels
    from spwnet.training import TrainingImage


logger = logging.getLogger(__name__)

FEW_CLASSES = 3
"""Fewer live classes than this are called a collapse."""


def train(
    images: Any,
    run: str | Path | None = None,
    *,
    settings: Settings | None = None,
    frames: Sequence[int] | str | None = None,
    superpixels: Any = None,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> TrainedModel:
    """Train a network on one or a few images, without labels.

    Parameters
    ----------
    images : path, glob, array, or sequence of these
        Images of one kind: files, a folder, a multi-page TIFF, arrays (H, W) or (H, W, C).
    run : path, optional
        Directory for settings, weights, history and previews; without one nothing is written.
    settings : Settings, optional
        See `make_settings`; the default preset if not given.
    frames : sequence of int or "all", optional
        Frame numbers to train on; without them `training.images` of them, spread evenly.
    superpixels : path or sequence of (H, W) int arrays, optional
        The user's superpixels of all the images, for the method "labels".
    device : str
        "auto", "cpu", "cuda" or "mps".
    overwrite, resume : bool
        Replace what is in `run`, or go on with it.
    on_progress : callable
        Called with a `Progress` after each step.

    Returns
    -------
    TrainedModel

    Raises
    ------
    SpwnetError
        Before training starts, for any input, setting or place that cannot be used.
    Stopped
        After Ctrl-C, with everything kept to go on from.
    """
    settings = settings or Settings()
    target = pick_device(device)
    directory = None if run is None else Run(run)
    if directory is not None:
        outputs.check_folder(directory.folder, overwrite=overwrite, resume=resume)
    data = _training_data(images, frames, superpixels, settings)
    dtype = convolution_type(settings.training.precision, target)
    data.info |= {"device": str(target), "precision": str(dtype).removeprefix("torch."), **outputs.provenance()}
    if directory is not None:
        if resume and directory.description.exists():
            if _check_resumable(directory, settings, data.info):
                return load(directory.folder, device=device)
        else:
            resume = False
            directory.create(overwrite=overwrite)
        directory.write({"finished": False, **data.info}, settings, data.normalisation)

    network = make_network(settings, data.info["channels"]).to(target)
    batch = [set_up_image(prepared, regions, settings, target) for prepared, regions in data.pairs]

    def on_preview(done: int) -> None:
        assert directory is not None
        _write_preview(directory, done, network, data, batch, settings, _label(network, data, settings, None))

    start = time.monotonic()
    steps = settings.training.epochs * settings.training.batches
    with stoppable() as should_stop:
        fit(
            network,
            batch,
            settings,
            run=directory,
            resume=resume,
            on_progress=on_progress,
            on_preview=on_preview if directory is not None else None,
            should_stop=should_stop,
        )
    data.info["seconds"] = round(time.monotonic() - start, 1)
    codebook = _fit_codebook(network, data, settings) if settings.labels.mode == "codebook" else None
    labels = _label(network, data, settings, codebook)
    data.info["classes"] = _classes_in_use(labels, settings)
    if directory is not None:
        directory.save_model(network, codebook)
        _write_preview(directory, steps, network, data, batch, settings, labels)
        directory.write({"finished": True, **data.info}, settings, data.normalisation)
        if should_stop():
            raise Stopped(f"stopped after training, which is finished: the model is in {directory.folder}")
    return TrainedModel(network, settings, data.normalisation, data.info, codebook)


@dataclass
class _TrainingData:
    """Training images, prepared and oversegmented, with their statistics and what ``run.json`` says of them."""

    pairs: list[tuple[Prepared, Superpixels | None]]
    normalisation: Normalisation
    info: dict[str, Any]


def _training_data(
    images: Any, frames: Sequence[int] | str | None, superpixels: Any, settings: Settings
) -> _TrainingData:
    """Read, check, prepare and oversegment the training images."""
    source = open_images(images, settings.images.axes)
    chosen = _training_indices(source, frames, settings)
    channels = check_same_channels(source, chosen)
    label_source = _label_source(superpixels, settings, source)
    raw = [source[index] for index in chosen]
    normalisation = measure(raw, settings.images)
    pairs = [
        prepare_image(image, settings, normalisation, label_source(index))
        for image, index in zip(raw, chosen, strict=True)
    ]
    check_images([prepared for prepared, _ in pairs], settings)
    described = []
    for image, (prepared, regions) in zip(raw, pairs, strict=True):
        height, width = prepared.unit.shape[:2]
        count = None if regions is None else regions.count
        logger.info("%s: %d×%d working pixels, %s superpixels", image.name, height, width, count or "no")
        described.append(
            {
                "name": image.name,
                "sha256": fingerprint(image),
                "shape": list(image.pixels.shape),
                "working_shape": [height, width],
                "superpixels": count,
            }
        )
    return _TrainingData(pairs, normalisation, {"channels": channels, "images": described})


def _fit_codebook(network: WNet, data: _TrainingData, settings: Settings) -> Codebook:
    """Fit the class centres on the superpixels, or pixels, of the training images."""
    descriptors = [describe(network, *pair, settings.training.precision) for pair in data.pairs]
    evidence = kinds(settings.model.ch_mul, data.info["channels"])
    return fit_codebook(descriptors, evidence, settings.labels.classes, settings.seed)


def _label(
    network: WNet, data: _TrainingData, settings: Settings, codebook: Codebook | None
) -> list[NDArray[np.int32]]:
    """Label the training images in their working size."""
    mode, precision = settings.labels.mode, settings.training.precision
    return [predict(network, *pair, mode, precision, codebook) for pair in data.pairs]


def _write_preview(
    directory: Run,
    done: int,
    network: WNet,
    data: _TrainingData,
    batch: Sequence[TrainingImage],
    settings: Settings,
    labels: Sequence[NDArray[np.int32]],
) -> None:
    """Write input, reconstruction and labels of the first few training images."""
    few = slice(report.MOST_ROWS)
    precision = settings.training.precision
    picture = report.preview(
        [prepared.unit for prepared, _ in data.pairs[few]],
        [report.reconstruct(network, image.pixels, data.normalisation, precision) for image in batch[few]],
        labels[few],
        palette(max(settings.n_classes, settings.model.classes)),
    )
    outputs.write_picture(directory.preview(done), picture)


def _classes_in_use(labels: Sequence[NDArray[np.int32]], settings: Settings) -> dict[str, int]:
    """Count the working pixels of each class that is left on the training images; warn if hardly any is."""
    counts = np.sum([areas(found, settings.n_classes) for found in labels], axis=0)
    used = {str(k): int(n) for k, n in enumerate(counts) if n}
    if len(used) < FEW_CLASSES:
        logger.warning(
            "only %d of %d classes are left on the training images: the training collapsed. Try another `seed`, "
            "a lower `losses.continuity`, or a higher `losses.image`.",
            len(used),
            settings.n_classes,
        )
    return used


def load(run: str | Path, *, device: str = "auto") -> TrainedModel:
    """Read a trained model from a run directory.

    Raises
    ------
    RunError
        If it is not a finished run, is damaged, or is of a newer format.
    """
    model = Run(run).load()
    model.network.to(pick_device(device), memory_format=memory_format(2))  # type: ignore[call-overload]
    return model


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
    """

    names: tuple[str, ...]
    labels: list[NDArray[np.int32]]
    areas: dict[str, dict[int, int]]
    folder: Path | None = None


def segment(
    model: TrainedModel | str | Path,
    images: Any,
    output: str | Path | None = None,
    *,
    frames: Sequence[int] | str | None = None,
    superpixels: Any = None,
    labels: LabelSettings | None = None,
    suffix: str = ".png",
    overlays: bool = True,
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
        Folder for ``labels/``, ``overlays/`` and ``segmentation.json``; without one the labels are returned.
    frames : sequence of int or "all", optional
        Frame numbers to segment; all of them if not given.
    superpixels : path or sequence of (H, W) int arrays, optional
        The user's superpixels, if the model was trained on such.
    labels : LabelSettings, optional
        Labelling and cleaning other than the run's own.
    suffix : str
        ".png" or ".tif".
    overlays : bool
        Write the overlays, too.
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
    cleaning = labels or model.settings.labels
    n_classes = model.settings.model_copy(update={"labels": cleaning}).n_classes
    if cleaning.mode == "codebook" and model.codebook is None:
        raise SettingsError(
            "expected a model trained with `labels.mode = 'codebook'` to label by codebook, but this one has none; "
            "use 'argmax_of_mean' or 'max_count_of_argmax'"
        )
    outputs.label_dtype(n_classes, suffix)
    source = open_images(images, model.settings.images.axes)
    chosen = frame_indices(source, "all" if frames is None else frames)
    channels = check_same_channels(source, chosen)
    if channels != model.info["channels"]:
        raise InputError(
            f"expected images of {model.info['channels']} channels as in training, but '{source.names[chosen[0]]}' "
            f"has {channels}; segment images of the same kind"
        )
    label_source = _label_source(superpixels, model.settings, source)
    writer = None
    if output is not None:
        outputs.check_folder(output, overwrite=overwrite, resume=resume)
        writer = Results(
            output,
            model,
            cleaning,
            n_classes=n_classes,
            suffix=suffix,
            overlays=overlays,
            overwrite=overwrite,
            resume=resume,
        )
    todo = [index for index in chosen if writer is None or not _is_written(writer, source, index)]

    found: list[NDArray[np.int32]] = []
    counts: dict[str, dict[int, int]] = {}
    if writer is not None:
        counts = {name: {int(k): n for k, n in entry["areas"].items()} for name, entry in writer.done.items()}
    start = time.monotonic()
    pictures = overlays and writer is not None
    stream = predict_all(model, source, todo, cleaning, label_source, pictures=pictures)
    with stoppable() as should_stop:
        for done, prediction in enumerate(stream, start=1):
            counts[prediction.name] = {k: n for k, n in enumerate(areas(prediction.labels, n_classes)) if n}
            if writer is None:
                found.append(prediction.labels)
            else:
                picture, stride = prediction.picture, prediction.stride
                entry = {"sha256": prediction.sha256, "areas": counts[prediction.name]}
                writer.write(prediction.name, prediction.labels, entry, picture, stride)
            left = (time.monotonic() - start) / done * (len(todo) - done)
            on_progress(Progress("segment", done, len(todo), left, {}))
            if done < len(todo) and should_stop():
                raise Stopped(
                    f"stopped after {done} of {len(todo)} images; go on by `--resume` (in Python `resume=True`)"
                )
    names = tuple(source.names[index] for index in chosen)
    counts = {name: counts[name] for name in names}
    if writer is not None:
        writer.finish()
    return Segmentation(names, found, counts, None if writer is None else writer.folder)


def _is_written(writer: Results, source: ImageSource, index: int) -> bool:
    """Whether the labels of this very image, not only of one of its name, are there already."""
    entry = writer.done.get(source.names[index])
    return entry is not None and entry["sha256"] == fingerprint(source[index])


def run(
    images: Any,
    output: str | Path,
    *,
    settings: Settings | None = None,
    frames: Sequence[int] | str | None = None,
    superpixels: Any = None,
    suffix: str = ".png",
    overlays: bool = True,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[TrainedModel, Segmentation]:
    """Train on a few of the images, then segment all of them: ``output/run`` and ``output/segmentation``.

    The number of channels of every image is checked before training; pixels of images that are not trained on
    are read, and checked, when their turn comes.

    Parameters
    ----------
    images, settings, superpixels, device, overwrite, resume, on_progress
        As in `train`.
    output : path
    frames : sequence of int or "all", optional
        Frame numbers to train on.
    suffix, overlays
        As in `segment`.

    Returns
    -------
    TrainedModel, Segmentation
    """
    folder = Path(output)
    outputs.check_folder(folder, overwrite=overwrite, resume=resume)
    settings = settings or Settings()
    source = open_images(images, settings.images.axes)
    check_same_channels(source)
    places: dict[str, Any] = {"device": device, "overwrite": overwrite, "resume": resume, "on_progress": on_progress}
    model = train(source, folder / "run", settings=settings, frames=frames, superpixels=superpixels, **places)
    segmented = segment(
        model, source, folder / "segmentation", superpixels=superpixels, suffix=suffix, overlays=overlays, **places
    )
    return model, segmented


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether Ctrl-C was pressed; a second Ctrl-C interrupts at once."""
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def on_interrupt(*_: Any) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()
        logger.warning("stopping as soon as this step is done; press again to stop at once")

    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _training_indices(source: ImageSource, frames: Sequence[int] | str | None, settings: Settings) -> list[int]:
    """Positions of the training images: those named, or a few spread evenly from first to last."""
    if frames is not None:
        return frame_indices(source, frames)
    count = min(settings.training.images, len(source))
    chosen = [int(i) for i in np.linspace(0, len(source) - 1, count).round()] if count > 1 else [0]
    if count < len(source):
        logger.info(
            "training on %d of %d images: %s (choose others by `frames`, or how many by `training.images`)",
            count, len(source), ", ".join(source.names[i] for i in chosen),
        )  # fmt: skip
    return chosen


def _label_source(superpixels: Any, settings: Settings, images: ImageSource) -> Callable[[int], NDArray[Any] | None]:
    """Return a function from an image's position to the user's superpixels of it: by name, else by order."""
    given = superpixels if superpixels is not None else settings.superpixels.labels
    if given is None:
        return lambda _: None
    if settings.superpixels.method != "labels":
        raise SettingsError(
            "expected `superpixels.method = 'labels'` because superpixels were given, but it is "
            f"{settings.superpixels.method!r}"
        )
    source = open_images(given, None)
    if set(images.names) <= set(source.names):
        return lambda index: label_image(source, source.names.index(images.names[index]))
    unknown = [name for name in images.names if name not in source.names]
    if superpixels is None or len(unknown) < len(images):
        raise InputError(
            f"expected superpixels of the same name as each image, but there are none for '{unknown[0]}'; give those "
            "of these images by `superpixels`"
        )
    if len(source) != len(images):
        raise InputError(f"expected one superpixel image for each of {len(images)} images, but got {len(source)}")
    return lambda index: label_image(source, index)


def _check_resumable(directory: Run, settings: Settings, info: dict[str, Any]) -> bool:
    """Check that a run is of these settings and images; return whether it is finished."""
    before, old_settings, _ = directory.read()
    if old_settings != settings:
        ours, theirs = (flat(one.model_dump()) for one in (settings, old_settings))
        odd = next(key for key in ours if ours[key] != theirs[key])
        raise RunError(
            f"expected the settings of the run in {directory.folder} to go on with it, but `{odd}` was {theirs[odd]} "
            f"and is now {ours[odd]}; use the same settings or another directory"
        )
    if [image["sha256"] for image in before.get("images", [])] != [image["sha256"] for image in info["images"]]:
        raise RunError(
            f"expected the training images of the run in {directory.folder} to go on with it, but got others; "
            "use the same images or another directory"
        )
    return bool(before.get("finished"))

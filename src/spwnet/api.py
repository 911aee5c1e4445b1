"""The main job in Python: train, load, segment, and run, which is train and segment in one."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from spwnet import outputs, previews, storage
from spwnet.classes import areas
from spwnet.codebook import Descriptors, fit_codebook
from spwnet.config import FRAME_RATE, LabelSettings, Settings, SuperpixelSettings
from spwnet.descriptors import network_input
from spwnet.devices import convolution_type, pick_device
from spwnet.errors import RunError, SettingsError, Stopped
from spwnet.gallery import Gallery, make_gallery, write_gallery
from spwnet.gathering import gather, patches_in, training_slices
from spwnet.graph import build_graph
from spwnet.images import check_same_channels, fingerprint, open_images
from spwnet.prediction import describe, oversegment, predict
from spwnet.preparation import measure, to_display, to_unit
from spwnet.presets import flat
from spwnet.runs import Run, load
from spwnet.scoring import SCORED_CLASSES, Neighbours, label_score
from spwnet.segmenting import Segmentation, check_output, segment
from spwnet.trained import TrainedModel, check_labels, evidence_kinds, make_network, most_ids
from spwnet.training import Fitted, Progress, fit, set_up_image, stoppable
from spwnet.volumes import SliceSource, Volume
from spwnet.volumesegmenting import VolumeSegmentation, check_options, segment_volume
from spwnet.volumetraining import check_size, fit_volume, windows
from spwnet.volumetric import grid_of, predict_part
from spwnet.watching import Audience

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch
    from numpy.typing import NDArray

    from spwnet.blocks import Region
    from spwnet.graph import RegionGraph
    from spwnet.preparation import Normalisation, Prepared
    from spwnet.volumetraining import Seen
    from spwnet.watching import Watcher

logger = logging.getLogger(__name__)

FEW_CLASSES = 3
"""Fewer live classes than this are called a collapse."""
FEW_ALIVE = 0.25
"""Share of the network's own classes below which a warning says that most died."""


@storage.claiming("run")
def train(
    images: Any,
    run: str | Path | None = None,
    *,
    settings: Settings | None = None,
    frames: Sequence[int | str] | Literal["all", "auto"] | None = None,
    superpixels: Any = None,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    watch: Sequence[Watcher] = (),
) -> TrainedModel:
    """Train a network on one or a few images, or slices of a volume, without labels.

    Parameters
    ----------
    images : path, glob, array, sequence of these, or Volume
        Images of one kind: files, a folder, a multi-page TIFF, arrays (H, W) or (H, W, C); or what `open_volume` gives.
    run : path, optional
        Directory for settings, weights, history and previews; without one nothing is written.
    settings : Settings, optional
        See `make_settings`; the default preset if not given.
    frames : sequence of int or str, "all" or "auto", optional
        Frame numbers to train on, or times in a video such as "2.5s"; "auto" takes a few that differ most. Without them
        `training.images` of them, spread evenly.
    superpixels : path or sequence of (H, W) int arrays, optional
        The user's superpixels of all the images, for the method "labels".
    device : str
        "auto", "cpu", "cuda" or "mps".
    overwrite, resume : bool
        Replace what is in `run`, or go on with it.
    on_progress : callable
        Called with a `Progress` after each step.
    watch : sequence of Watcher
        Who looks on: a `LivePage`, a `NotebookView`, a `TensorBoardView`. One may ask to stop here and keep what there
        is: the run is then finished, and "kept_at" in its ``run.json`` is the step.

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
    check_labels(settings)
    if isinstance(images, Volume):
        if settings.volumes.mode == "supervoxels":
            if superpixels is not None:
                raise SettingsError(
                    "expected no `superpixels` for a volume, whose supervoxels are made; leave them out"
                )
            return _train_volume(
                images, run, settings, frames, device,
                overwrite=overwrite, resume=resume, on_progress=on_progress, watch=watch,
            )  # fmt: skip
        images = SliceSource(images)
    target = pick_device(device)
    directory = None if run is None else Run(run)
    if directory is not None:
        storage.check_folder(directory.folder, overwrite=overwrite, resume=resume)
    resume = resume and directory is not None and directory.description.exists()
    known = patches_in(directory.read()[0]) if directory is not None and resume else None
    data = gather(images, frames, superpixels, settings, known)
    dtype = convolution_type(settings.training.precision, target)
    data.info |= {"device": str(target), "precision": str(dtype).removeprefix("torch."), **outputs.provenance()}
    if directory is not None and _begin(
        directory, settings, data.info, data.normalisation, overwrite=overwrite, resume=resume
    ):
        return load(directory.folder, device=device)

    pairs = [
        (prepared, None if regions is None else build_graph(regions, prepared.unit, target))
        for prepared, regions in data.pairs
    ]
    start = _start(directory)
    with stoppable() as should_stop, Audience(watch) as audience:
        inputs = [prepared for prepared, _ in pairs]
        audience.show(previews.snapshot(0, [image.name for image in inputs], [image.unit for image in inputs]))
        network = fitted = None
        if settings.learns:
            network = make_network(settings, data.info["channels"]).to(target)
            targets = _targets(pairs, settings, data.info["channels"], target)
            batch = [
                set_up_image(
                    network_input(prepared, target, settings.model),
                    prepared,
                    graph,
                    settings,
                    classes,
                )
                for (prepared, graph), classes in zip(pairs, targets, strict=True)
            ]
            network.scale_evidence([image.pixels for image in batch])
            untaught = TrainedModel(network, settings, data.normalisation, data.info, None, target)

            def on_preview(done: int) -> None:
                seen = [predict(untaught, *pair, settings.labels)[0] for pair in pairs[: previews.MOST_ROWS]]
                _show(directory, audience, _snapshot(done, untaught, inputs, seen))

            fitted = fit(
                network,
                batch,
                settings,
                run=directory,
                resume=resume,
                on_progress=audience.through(on_progress),
                on_preview=on_preview if directory is not None or audience else None,
                should_stop=should_stop,
                should_keep=audience.keep,
            )
        codebook = None
        described: list[Descriptors | None] = [None] * len(pairs)
        if settings.labels.mode == "codebook":
            descriptors = [describe(network, *pair, settings, target) for pair in pairs]
            described = [*descriptors]
            evidence = evidence_kinds(settings, data.info["channels"])
            codebook = fit_codebook(descriptors, evidence, settings.codebook.finest, settings.seed)
        data.info["seconds"] = _seconds(start, directory)
        model = TrainedModel(network, settings, data.normalisation, data.info, codebook, target)
        if directory is not None:
            # Before the classes of the settings are looked at, which may be more than there are.
            directory.save_model(network, codebook)
        triples = [(*pair, known) for pair, known in zip(pairs, described, strict=True)]
        labels, doubts = zip(
            *(predict(model, image, graph, settings.labels, known) for image, graph, known in triples), strict=True
        )
        finest = [predict(model, image, graph, model.finest_labels(), known)[0] for image, graph, known in triples]
        data.info["classes"] = _classes_in_use(labels, model)
        if network is not None:
            data.info["network_classes"] = _network_classes(model, pairs)
        data.info["score"] = round(_score(model, pairs, finest), 4)
        data.info |= _ending(fitted, settings)
        if directory is not None:
            write_gallery(directory.gallery, _gallery(model, inputs, finest, doubts))
        if directory is not None or audience:
            _show(directory, audience, _snapshot(fitted.steps if fitted else 0, model, inputs, labels))
        if directory is not None:
            directory.write({"finished": True, **data.info}, settings, data.normalisation)
        _check_stop(directory, should_stop)
    return model


def _train_volume(
    volume: Volume,
    run: str | Path | None,
    settings: Settings,
    frames: Sequence[int | str] | str | None,
    device: str,
    *,
    overwrite: bool,
    resume: bool,
    on_progress: Callable[[Progress], None],
    watch: Sequence[Watcher],
) -> TrainedModel:
    """Train on slices of a volume along z, with the supervoxels around them."""
    grid = grid_of(volume, settings)
    check_size(grid, settings)
    target = pick_device(device)
    directory = None if run is None else Run(run)
    if directory is not None:
        storage.check_folder(directory.folder, overwrite=overwrite, resume=resume)
    chosen = training_slices(volume, frames, settings)
    raw = [source[index] for _, source, index in chosen]
    axes = [axis for axis, _, _ in chosen]
    normalisation = measure(raw, settings.images.model_copy(update={"scale": 1.0}))
    cores = windows(grid, [(axis, index) for axis, _, index in chosen], settings.images.max_pixels, settings.seed)
    dtype = convolution_type(settings.training.precision, target)
    info: dict[str, Any] = {
        "solid": True,
        "channels": volume.channels,
        "volume": {"shape": volume.shape, "spacing": volume.spacing, "unit": volume.unit, "origin": volume.origin},
        "images": [
            {
                "name": image.name,
                "sha256": fingerprint(image),
                "shape": list(image.pixels.shape),
                "working_shape": [part.stop - part.start for part in _plane(core, axis)],
            }
            for image, axis, core in zip(raw, axes, cores, strict=True)
        ],
        "device": str(target),
        "precision": str(dtype).removeprefix("torch."),
        **outputs.provenance(),
    }
    if directory is not None:
        resume = resume and directory.description.exists()
        if _begin(directory, settings, info, normalisation, overwrite=overwrite, resume=resume):
            return load(directory.folder, device=device)
    names = [image.name for image in raw]
    stored = [_plane(grid.stored(core), axis) for axis, core in zip(axes, cores, strict=True)]
    values = [image.pixels[plane] for image, plane in zip(raw, stored, strict=True)]
    units = [to_unit(pixels, normalisation) for pixels in values]
    start = _start(directory)
    with stoppable() as should_stop, Audience(watch) as audience:
        audience.show(previews.snapshot(0, names, units))

        def on_preview(done: int, seen: Sequence[Seen]) -> None:
            pictures = zip(*seen, strict=True)
            shot = previews.snapshot(done, names, *pictures, n_classes=settings.model.classes, provisional=True)
            _show(directory, audience, shot)

        fitted, codebook = fit_volume(
            volume, grid, list(zip(axes, cores, strict=True)), settings, normalisation, target,
            run=directory, resume=resume, on_progress=audience.through(on_progress),
            on_preview=on_preview if directory is not None or audience else None,
            should_stop=should_stop, should_keep=audience.keep,
        )  # fmt: skip
        info["seconds"] = _seconds(start, directory)
        network = None if fitted is None else fitted.network
        model = TrainedModel(network, settings, normalisation, info, codebook, target)
        if directory is not None:
            directory.save_model(network, codebook)
        finest = [predict_part(model, volume, grid.stored(core), model.finest_labels()) for core in cores]
        found = [model.members(settings.labels)[labels] for labels in finest]
        info["classes"] = _classes_in_use(found, model)
        info |= _ending(fitted, settings)
        if directory is not None:
            gallery = make_gallery(
                names,
                [to_display(unit) for unit in units],
                [_first(labels, axis) for axis, labels in zip(axes, finest, strict=True)],
                values,
                None,
                [((rows.start, rows.stop), (columns.start, columns.stop)) for rows, columns in stored],
                model.n_finest,
                [image.pixels.shape[:2] for image in raw],
            )
            write_gallery(directory.gallery, gallery)
        if directory is not None or audience:
            layers = [_first(labels, axis) for axis, labels in zip(axes, found, strict=True)]
            steps = fitted.steps if fitted else 0
            _show(
                directory, audience, previews.snapshot(steps, names, units, None, layers, n_classes=model.n_classes())
            )
        if directory is not None:
            directory.write({"finished": True, **info}, settings, normalisation)
        _check_stop(directory, should_stop)
    return model


def _check_stop(directory: Run | None, should_stop: Callable[[], bool]) -> None:
    """Stop if Ctrl-C was pressed too late for the training to stop."""
    if should_stop():
        where = "without a run directory it is not kept"
        if directory is not None:
            where = f"the model is in {directory.folder}"
        raise Stopped(f"stopped after training, which is finished: {where}")


def _start(directory: Run | None) -> float:
    """Note when the training began, for its checkpoints as well."""
    now = time.monotonic()
    if directory is not None:
        directory.started = now
    return now


def _seconds(start: float, directory: Run | None) -> float:
    """Return how long the training took, before it was resumed as well."""
    return round(time.monotonic() - start + (0.0 if directory is None else directory.earlier), 1)


def _plane(region: Region, axis: int) -> tuple[slice, slice]:
    """Rows and columns of a region in the slices across an axis."""
    rows, columns = (part for along, part in enumerate(region) if along != axis)
    return rows, columns


def _first(labels: NDArray[np.int32], axis: int) -> NDArray[np.int32]:
    """Return the first slice across an axis."""
    found: NDArray[np.int32] = np.moveaxis(labels, axis, 0)[0]
    return found


def _gallery(
    model: TrainedModel,
    images: Sequence[Prepared],
    finest: Sequence[NDArray[np.int32]],
    doubts: Sequence[NDArray[np.float32]],
) -> Gallery:
    """Gather what the run shows of its training images."""
    low, high = (np.array(ends) for ends in (model.normalisation.low, model.normalisation.high))
    return make_gallery(
        [image.name for image in images],
        [to_display(image.unit) for image in images],
        finest,
        [image.unit * (high - low) + low for image in images],
        doubts,
        [image.frame.region for image in images],
        model.n_finest,
        [image.frame.shape for image in images],
    )


def _score(
    model: TrainedModel, pairs: Sequence[tuple[Prepared, RegionGraph | None]], finest: Sequence[NDArray[np.int32]]
) -> float:
    """Score the labels of the training images, at the number of classes and on the superpixels that all runs share."""
    plain = LabelSettings(mode=model.settings.labels.mode)
    if model.codebook is not None:
        plain = plain.model_copy(update={"classes": min(SCORED_CLASSES, model.codebook.finest)})
    shared = SuperpixelSettings()
    labels, images = [], []
    for (prepared, graph), classes in zip(pairs, finest, strict=True):
        found = model.members(plain)[classes].ravel()
        if graph is None or model.settings.superpixels != shared:
            regions = oversegment(prepared, shared)
            assert regions is not None
            graph = build_graph(regions, prepared.unit)
        nodes = graph.labels.cpu().numpy()
        votes = np.bincount(nodes * (found.max() + 1) + found, minlength=graph.count * (found.max() + 1))
        labels.append(votes.reshape(graph.count, -1).argmax(1))
        images.append(Neighbours(graph.edges.cpu().numpy(), graph.distances.cpu().numpy()))
    return label_score(labels, images, model.n_classes(plain))


def _targets(
    pairs: Sequence[tuple[Prepared, RegionGraph | None]], settings: Settings, channels: int, device: torch.device
) -> list[NDArray[np.int32] | None]:
    """Classes for the similarity: those of a codebook on the hand-made evidence, or the network's own."""
    if settings.losses.target == "own" or settings.losses.similarity == 0:
        return [None] * len(pairs)
    taught = settings.model_copy(update={"codebook": settings.codebook.model_copy(update={"evidence": "handmade"})})
    descriptors = [describe(None, *pair, taught, device) for pair in pairs]
    codebook = fit_codebook(descriptors, evidence_kinds(taught, channels), settings.model.classes, settings.seed)
    members = np.arange(codebook.finest)
    return [codebook.assign(described, members).classes for described in descriptors]


def _snapshot(
    done: int, model: TrainedModel, images: Sequence[Prepared], labels: Sequence[NDArray[np.int32]]
) -> previews.Snapshot:
    """Draw input, reconstruction, if there is one, and labels of the first few training images."""
    few = images[: previews.MOST_ROWS]
    return previews.snapshot(
        done,
        [image.name for image in few],
        [image.unit for image in few],
        None if model.network is None else [previews.reconstruct(model, image) for image in few],
        labels[: previews.MOST_ROWS],
        n_classes=model.n_classes(),
        provisional=model.codebook is None and model.settings.labels.mode == "codebook",
    )


def _show(directory: Run | None, audience: Audience, shot: previews.Snapshot) -> None:
    """Write the pictures to the run directory, and show them to those who look on."""
    if directory is not None:
        outputs.write_picture(directory.preview(shot.step), previews.preview(shot))
    audience.show(shot)


def _ending(fitted: Fitted | None, settings: Settings) -> dict[str, Any]:
    """Say at which step the training was kept, if that was not the last one of the settings, and why."""
    if fitted is None or fitted.steps >= settings.training.epochs * settings.training.batches:
        return {}
    return {"kept_at": fitted.steps} | ({} if fitted.fault is None else {"fault": fitted.fault})


def _network_classes(model: TrainedModel, pairs: Sequence[tuple[Prepared, RegionGraph | None]]) -> int:
    """Count the classes that are the network's first choice anywhere on the training images; warn if most died."""
    own = LabelSettings(mode="argmax_of_mean")
    found = np.unique(np.concatenate([np.unique(predict(model, *pair, own)[0]) for pair in pairs]))
    classes = model.settings.model.classes
    if len(found) < classes * FEW_ALIVE:
        logger.warning(
            "only %d of the network's %d classes are alive on the training images. Labels by codebook do without the "
            "others; to keep them alive, use `losses.target = 'codebook'`, `model.final_norm = true` or a lower "
            "`losses.continuity`, or try `spwnet tune`.",
            len(found),
            classes,
        )
    return len(found)


def _classes_in_use(labels: Sequence[NDArray[np.int32]], model: TrainedModel) -> dict[str, int]:
    """Count the working pixels of each class that is left on the training images; warn if hardly any is."""
    n_classes = model.n_classes()
    counts = np.sum([areas(found, n_classes) for found in labels], axis=0)
    used = {str(k): int(n) for k, n in enumerate(counts) if n}
    if len(used) < min(FEW_CLASSES, n_classes):
        logger.warning(
            "only %d of %d classes are left on the training images: the training collapsed. Try another `seed`, "
            "a lower `losses.continuity`, or a higher `losses.image`.",
            len(used),
            n_classes,
        )
    return used


def run(
    images: Any,
    output: str | Path,
    *,
    settings: Settings | None = None,
    frames: Sequence[int | str] | Literal["all", "auto"] | None = None,
    superpixels: Any = None,
    suffix: str | None = None,
    rate: float = FRAME_RATE,
    overlays: bool | Literal["full"] = True,
    uncertainty: bool = False,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    watch: Sequence[Watcher] = (),
    **blocks: Any,
) -> tuple[TrainedModel, Segmentation | VolumeSegmentation]:
    """Train on a few of the images, then segment all of them: ``output/run`` and ``output/segmentation``.

    The number of channels of every image is checked before training; pixels of images that are not trained on
    are read, and checked, when their turn comes.

    Parameters
    ----------
    images, settings, superpixels, device, overwrite, resume, on_progress, watch
        As in `train`.
    output : path
    frames : sequence of int or str, "all" or "auto", optional
        Frames to train on, as in `train`; all images are segmented.
    suffix, rate, overlays, uncertainty
        As in `segment`; of a volume, `suffix` as in `segment_volume`, and none of the others.
    **blocks
        For a volume, `block`, `workers`, `scheduler` and `meshes` as in `segment_volume`.

    Returns
    -------
    TrainedModel, Segmentation or VolumeSegmentation

    Raises
    ------
    SpwnetError
        For any input, setting or place that cannot be used.
    Stopped
        After Ctrl-C, with everything kept to go on from.
    TypeError
        For an argument of volumes where `images` is none.
    """
    folder = Path(output)
    storage.check_folder(folder, overwrite=overwrite, resume=resume)
    settings = settings or Settings()
    both: dict[str, Any] = {"device": device, "overwrite": overwrite, "resume": resume, "on_progress": on_progress}
    if isinstance(images, Volume):
        blocks["suffix"] = suffix or ".tif"
        check_options(**blocks)
        refused = {"rate": rate != FRAME_RATE, "overlays": overlays is not True, "uncertainty": uncertainty}
        given = [name for name, is_given in refused.items() if is_given]
        if given:
            raise SettingsError(f"expected no `{given[0]}` with a volume, as it is for images alone; leave it out")
        most = most_ids(settings)
        if max(blocks.get("meshes", ()), default=0) >= most:
            raise SettingsError(f"expected classes 0 to {most - 1} for surfaces, but got {max(blocks['meshes'])}")
        model = train(
            images, folder / "run", settings=settings, frames=frames, superpixels=superpixels, watch=watch, **both
        )
        return model, segment_volume(model, images, folder / "segmentation", **blocks, **both)
    if blocks:
        raise TypeError(f"run() got the argument {next(iter(blocks))!r}, which is for volumes alone or unknown")
    source = open_images(images, settings.images.axes)
    check_same_channels(source)
    check_output(source, range(len(source)), suffix, rate)
    model = train(
        source, folder / "run", settings=settings, frames=frames, superpixels=superpixels, watch=watch, **both
    )
    segmented = segment(
        model, source, folder / "segmentation", superpixels=superpixels, suffix=suffix, rate=rate,
        overlays=overlays, uncertainty=uncertainty, **both,
    )  # fmt: skip
    return model, segmented


def _begin(
    directory: Run,
    settings: Settings,
    info: dict[str, Any],
    normalisation: Normalisation,
    *,
    overwrite: bool,
    resume: bool,
) -> bool:
    """Make a run directory, or check that the run in it can go on; return whether that is finished already."""
    if not resume:
        directory.create(overwrite=overwrite)
    elif _check_resumable(directory, settings, info):
        return True
    directory.write({"finished": False, **info}, settings, normalisation)
    return False


def _check_resumable(directory: Run, settings: Settings, info: dict[str, Any]) -> bool:
    """Check that a run is of these settings and images; return whether it is finished."""
    before, old_settings, _ = directory.read()
    if old_settings != settings:
        now, then = (flat(one.model_dump()) for one in (settings, old_settings))
        odd = next(key for key in now if now[key] != then[key])
        raise RunError(
            f"expected the settings of the run in {directory.folder} to go on with it, but `{odd}` was {then[odd]} "
            f"and is now {now[odd]}; use the same settings or another directory"
        )
    try:
        theirs = [image["sha256"] for image in before.get("images", [])]
    except (KeyError, TypeError) as error:
        raise RunError(
            f"expected the training images in {directory.description}, but: {error!r}; start again by `--overwrite`"
        ) from error
    if theirs != [image["sha256"] for image in info["images"]]:
        raise RunError(
            f"expected the training images of the run in {directory.folder} to go on with it, but got others; "
            "use the same images or another directory"
        )
    return bool(before.get("finished"))

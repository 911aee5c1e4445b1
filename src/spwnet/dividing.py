"""Divide an image into a hierarchy of regions: evidence by hand and by a network, merged and written."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spwnet import outputs, storage
from spwnet.api import train
from spwnet.config import Settings
from spwnet.descriptors import network_input
from spwnet.devices import arithmetic, convolution_type, deterministic, pick_device
from spwnet.edges import find_evidence
from spwnet.errors import InputError, OutputError, SettingsError, Stopped
from spwnet.filters import interpolated
from spwnet.hierarchy import RegionHierarchy
from spwnet.images import fingerprint, open_images
from spwnet.merging import (
    HAND_MADE,
    WITH_LEARNED,
    Description,
    find_arcs,
    find_leaves,
    merge,
    pool,
    spectral_positions,
    word_shares,
)
from spwnet.prediction import thinning
from spwnet.preparation import display, measure, prepare, restore, to_display, without_margin, working_size
from spwnet.presets import merged, parse_settings
from spwnet.runs import load
from spwnet.segmenting import MOST_PICTURE_PIXELS
from spwnet.trained import TrainedModel
from spwnet.training import Progress, stoppable

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from spwnet.config import ImageSettings
    from spwnet.images import Image, ImageSource
    from spwnet.preparation import Frame, Normalisation

LEAST_SIDE = 16
"""Pixels of the shorter side of an image; in less the half-discs see little but the border."""


@storage.claiming("output")
def regions(
    image: Any,
    output: str | Path | None = None,
    *,
    model: TrainedModel | str | Path | None = None,
    learned: bool = True,
    settings: Settings | None = None,
    count: int | None = None,
    level: float | None = None,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> RegionHierarchy:
    """Divide one image into regions at every level, without labels.

    Parameters
    ----------
    image : path or array
        One image: a file or an array (H, W) or (H, W, C).
    output : path, optional
        Folder to write to, see `regions_of_all`; without one nothing is written. One that holds something is refused
        unless `overwrite` or `resume` is given.
    model : TrainedModel or path, optional
        Trained network, or its run directory, that gives the learned evidence. Without one, a small network is
        trained on the image itself.
    learned : bool
        False leaves the learned evidence out, which takes a third of the time.
    settings : Settings, optional
        See `make_settings`; the sections `images` and `regions`, and `seed`, count.
    count, level, device, overwrite, resume
        As in `regions_of_all`.
    on_progress : callable
        Called with a `Progress` after each step of the training and when the image is done.

    Returns
    -------
    RegionHierarchy
        In the size of the image. `cut` gives the regions of any level.

    Raises
    ------
    SpwnetError
        For any input, setting or place that cannot be used.
    Stopped
        After Ctrl-C.
    """
    settings = settings or Settings()
    source = open_images(image, settings.images.axes)
    if len(source) != 1:
        raise InputError(
            f"expected one image, but got {len(source)}; divide several by `regions_of_all`, each on its own"
        )
    found: list[RegionHierarchy] = []
    _divide_all(
        source,
        output,
        settings,
        _evidence_model(model, learned, device),
        learned=learned,
        count=count,
        level=level,
        device=device,
        overwrite=overwrite,
        resume=resume,
        on_progress=on_progress,
        on_found=found.append,
    )
    return found[0]


@storage.claiming("output")
def regions_of_all(
    images: Any,
    output: str | Path,
    *,
    model: TrainedModel | str | Path | None = None,
    learned: bool = True,
    settings: Settings | None = None,
    count: int | None = None,
    level: float | None = None,
    device: str = "auto",
    overwrite: bool = False,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[str, ...]:
    """Divide each of many images into regions, and write the hierarchy and one level of each.

    ::

        OUTPUT/
          NAME.npz              the hierarchy: `RegionHierarchy.load` reads it
          labels/NAME.png       regions of one level, in the size of the image; of more than 65,536 NAME.tif
          overlays/NAME.jpg     their boundaries drawn over the image, which is thinned if it is large
          boundaries/NAME.png   all boundaries at once, the brighter the longer they last

    Parameters
    ----------
    images : path, glob, array, or sequence of these
    output : path
    model, learned, settings
        As in `regions`.
    count : int, optional
        Number of regions to draw; an image with fewer leaves gets as many as it has.
    level : float, optional
        Or the threshold to draw at, 0…1; `regions.level` of the settings if neither is given.
    device : str
        "auto", "cpu", "cuda" or "mps".
    overwrite, resume : bool
        Replace what is in `output`, or go on: hierarchies that are there are read, their level is drawn anew.
    on_progress : callable
        Called with a `Progress` after each step of a training and after each image.

    Returns
    -------
    tuple of str
        Names of the images.

    Raises
    ------
    SpwnetError
        For any input, setting or place that cannot be used.
    Stopped
        After Ctrl-C; what is written is complete.
    """
    settings = settings or Settings()
    source = open_images(images, settings.images.axes)
    _divide_all(
        source,
        output,
        settings,
        _evidence_model(model, learned, device),
        learned=learned,
        count=count,
        level=level,
        device=device,
        overwrite=overwrite,
        resume=resume,
        on_progress=on_progress,
        on_found=lambda _: None,
    )
    return source.names


@storage.claiming("output")
def recut_regions(
    hierarchy: RegionHierarchy | str | Path,
    output: str | Path,
    *,
    name: str | None = None,
    count: int | None = None,
    level: float | None = None,
    overwrite: bool = False,
) -> NDArray[np.int32]:
    """Cut another level out of a hierarchy and write it: no image and no network is needed.

    Parameters
    ----------
    hierarchy : RegionHierarchy or path
    output : path
        Folder for ``labels/`` and ``overlays/``; boundaries are drawn over the leaves' mean colours.
    name : str, optional
        Of the files; that of the hierarchy's file, or of its image, if not given.
    count, level
        Number of regions, at most that of the hierarchy's leaves, or threshold.
    overwrite : bool
        Replace what is in `output`.

    Returns
    -------
    (H, W) int32 array of regions

    Raises
    ------
    InputError
        If the hierarchy cannot be read, or the name is none of a file.
    SettingsError
        If both a number and a threshold are given, or one is out of range.
    OutputError
        If `output` cannot be written or holds something.
    """
    if not isinstance(hierarchy, RegionHierarchy):
        name = name or Path(hierarchy).stem
        hierarchy = RegionHierarchy.load(hierarchy)
    name = name or str(hierarchy.info.get("name", "image"))
    if Path(name).name != name or name == ".." or "\\" in name:
        raise InputError(f"expected a plain name for the files, but got {name!r}; pass another `name`")
    storage.check_folder(output, overwrite=overwrite)
    level = Settings().regions.level if count is None and level is None else level
    labels = hierarchy.cut(regions=count, threshold=level)
    folder = storage.prepare_folder(output, overwrite=overwrite)
    _write_level(folder, name, hierarchy, labels, hierarchy.colours[hierarchy.leaves], 1)
    return labels


def _evidence_model(model: TrainedModel | str | Path | None, learned: bool, device: str) -> TrainedModel | None:
    if model is None:
        return None
    if not learned:
        raise SettingsError("expected either a model or `learned=False`, but got both; drop one")
    model = model if isinstance(model, TrainedModel) else load(model, device=device)
    if model.network is None:
        raise SettingsError("expected a model with a network, but this one was made without training; give another")
    return model


def _divide_all(
    source: ImageSource,
    output: str | Path | None,
    settings: Settings,
    model: TrainedModel | None,
    *,
    learned: bool,
    count: int | None,
    level: float | None,
    device: str,
    overwrite: bool,
    resume: bool,
    on_progress: Callable[[Progress], None],
    on_found: Callable[[RegionHierarchy], None],
) -> None:
    """Divide the images one after the other; give each hierarchy to `on_found` and to the folder."""
    if count is not None and level is not None:
        raise SettingsError("expected either a number of regions or a level, but got both; drop one")
    if count is not None and count < 1:
        raise SettingsError(f"expected at least one region, but got {count}")
    level = settings.regions.level if level is None and count is None else level
    if level is not None and not 0 <= level <= 1:
        raise SettingsError(f"expected a level of 0 to 1, but got {level}")
    target = pick_device(device)
    folder = None
    if output is not None:
        storage.check_folder(output, overwrite=overwrite, resume=resume)
        folder = storage.prepare_folder(output, overwrite=overwrite, resume=resume)
    evidence = "none" if not learned else "trained on the image" if model is None else model.fingerprint
    start = time.monotonic()
    with stoppable() as should_stop:
        for position in range(len(source)):
            image = source[position]
            about = {
                "name": image.name,
                "sha256": fingerprint(image),
                "seed": settings.seed,
                "learned": evidence,
                "images": json.loads(settings.images.model_dump_json()),
                "regions": json.loads(settings.regions.model_dump_json(exclude={"level"})),
            }
            normalisation = _normalisation(image, settings)
            hierarchy = None if folder is None or not resume else _earlier(folder, about)
            if hierarchy is None:
                try:
                    hierarchy = _divide(image, settings, normalisation, model, about, learned, target, on_progress)
                except Stopped as stopped:  # in the training on the image
                    raise _stopped(position, source, folder) from stopped
                if folder is not None:
                    hierarchy.save(folder / f"{image.name}.npz")
            if folder is not None:
                _draw(folder, image, normalisation, hierarchy, count, level)
            on_found(hierarchy)
            done = position + 1
            left = (time.monotonic() - start) / done * (len(source) - done)
            on_progress(Progress("regions", done, len(source), left, {}))
            if done < len(source) and should_stop():
                raise _stopped(done, source, folder)


def _stopped(done: int, source: ImageSource, folder: Path | None) -> Stopped:
    how = "go on by `--resume` (in Python `resume=True`)" if folder else "without a folder nothing is kept"
    return Stopped(f"stopped after {done} of {len(source)} images; {how}")


def _earlier(folder: Path, about: dict[str, Any]) -> RegionHierarchy | None:
    """Read the hierarchy of the same image and settings that is in the folder already."""
    file = folder / f"{about['name']}.npz"
    if not file.exists():
        return None
    hierarchy = RegionHierarchy.load(file)
    odd = [key for key in about if hierarchy.info.get(key) != about[key]]
    if odd:
        raise OutputError(
            f"expected {file} to be of the same image and settings to go on with it, but its '{odd[0]}' differs; "
            "write to another folder, or use `--overwrite`"
        )
    return hierarchy


def _normalisation(image: Image, settings: Settings) -> Normalisation | None:
    """Statistics of the image without its margin; None if it is constant."""
    pixels = without_margin(image, settings.images.margin)
    height, width = working_size(image.pixels.shape, _working(settings, settings.regions.max_pixels))
    if min(height, width) < LEAST_SIDE:
        raise InputError(
            f"expected an image of at least {LEAST_SIDE}×{LEAST_SIDE} pixels, but '{image.name}' has {height}×{width} "
            "as it is worked on; enlarge it first, or use a smaller `images.margin` or a larger `images.scale`"
        )
    return None if (pixels == pixels[0, 0]).all() else measure([image], settings.images)


def _working(settings: Settings, most_pixels: int) -> ImageSettings:
    return settings.images.model_copy(update={"max_pixels": most_pixels})


def _divide(
    image: Image,
    settings: Settings,
    normalisation: Normalisation | None,
    model: TrainedModel | None,
    about: dict[str, Any],
    learned: bool,
    device: torch.device,
    on_progress: Callable[[Progress], None],
) -> RegionHierarchy:
    """Make the hierarchy of one image, in its own size."""
    info = {**about, **outputs.provenance()}
    if normalisation is None:
        shape = image.pixels.shape[:2]
        none = np.zeros((0, 2), np.int32), np.zeros(0)
        return RegionHierarchy(np.zeros(shape, np.int32), *none, np.full((1, 3), 128, np.uint8), info)
    if learned and model is None:
        model = _trained_on(image, settings, device, on_progress)
    prepared = prepare(image, _working(settings, settings.regions.max_pixels), normalisation)
    evidence = find_evidence(prepared.unit, rgb=prepared.rgb, seed=settings.seed)
    leaves = find_leaves(evidence)
    arcs, sizes = find_arcs(leaves, evidence), np.bincount(leaves.ravel())
    description = Description(
        sizes=sizes,
        colour=pool(leaves, evidence.colour),
        words=word_shares(leaves, evidence.words),
        spectral=spectral_positions(arcs, sizes),
        learned=np.zeros((sizes.size, 0)) if model is None else _learned(model, image, leaves, prepared.frame),
    )
    merges, heights = merge(arcs, description, HAND_MADE if model is None else WITH_LEARNED)
    colours = pool(leaves, to_display(prepared.unit)).round().astype(np.uint8)
    return RegionHierarchy(restore(leaves, prepared.frame), merges, heights, colours, info)


def _trained_on(
    image: Image, settings: Settings, device: torch.device, on_progress: Callable[[Progress], None]
) -> TrainedModel:
    """Train a network on the image, reduced, as the default does on several."""
    own = {
        "images": _working(settings, settings.regions.learned_pixels).model_dump(),
        "training": {"epochs": 1, "batches": settings.regions.steps, "precision": settings.training.precision},
    }
    small = parse_settings(merged(Settings(seed=settings.seed).model_dump(), own))
    height, width = working_size(image.pixels.shape, small.images)
    smallest = 2**small.model.n_blocks * small.model.reduction
    if max(height, width) <= smallest:
        raise InputError(
            f"expected more than {smallest} pixels along one side of '{image.name}' to train a network on it, but got "
            f"{height}×{width} as it is worked on; enlarge it, or use `learned=False` / `--no-learned`"
        )
    return train(_OneImage(image), settings=small, device=str(device), on_progress=on_progress)


class _OneImage:
    """An image that is open already, as an `ImageSource`: what it is stays known."""

    def __init__(self, image: Image) -> None:
        self.names, self.numbers = (image.name,), (0,)
        self._image = image

    def __len__(self) -> int:
        return 1

    def __getitem__(self, position: int) -> Image:
        return self._image


@deterministic()
@torch.inference_mode()
def _learned(model: TrainedModel, image: Image, leaves: NDArray[np.int32], frame: Frame) -> NDArray[np.float64]:
    """Average the network's class probabilities over the leaves, (L, K)."""
    assert model.network is not None
    prepared = prepare(image, model.settings.images, model.normalisation)
    pixels = network_input(prepared, model.device, model.settings.model)
    with arithmetic(pixels.device, convolution_type(model.settings.training.precision, pixels.device)):
        reduced = model.network.classify(pixels)[0]
    probabilities = interpolated(reduced, model.settings.model.reduction, prepared.unit.shape[:-1]).cpu().numpy()
    # Class by class through the size of the image: all at once they may not fit into memory.
    means = [pool(leaves, frame.to_working(restore(one, prepared.frame)))[:, 0] for one in probabilities]
    averages: NDArray[np.float64] = np.stack(means, axis=1)
    return averages


def _draw(
    folder: Path,
    image: Image,
    normalisation: Normalisation | None,
    hierarchy: RegionHierarchy,
    count: int | None,
    level: float | None,
) -> None:
    """Write labels, overlay and boundaries of one image."""
    labels = hierarchy.cut(regions=count if count is None else min(count, hierarchy.count), threshold=level)
    stride = thinning(labels.shape, MOST_PICTURE_PIXELS)
    if normalisation is None:
        picture = hierarchy.colours[hierarchy.leaves[::stride, ::stride]]
    else:
        picture = display(image, normalisation, stride)
    _write_level(folder, image.name, hierarchy, labels, picture, stride)
    boundaries = storage.prepare_folder(folder / "boundaries", resume=True)
    strength = np.rint(hierarchy.boundaries() * 255).astype(np.uint8)
    outputs.write_picture(boundaries / f"{image.name}.png", strength)


def _write_level(
    folder: Path,
    name: str,
    hierarchy: RegionHierarchy,
    labels: NDArray[np.int32],
    picture: NDArray[np.uint8],
    stride: int,
) -> None:
    """Write the label image and the overlay of one level."""
    for part in ("labels", "overlays"):
        storage.prepare_folder(folder / part, resume=True)
    # The type is that of all levels, unless PNG does not hold so many; nor does it hold every level.
    most, suffixes = 1 + np.iinfo(np.uint16).max, (".png", ".tif")
    n_regions = hierarchy.count if hierarchy.count <= most else int(labels.max()) + 1
    suffix = suffixes[n_regions > most]
    outputs.write_labels(folder / "labels" / f"{name}{suffix}", labels, n_regions)
    for other in set(suffixes) - {suffix}:
        (folder / "labels" / f"{name}{other}").unlink(missing_ok=True)
    drawn = outputs.outline(picture, labels[::stride, ::stride])
    outputs.write_picture(folder / "overlays" / f"{name}.jpg", drawn)

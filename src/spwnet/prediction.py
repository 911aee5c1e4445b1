"""From images to labels with a trained network: one image, or a stream of them."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from spwnet.blocks import tiles, widened, within
from spwnet.classes import clean
from spwnet.codebook import Descriptors
from spwnet.codebook import uncertainty as doubt_of
from spwnet.descriptors import handmade, network_input
from spwnet.devices import arithmetic, convolution_type, deterministic, worker_pool
from spwnet.errors import InputError
from spwnet.filters import interpolated
from spwnet.graph import build_graph
from spwnet.images import fingerprint
from spwnet.outputs import MOST_JPEG
from spwnet.preparation import SMOOTH, Prepared, display, frame_of, prepare, restore, working_size
from spwnet.results import Prediction
from spwnet.steadying import steady
from spwnet.superpixels import Superpixels, make_superpixels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from spwnet.codebook import Energies
    from spwnet.config import LabelSettings, Settings, SuperpixelSettings
    from spwnet.graph import RegionGraph
    from spwnet.images import Image, ImageSource
    from spwnet.model import WNet
    from spwnet.preparation import Normalisation, Patch
    from spwnet.steadying import Before
    from spwnet.trained import TrainedModel

HALO = 128
"""Working pixels that a patch sees around it: what lies beyond tells next to nothing about it."""
LEAST_SIDE = 320
"""Working pixels along a side of a patch, with its halo, at least."""
MOST_WORKERS = 8
"""Images in work at a time, at most; each takes a few hundred bytes a working pixel."""


def prepare_image(
    image: Image,
    settings: Settings,
    normalisation: Normalisation,
    labels: NDArray[Any] | None = None,
    patch: Patch | None = None,
) -> tuple[Prepared, Superpixels | None]:
    """Prepare one image, or a patch of it, and oversegment it.

    Parameters
    ----------
    image : Image
    settings : Settings
    normalisation : Normalisation
    labels : (H, W) or (h, w) int array, optional
        The user's superpixels, in the size of the input or in the working size.
    patch : (slice, slice), optional
        Rows and columns in working pixels.
    """
    prepared = prepare(image, settings.images, normalisation, patch)
    frame = prepared.frame
    if labels is not None and labels.shape[:2] == frame.shape:
        labels = frame.to_working(labels)
    elif labels is not None and labels.shape[:2] == frame.working:
        labels = labels[frame.shown]
    return prepared, oversegment(prepared, settings.superpixels, labels)


def oversegment(
    prepared: Prepared, settings: SuperpixelSettings, labels: NDArray[Any] | None = None
) -> Superpixels | None:
    """Oversegment a prepared image, as `make_superpixels`."""
    smooth = prepared.smooth if settings.method == "slic" and settings.sigma == SMOOTH else None
    frame = prepared.frame
    return make_superpixels(
        prepared.unit, settings, rgb=prepared.rgb, smooth=smooth, labels=labels, whole=frame.working, part=frame.shown
    )


@deterministic()
@torch.inference_mode()
def describe(
    network: WNet | None,
    prepared: Prepared,
    graph: RegionGraph | None,
    settings: Settings,
    device: torch.device | str,
) -> Descriptors:
    """Describe each superpixel by what the settings take as evidence, averaged over it.

    Parameters
    ----------
    network : WNet or None
        In evaluation mode, on the device; for learned evidence.
    prepared : Prepared
    graph : RegionGraph or None
        None describes each pixel.
    settings : Settings
    device : torch device

    Returns
    -------
    Descriptors
        Rows of D values, the sizes of `evidence_kinds` added up; without superpixels one for each pixel.
    """
    device = torch.device(device)
    evidence, channels = settings.codebook.evidence, prepared.network.shape[-1]
    reduction, shape = settings.model.reduction, prepared.unit.shape[:-1]
    maps, filters = [], None
    if network is not None and evidence in ("all", "learned"):
        pixels = network_input(prepared, device, settings.model)
        with arithmetic(device, convolution_type(settings.training.precision, device)):
            maps.append((network.classify(pixels)[0], reduction))
        filters = pixels[0, channels:] if settings.model.evidence else None
    if evidence != "learned":
        # Colour, the first of the filters, keeps every pixel: it has the sharpest borders.
        colour = prepared.colour.to(device)
        maps.append((colour, 1))
        if evidence != "colour":
            filters = handmade(colour, reduction, prepared.smooth.to(device)) if filters is None else filters
            maps.append((filters[channels:], reduction))
    if graph is None:
        wide = torch.cat([interpolated(part, factor, shape) for part, factor in maps])
        return Descriptors(wide.flatten(1).T.contiguous().cpu().numpy())
    rows = np.concatenate([graph.average(part, factor) for part, factor in maps], axis=1)
    return Descriptors(rows, graph.edges.cpu().numpy(), graph.contacts.cpu().numpy())


@deterministic()
@torch.inference_mode()
def predict(
    model: TrainedModel,
    prepared: Prepared,
    graph: RegionGraph | None,
    labels: LabelSettings,
    descriptors: Descriptors | None = None,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Label one prepared image in its working size.

    Parameters
    ----------
    model : TrainedModel
        Its network in evaluation mode. While it has no codebook, in training, the mode "codebook" is the arg max.
    prepared : Prepared
    graph : RegionGraph or None
        None labels each pixel on its own.
    labels : LabelSettings
        Mode, number of classes and merges; no cleaning.
    descriptors : Descriptors, optional
        What `describe` gave, if it is known already.

    Returns
    -------
    classes : (h, w) int32 array
    uncertainty : (h, w) float32 array in 0…1
        By codebook as in `Assignment`; else the probability of the next class over that of the class. 0 is sure.
    """
    shape = prepared.unit.shape[:-1]
    members = model.members(labels)
    if labels.mode == "codebook" and model.codebook is not None:
        if descriptors is None:
            descriptors = describe(model.network, prepared, graph, model.settings, model.device)
        classes, doubt = model.codebook.assign(descriptors, members)
        nodes = _nodes(graph, shape)
        return classes[nodes], doubt[nodes]
    assert model.network is not None
    pixels = network_input(prepared, model.device, model.settings.model)
    with arithmetic(model.device, convolution_type(model.settings.training.precision, model.device)):
        features = interpolated(model.network.encode(pixels)[0], model.settings.model.reduction, shape)
    rows = features.flatten(1).T if graph is None else graph.pool(features)
    best = rows.softmax(1).topk(2, dim=1)
    found, second = best.indices[:, 0], best.values[:, 1] / best.values[:, 0]
    if graph is not None:
        found, second = graph.node_labels(features, rows, labels.mode)[graph.labels], second[graph.labels]
    return members[found.cpu().numpy()].reshape(shape).astype(np.int32), second.cpu().numpy().reshape(shape)


def predict_in_patches(
    model: TrainedModel,
    image: Image,
    labels: LabelSettings,
    regions: NDArray[Any] | None,
    most_pixels: int,
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Label an image in its working size patch by patch, each with a halo around it.

    Pixels and superpixels of a patch are those of the whole image. Evidence from beyond the halo is missing: labels can
    differ in places.

    Parameters
    ----------
    model, labels
        As in `predict`.
    image : Image
    regions : (H, W) or (h, w) int array or None
        The user's superpixels.
    most_pixels : int
        Working pixels of a patch with its halo, at most; the square of `LEAST_SIDE` at least.

    Returns
    -------
    classes : (h, w) int32 array
    uncertainty : (h, w) float32 array in 0…1
    """
    working = working_size(image.pixels.shape, model.settings.images)
    side = math.isqrt(most_pixels) - 2 * HALO
    sides = [math.ceil(n / math.ceil(n / side)) for n in working]
    classes, doubt = np.empty(working, np.int32), np.empty(working, np.float32)
    for core in tiles((1, *working), (1, *sides)):
        around = widened(core, (0, HALO, HALO), (1, *working))
        prepared, superpixels = prepare_image(image, model.settings, model.normalisation, regions, around[1:])
        graph = None if superpixels is None else build_graph(superpixels, prepared.unit, model.device)
        inner = within(core, around)[1:]
        classes[core[1:]], doubt[core[1:]] = (found[inner] for found in predict(model, prepared, graph, labels))
    return classes, doubt


def thinning(shape: Sequence[int], most_pixels: int | None) -> int:
    """Step between the rows, and columns, of a picture of an image (H, W, …) that leaves as many as a JPEG holds.

    Parameters
    ----------
    shape : (H, W, …)
    most_pixels : int or None
        And so many pixels at most, if given.
    """
    step = math.ceil(max(shape[:2]) / MOST_JPEG)
    return step if most_pixels is None else max(step, math.ceil(math.sqrt(shape[0] * shape[1] / most_pixels)))


def _nodes(graph: RegionGraph | None, shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Row of the descriptors that each pixel belongs to, (h, w)."""
    if graph is None:
        return np.arange(math.prod(shape), dtype=np.int32).reshape(shape)
    return graph.labels.cpu().numpy().astype(np.int32).reshape(shape)


@dataclass(frozen=True)
class _Seen:
    """A frame before it is labelled: all that can be found out without the frame before it."""

    nodes: NDArray[np.int32]
    smooth: NDArray[np.float32]
    descriptors: Descriptors
    energies: Energies


@deterministic()
@torch.inference_mode()
def _see(model: TrainedModel, prepared: Prepared, graph: RegionGraph | None) -> _Seen:
    assert model.codebook is not None
    descriptors = describe(model.network, prepared, graph, model.settings, model.device)
    smooth = prepared.smooth.movedim(0, -1).contiguous().numpy()
    return _Seen(_nodes(graph, prepared.unit.shape[:-1]), smooth, descriptors, model.codebook.energies(descriptors))


def predict_all(
    model: TrainedModel,
    source: ImageSource,
    indices: Sequence[int],
    labels: LabelSettings,
    label_source: Callable[[int], NDArray[Any] | None] = lambda _: None,
    *,
    most_picture_pixels: int | None = 0,
    uncertainty: bool = True,
    sha256: bool = True,
    carry: Before | Literal[False] | None = False,
    most_workers: int = MOST_WORKERS,
    most_pixels: int | None = None,
) -> Iterator[Prediction | InputError]:
    """Label the images of a source in their order, a few at a time, each on one thread.

    Parameters
    ----------
    model : TrainedModel
    source : ImageSource
    indices : sequence of int
        Positions in the source.
    labels : LabelSettings
    label_source : callable
        From a position to the user's superpixels.
    most_picture_pixels : int or None
        Pictures to draw the classes over are thinned to so many pixels at most; 0 makes none, None thins only what no
        JPEG holds.
    uncertainty, sha256 : bool
        Whether to work these out.
    carry : Before, None or False
        False labels each image on its own; else each in the light of the one before it, the first in that of `carry`.
    most_workers : int
        Images in work at a time, at most.
    most_pixels : int, optional
        Larger images are labelled in patches of so many working pixels; only without `carry`.

    Yields
    ------
    Prediction or InputError
        The error if that image, or its superpixels, cannot be read or prepared: the others go on.
    """
    settings, normalisation = model.settings, model.normalisation
    steadily = carry is not False and labels.mode == "codebook"
    members = model.members(labels)

    def work(index: int) -> Callable[[Before | None], Prediction] | InputError:
        try:
            return label_one(source[index], label_source(index))
        except InputError as error:
            return error

    def label_one(image: Image, regions: NDArray[Any] | None) -> Callable[[Before | None], Prediction]:
        frame = frame_of(image.pixels.shape, settings.images)
        stride, picture = 1, None
        if most_picture_pixels != 0:
            stride = thinning(image.pixels.shape, most_picture_pixels)
            picture = display(image, normalisation, stride)
        digest = fingerprint(image) if sha256 else None

        def finish(classes: NDArray[np.int32], doubt: NDArray[np.float32], now: Before | None = None) -> Prediction:
            cleaned = clean(classes, labels)
            pixels = np.bincount(cleaned.ravel(), frame.counts().ravel())
            wide = restore(doubt, frame) if uncertainty else None
            return Prediction(
                name=image.name,
                labels=restore(cleaned, frame),
                uncertainty=wide,
                areas={k: int(n) for k, n in enumerate(pixels) if n},
                picture=picture,
                stride=stride,
                sha256=digest,
                now=now,
            )

        if most_pixels is not None and math.prod(frame.working) > most_pixels:
            in_patches = finish(*predict_in_patches(model, image, labels, regions, most_pixels))
            return lambda _: in_patches
        prepared, superpixels = prepare_image(image, settings, normalisation, regions)
        graph = None if superpixels is None else build_graph(superpixels, prepared.unit, model.device)
        if not steadily:
            done = finish(*predict(model, prepared, graph, labels))
            return lambda _: done
        seen = _see(model, prepared, graph)

        def label(before: Before | None) -> Prediction:
            nearest, now = steady(before, seen.smooth, seen.nodes, seen.energies)
            doubt = np.zeros(0, np.float32)
            if uncertainty:
                doubt = doubt_of(seen.energies, nearest, members, seen.descriptors)[seen.nodes]
            return finish(members[now.classes].astype(np.int32), doubt, now)

        return label

    workers = max(1, min(torch.get_num_threads(), len(indices), most_workers))
    waiting: deque[Future[Callable[[Before | None], Prediction] | InputError]] = deque()
    before = carry or None
    with worker_pool(workers) as pool:
        for index in [*indices, *[None] * workers]:
            if index is not None:
                waiting.append(pool.submit(work, index))
            if len(waiting) > workers or (index is None and waiting):
                result = waiting.popleft().result()
                if isinstance(result, InputError):
                    yield result
                    continue
                prediction = result(before)
                before = prediction.now
                yield prediction

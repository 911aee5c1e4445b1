"""From images to labels with a trained network: one image, or a stream of them."""

from __future__ import annotations

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spwnet.classes import clean
from spwnet.codebook import Descriptors
from spwnet.descriptors import gaussian, handmade, interpolated, network_input
from spwnet.devices import arithmetic, convolution_type, deterministic, to_tensor
from spwnet.graph import build_graph
from spwnet.images import fingerprint
from spwnet.preparation import Prepared, prepare, restore, to_display, to_unit
from spwnet.runs import Prediction, TrainedModel
from spwnet.superpixels import Superpixels, make_superpixels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    from numpy.typing import NDArray

    from spwnet.config import LabelSettings, Settings, SuperpixelSettings
    from spwnet.graph import RegionGraph
    from spwnet.images import Image, ImageSource
    from spwnet.model import WNet
    from spwnet.preparation import Normalisation

MOST_PICTURE_PIXELS = 1_000_000
"""Pictures of larger images are thinned."""
MOST_WORKERS = 8
"""Images in work at a time, at most; each takes a few hundred bytes a working pixel."""


def prepare_image(
    image: Image, settings: Settings, normalisation: Normalisation, labels: NDArray[Any] | None = None
) -> tuple[Prepared, Superpixels | None]:
    """Prepare one image and oversegment it.

    Parameters
    ----------
    image : Image
    settings : Settings
    normalisation : Normalisation
    labels : (H, W) or (h, w) int array, optional
        The user's superpixels, in the size of the input or in the working size.
    """
    prepared = prepare(image, settings.images, normalisation)
    if labels is not None and labels.shape[:2] == prepared.frame.shape:
        labels = prepared.frame.bring(labels)
    return prepared, oversegment(prepared, settings.superpixels, labels)


def oversegment(
    prepared: Prepared, settings: SuperpixelSettings, labels: NDArray[Any] | None = None
) -> Superpixels | None:
    """Oversegment a prepared image, as `make_superpixels`."""
    smooth = None
    if settings.method == "slic" and settings.sigma > 0:
        colour = torch.from_numpy(prepared.colour).movedim(-1, 0)
        smooth = gaussian(colour.contiguous(), settings.sigma).movedim(0, -1).contiguous().numpy()
    return make_superpixels(prepared.unit, settings, rgb=prepared.rgb, smooth=smooth, labels=labels)


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
        colour = to_tensor(prepared.colour, device)[0]
        maps.append((colour, 1))
        if evidence != "colour":
            filters = handmade(colour.contiguous(), reduction) if filters is None else filters
            maps.append((filters[channels:], reduction))
    if graph is None:
        wide = torch.cat([interpolated(part, factor, shape) for part, factor in maps])
        return Descriptors(wide.flatten(1).T.contiguous().cpu().numpy())
    rows = np.concatenate([graph.average(part, factor) for part, factor in maps], axis=1)
    return Descriptors(rows, graph.edges.cpu().numpy(), graph.contacts.cpu().numpy())


@deterministic()
@torch.inference_mode()
def predict(
    model: TrainedModel, prepared: Prepared, graph: RegionGraph | None, labels: LabelSettings
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

    Returns
    -------
    classes : (h, w) int32 array
    uncertainty : (h, w) float32 array in 0…1
        By codebook as in `Assignment`; else the probability of the next class over that of the class. 0 is sure.
    """
    shape = prepared.unit.shape[:-1]
    members = model.members(labels)
    if labels.mode == "codebook" and model.codebook is not None:
        descriptors = describe(model.network, prepared, graph, model.settings, model.device)
        classes, uncertainty = model.codebook.assign(descriptors, members)
        if graph is None:
            return classes.reshape(shape), uncertainty.reshape(shape)
        nodes = graph.labels.cpu().numpy()
        return classes[nodes].reshape(shape), uncertainty[nodes].reshape(shape)
    assert model.network is not None
    pixels = network_input(prepared, model.device, model.settings.model)
    with arithmetic(model.device, convolution_type(model.settings.training.precision, model.device)):
        features = interpolated(model.network.encode(pixels)[0], model.settings.model.reduction, shape)
    rows = features.flatten(1).T if graph is None else graph.pool(features)
    best = rows.softmax(1).topk(2, dim=1)
    found, doubt = best.indices[:, 0], best.values[:, 1] / best.values[:, 0]
    if graph is not None:
        found, doubt = graph.node_labels(features, rows, labels.mode)[graph.labels], doubt[graph.labels]
    return members[found.cpu().numpy()].reshape(shape).astype(np.int32), doubt.cpu().numpy().reshape(shape)


def predict_all(
    model: TrainedModel,
    source: ImageSource,
    indices: Sequence[int],
    labels: LabelSettings,
    label_source: Callable[[int], NDArray[Any] | None] = lambda _: None,
    *,
    pictures: bool = False,
    uncertainty: bool = True,
) -> Iterator[Prediction]:
    """Label the images of a source in their order, a few at a time, each on one thread."""
    settings, normalisation = model.settings, model.normalisation

    def work(index: int) -> Prediction:
        image = source[index]
        prepared, superpixels = prepare_image(image, settings, normalisation, label_source(index))
        graph = None if superpixels is None else build_graph(superpixels, prepared.unit, model.device)
        stride = math.ceil(math.sqrt(image.pixels[..., 0].size / MOST_PICTURE_PIXELS))
        picture = to_display(to_unit(image.pixels[::stride, ::stride], normalisation)) if pictures else None
        classes, doubt = predict(model, prepared, graph, labels)
        cleaned = restore(clean(classes, labels), prepared.frame)
        wide = restore(doubt, prepared.frame) if uncertainty else None
        return Prediction(prepared.name, cleaned, wide, picture, stride, fingerprint(image))

    threads = torch.get_num_threads()
    workers = max(1, min(threads, len(indices), MOST_WORKERS))
    pool = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(max(1, threads // workers),))
    waiting: deque[Future[Prediction]] = deque()
    try:
        for index in indices:
            waiting.append(pool.submit(work, index))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)

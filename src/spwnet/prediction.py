"""From images to labels with a trained network: one image, or a stream of them."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spwnet.classes import clean
from spwnet.codebook import Codebook, Descriptors
from spwnet.descriptors import handcrafted
from spwnet.devices import arithmetic, convolution_type, deterministic, to_tensor
from spwnet.graph import build_graph
from spwnet.images import fingerprint
from spwnet.preparation import Prepared, prepare, restore, to_display, to_unit
from spwnet.superpixels import Superpixels, make_superpixels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from spwnet.config import LabelSettings, Settings
    from spwnet.images import Image, ImageSource
    from spwnet.model import WNet
    from spwnet.preparation import Normalisation
    from spwnet.runs import TrainedModel

MOST_PICTURE_PIXELS = 1_000_000
"""Pictures of larger images are thinned."""


@dataclass(frozen=True)
class Prediction:
    """Labels of one image.

    Attributes
    ----------
    name : str
    labels : (H, W) int32 array
        Class of each pixel, in the size of the input.
    picture : (h, w, 3) uint8 array or None
        Every `stride`-th pixel of the input, to draw the classes over.
    stride : int
    sha256 : str
        Fingerprint of the input.
    """

    name: str
    labels: NDArray[np.int32]
    picture: NDArray[np.uint8] | None
    stride: int
    sha256: str


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
    return prepared, make_superpixels(prepared.unit, settings.superpixels, rgb=prepared.rgb, labels=labels)


@deterministic()
@torch.inference_mode()
def predict(
    network: WNet,
    prepared: Prepared,
    superpixels: Superpixels | None,
    mode: str = "argmax_of_mean",
    precision: str = "auto",
    codebook: Codebook | None = None,
) -> NDArray[np.int32]:
    """Label one prepared image in its working size.

    Parameters
    ----------
    network : WNet
        In evaluation mode.
    prepared : Prepared
    superpixels : Superpixels or None
        None labels each pixel on its own.
    mode : str
        "codebook", "argmax_of_mean" or "max_count_of_argmax".
    precision : str
        Arithmetic of the convolutions, as in the settings.
    codebook : Codebook, optional
        For the mode "codebook"; while there is none, in training, that is the arg max of the mean.

    Returns
    -------
    (h, w) int32 array of class ids
    """
    if mode == "codebook" and codebook is not None:
        nodes = codebook.assign(describe(network, prepared, superpixels, precision))
        shape = prepared.unit.shape[:-1]
        return nodes.reshape(shape) if superpixels is None else nodes[superpixels.labels]
    pixels = to_tensor(prepared.network, next(network.parameters()).device)
    with arithmetic(pixels.device, convolution_type(precision, pixels.device)):
        features = network.encode(pixels)[0]
    if superpixels is None:
        labels = features.argmax(0)
    else:
        graph = build_graph(superpixels, prepared.unit, pixels.device)
        labels = graph.node_labels(features, graph.pool(features), mode)[graph.labels].reshape(features.shape[1:])
    return labels.cpu().numpy().astype(np.int32)


@deterministic()
@torch.inference_mode()
def describe(
    network: WNet, prepared: Prepared, superpixels: Superpixels | None, precision: str = "auto"
) -> Descriptors:
    """Describe each superpixel by the encoder's last hidden layer and by hand-crafted evidence, averaged over it.

    Parameters
    ----------
    network : WNet
        In evaluation mode.
    prepared : Prepared
    superpixels : Superpixels or None
        None describes each pixel.
    precision : str
        Arithmetic of the convolutions, as in the settings.

    Returns
    -------
    Descriptors
        Rows of D values, the sizes of `descriptors.kinds` added up; without superpixels one for each pixel.
    """
    pixels = to_tensor(prepared.network, next(network.parameters()).device)
    with arithmetic(pixels.device, convolution_type(precision, pixels.device)):
        hidden = network.describe(pixels)[0]
    evidence = torch.cat([hidden, to_tensor(handcrafted(prepared.unit, rgb=prepared.rgb), pixels.device)[0]])
    if superpixels is None:
        return Descriptors(evidence.flatten(1).T.cpu().numpy())
    graph = build_graph(superpixels, prepared.unit, pixels.device)
    return Descriptors(graph.pool(evidence).cpu().numpy(), graph.edges.cpu().numpy())


def predict_all(
    model: TrainedModel,
    source: ImageSource,
    indices: Sequence[int],
    cleaning: LabelSettings,
    label_source: Callable[[int], NDArray[Any] | None] = lambda _: None,
    *,
    pictures: bool = False,
) -> Iterator[Prediction]:
    """Label the images of a source, one after the other; the next is prepared while the network runs."""
    settings, normalisation = model.settings, model.normalisation

    def load(index: int) -> tuple[Prepared, Superpixels | None, NDArray[np.uint8] | None, int, str]:
        image = source[index]
        prepared, superpixels = prepare_image(image, settings, normalisation, label_source(index))
        stride = math.ceil(math.sqrt(image.pixels[..., 0].size / MOST_PICTURE_PIXELS))
        thinned = image.pixels[::stride, ::stride]
        picture = to_display(to_unit(thinned, normalisation)) if pictures else None
        return prepared, superpixels, picture, stride, fingerprint(image)

    with ThreadPoolExecutor(1) as pool:
        upcoming = [pool.submit(load, index) for index in indices[:1]]
        for following in (*indices[1:], None):
            if not upcoming:
                return
            prepared, superpixels, picture, stride, sha256 = upcoming.pop().result()
            if following is not None:
                upcoming.append(pool.submit(load, following))
            raw = predict(
                model.network, prepared, superpixels, cleaning.mode, settings.training.precision, model.codebook
            )
            labels = restore(clean(raw, cleaning), prepared.frame)
            yield Prediction(prepared.name, labels, picture, stride, sha256)

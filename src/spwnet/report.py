"""What a person looks at: previews during training, and the demo's picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spwnet.devices import arithmetic, convolution_type
from spwnet.outputs import grid, overlay
from spwnet.preparation import to_display

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from spwnet.model import WNet
    from spwnet.preparation import Normalisation

MOST_ROWS = 4


@torch.inference_mode()
def reconstruct(network: WNet, pixels: Tensor, normalisation: Normalisation, precision: str) -> NDArray[np.float32]:
    """Return x̂ of one image as a (*spatial, C) array in the range 0…1.

    Parameters
    ----------
    network : WNet
        In evaluation mode.
    pixels : (1, C, *spatial) tensor
    normalisation : Normalisation
    precision : str
        Arithmetic of the convolutions.
    """
    with arithmetic(pixels.device, convolution_type(precision, pixels.device)):
        _, output = network(pixels)
    image = np.moveaxis(output[0].float().cpu().numpy(), 0, -1)
    if normalisation.standardise:
        image = image * np.array(normalisation.std, np.float32) + np.array(normalisation.mean, np.float32)
    clipped: NDArray[np.float32] = np.clip(image, 0, 1)
    return clipped


def preview(
    units: Sequence[NDArray[np.float32]],
    reconstructions: Sequence[NDArray[np.float32]],
    labels: Sequence[NDArray[Any]],
    colours: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """One row for each of the first few training images: input, reconstruction, labels.

    Parameters
    ----------
    units, reconstructions : sequences of (h, w, C) arrays in 0…1
    labels : sequence of (h, w) int arrays
    colours : (K, 3) uint8 array
        Colour of each class.
    """
    rows = []
    for unit, output, classes in list(zip(units, reconstructions, labels, strict=True))[:MOST_ROWS]:
        display = to_display(unit)
        rows.append([display, to_display(output), overlay(display, classes, colours)])
    return grid(rows, captions=["input", "reconstruction", "classes"])

"""What a person looks at: previews during training, and the demo's picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spwnet.descriptors import network_input
from spwnet.devices import arithmetic, convolution_type
from spwnet.filters import interpolated
from spwnet.outputs import grid, overlay
from spwnet.preparation import to_display

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from spwnet.preparation import Prepared
    from spwnet.runs import TrainedModel

MOST_ROWS = 4


@torch.inference_mode()
def reconstruct(model: TrainedModel, prepared: Prepared) -> NDArray[np.float32]:
    """Return x̂ of one image as a (*spatial, C) array in the range 0…1.

    Parameters
    ----------
    model : TrainedModel
        With a network, in evaluation mode.
    prepared : Prepared
    """
    assert model.network is not None
    with arithmetic(model.device, convolution_type(model.settings.training.precision, model.device)):
        _, output = model.network(network_input(prepared, model.device, model.settings.model))
    wide = interpolated(output[0].float(), model.settings.model.reduction, prepared.unit.shape[:-1])
    image = np.moveaxis(wide.cpu().numpy(), 0, -1)
    normalisation = model.normalisation
    if normalisation.standardise:
        image = image * np.array(normalisation.std, np.float32) + np.array(normalisation.mean, np.float32)
    clipped: NDArray[np.float32] = np.clip(image, 0, 1)
    return clipped


def preview(
    units: Sequence[NDArray[np.float32]],
    reconstructions: Sequence[NDArray[np.float32]] | None,
    labels: Sequence[NDArray[Any]],
    colours: NDArray[np.uint8],
) -> NDArray[np.uint8]:
    """One row for each training image: input, reconstruction if there is one, labels.

    Parameters
    ----------
    units, reconstructions : sequences of (h, w, C) arrays in 0…1
    labels : sequence of (h, w) int arrays
    colours : (K, 3) uint8 array
        Colour of each class.
    """
    rows = []
    for index, (unit, classes) in enumerate(zip(units, labels, strict=True)):
        display = to_display(unit)
        middle = [] if reconstructions is None else [to_display(reconstructions[index])]
        rows.append([display, *middle, overlay(display, classes, colours)])
    return grid(rows, captions=["input", *(["reconstruction"] if reconstructions is not None else []), "classes"])

"""Pictures of a training: previews of its images, and what whoever watches it sees."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from spwnet.classes import areas, hexadecimal, palette
from spwnet.descriptors import network_input
from spwnet.devices import arithmetic, convolution_type
from spwnet.filters import interpolated
from spwnet.outputs import grid, overlay
from spwnet.preparation import to_display

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from spwnet.preparation import Normalisation, Prepared
    from spwnet.trained import TrainedModel

    Picture = NDArray[np.uint8]

MOST_ROWS = 4
"""Training images that are drawn."""


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
    return in_range(np.moveaxis(wide.cpu().numpy(), 0, -1), model.normalisation)


def in_range(image: NDArray[np.float32], normalisation: Normalisation) -> NDArray[np.float32]:
    """Bring a (*spatial, C) array from what a network sees back to 0…1."""
    if normalisation.standardise:
        image = image * np.array(normalisation.std, np.float32) + np.array(normalisation.mean, np.float32)
    clipped: NDArray[np.float32] = np.clip(image, 0, 1)
    return clipped


@dataclass(frozen=True)
class Row:
    """What there is to see of one training image.

    Attributes
    ----------
    name : str
    input : (h, w, 3) uint8 array
    reconstruction : (h, w, 3) uint8 array or None
    labels : (h, w, 3) uint8 array or None
        The classes, drawn over the input.
    sizes : dict
        Pixels of each class by its id.
    """

    name: str
    input: Picture
    reconstruction: Picture | None = None
    labels: Picture | None = None
    sizes: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """What a training has come to after a step, in pictures.

    Attributes
    ----------
    step : int
    rows : sequence of Row
        The first few training images.
    colours : dict
        "#rrggbb" of each class by its id.
    provisional : bool
        Whether the classes are the network's own, before those that stay are fitted.
    """

    step: int
    rows: Sequence[Row]
    colours: Mapping[int, str]
    provisional: bool = False

    @property
    def shares(self) -> dict[int, float]:
        """Share of each class in all the pictures, by its id, the largest first."""
        sums: Counter[int] = Counter()
        for row in self.rows:
            sums.update(row.sizes)
        return {k: n / sums.total() for k, n in sums.most_common()}


def snapshot(
    step: int,
    names: Sequence[str],
    units: Sequence[NDArray[np.float32]],
    reconstructions: Sequence[NDArray[np.float32]] | None = None,
    labels: Sequence[NDArray[Any]] | None = None,
    *,
    n_classes: int = 0,
    provisional: bool = False,
) -> Snapshot:
    """Draw the first few training images.

    Parameters
    ----------
    step : int
        Steps taken.
    names : sequence of str
        Of the images; all sequences may be longer than what is drawn.
    units, reconstructions : sequences of (h, w, C) arrays in 0…1
    labels : sequence of (h, w) int arrays, optional
    n_classes : int
        Ids are below it.
    provisional : bool
        As of `Snapshot`.
    """
    colours = palette(n_classes)
    rows = []
    for index in range(min(len(units), MOST_ROWS)):
        display = to_display(units[index])
        rows.append(
            Row(
                names[index],
                display,
                None if reconstructions is None else to_display(reconstructions[index]),
                None if labels is None else overlay(display, labels[index], colours),
                {} if labels is None else {k: n for k, n in enumerate(areas(labels[index], n_classes)) if n},
            )
        )
    used = sorted({k for row in rows for k in row.sizes})
    return Snapshot(step, rows, {k: hexadecimal(colours[k]) for k in used}, provisional)


def preview(shot: Snapshot) -> Picture:
    """One row for each training image: input, reconstruction if there is one, labels."""
    columns: dict[str, list[Picture | None]] = {
        "input": [row.input for row in shot.rows],
        "reconstruction": [row.reconstruction for row in shot.rows],
        "classes": [row.labels for row in shot.rows],
    }
    shown = {caption: column for caption, column in columns.items() if column[0] is not None}
    rows = [[picture for picture in row if picture is not None] for row in zip(*shown.values(), strict=True)]
    return grid(rows, captions=list(shown))

"""The demonstration: an embedded input with exact truth, trained on, segmented, scored and drawn."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet import metrics, outputs, storage
from spwnet.api import run
from spwnet.classes import palette
from spwnet.images import label_image, open_images
from spwnet.preparation import to_display, to_unit
from spwnet.samples import sample
from spwnet.segmenting import Segmentation

if TYPE_CHECKING:
    from collections.abc import Callable

    from spwnet.config import Settings
    from spwnet.training import Progress


def demo(
    output: str | Path = "spwnet-demo",
    *,
    name: str = "composite",
    settings: Settings | None = None,
    device: str = "auto",
    overwrite: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> dict[str, Any]:
    """Train on two frames of an embedded sample, segment all of them, and score against the exact truth.

    Parameters
    ----------
    output : path
        Folder for the run, the segmentation and ``demo.png``.
    name : str
        Name of the sample, see `sample`.
    settings, device, overwrite, on_progress
        As in `train`.

    Returns
    -------
    dict
        "mean_iou" and "iou" of the frames that were not trained on, "seconds", "picture".

    Raises
    ------
    SpwnetError
        For a sample, setting or place that cannot be used.
    Stopped
        After Ctrl-C.
    """
    folder = Path(output)
    storage.check_folder(folder, overwrite=overwrite)
    data = sample(name)
    training = [0, len(data.images) // 2]
    start = time.monotonic()
    model, segmented = run(
        data.images, folder, settings=settings, frames=training, device=device, overwrite=overwrite,
        on_progress=on_progress,
    )  # fmt: skip
    seconds = time.monotonic() - start
    found = open_images(folder / "segmentation" / "labels", None)
    assert isinstance(segmented, Segmentation)
    labels = [label_image(found, found.names.index(name)) for name in segmented.names]
    tables = [metrics.contingency(found, true) for found, true in zip(labels, data.truth, strict=True)]
    names = metrics.naming(metrics.pooled([tables[i] for i in training]))
    rest = [i for i in range(len(labels)) if i not in training]
    mean, iou = metrics.mean_iou(metrics.pooled([tables[i] for i in rest]), names)

    lookup = np.array([names.get(k, len(data.class_names)) for k in range(model.n_classes())])
    # The truth may have more classes than were asked for.
    colours = palette(max(model.n_classes(), len(data.class_names) + 1))
    rows = []
    for i in (rest[0], rest[len(rest) // 2], rest[-1]):
        display = to_display(to_unit(data.images[i], model.normalisation))
        drawn = [outputs.overlay(display, k, colours)
                 for k in (labels[i], lookup[labels[i]], data.truth[i])]  # fmt: skip
        rows.append([display, *drawn])
    picture = outputs.grid(rows, captions=["input", "classes found", "named", "truth"])
    outputs.write_picture(folder / "demo.png", picture)
    result = {
        "sample": name,
        "mean_iou": mean,
        "iou": {data.class_names[k]: v for k, v in iou.items()},
        "seconds": round(seconds, 1),
        "picture": str(folder / "demo.png"),
    }
    storage.write_json(folder / "demo.json", result)
    return result

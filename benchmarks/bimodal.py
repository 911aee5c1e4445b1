"""What each of two registered modalities adds: one slice seen by neutrons and by X-rays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import spwnet
from benchmarks import data
from spwnet import metrics, outputs
from spwnet.classes import palette
from spwnet.images import JoinedImages, open_images
from spwnet.preparation import display

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spwnet.images import ImageSource

NAME = "bimodal"
FILES = {"neutron": "shell_neutron.png", "xray": "shell_xray.png"}
CLASSES = 6
PICTURE = "bimodal.png"


def explained(unit: NDArray[np.float32], labels: NDArray[Any]) -> float:
    """Share of the variance of one channel that lies between the classes."""
    flat, values = labels.ravel(), unit.ravel().astype(np.float64)
    counts = np.maximum(np.bincount(flat), 1)
    means = np.bincount(flat, values) / counts
    return float(1 - np.square(values - means[flat]).sum() / np.square(values - values.mean()).sum())


def main() -> None:
    folder = data.folder(NAME)
    if folder is None:
        print(f"skipped: no folder '{NAME}' in SPWNET_DATA")
        return
    single: dict[str, ImageSource] = {name: open_images(folder / file) for name, file in FILES.items()}
    sources = {**single, "both": JoinedImages(list(single.values()))}
    units, found, scores, pictures = {}, {}, {}, []
    for name, source in sources.items():
        model = spwnet.train(source, settings=spwnet.make_settings(overrides={"labels.classes": CLASSES}))
        found[name], scores[name] = spwnet.segment(model, source).labels[0], model.info["score"]
        image = display(source[0], model.normalisation)
        if name in single:
            units[name] = image[..., 0].astype(np.float32)
        pictures.append([image, outputs.overlay(image, found[name], palette(CLASSES))])
    print("| seen by | neutron variance explained | X-ray variance explained | score | agreement with both (AMI) |")
    print("| --- " * 5 + "|")
    for name, labels in found.items():
        table = metrics.contingency(labels, found["both"])
        agreement = metrics.adjusted_mutual_information(table)
        shares = " | ".join(f"{explained(units[kind], labels):.3f}" for kind in FILES)
        print(f"| {name} | {shares} | {scores[name]:.3f} | {agreement:.3f} |")
    target = Path(os.environ.get("SPWNET_SCRATCH", ".")) / PICTURE
    outputs.write_picture(target, outputs.grid(pictures, ["input", f"{CLASSES} classes"]))
    print(f"\n{CLASSES} classes, seed 0. Picture, a row each: {', '.join(found)}: {target}")

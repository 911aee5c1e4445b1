"""The main job: train on four frames of the cheetah video, segment all 402, compare with the published labels."""

from __future__ import annotations

import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

import spwnet
from benchmarks import data
from spwnet import metrics
from spwnet.config import Settings

TRAINING = [10, 123, 270, 370]
NAMES = ("ground", "animal", "sky")
ROWS, COLUMNS = slice(10, 1066), slice(10, 1882)
"""Part of the frame that the published labels cover."""


def table(labels: np.ndarray, published: np.ndarray) -> metrics.Contingency:
    """Contingency of our labels, of the whole frame, and published ones, of a part and smaller."""
    part = labels[ROWS, COLUMNS]
    rows = ((np.arange(published.shape[0]) + 0.5) * part.shape[0] / published.shape[0]).astype(int)
    columns = ((np.arange(published.shape[1]) + 0.5) * part.shape[1] / published.shape[1]).astype(int)
    return metrics.contingency(part[np.ix_(rows, columns)], published)


def score(folder: Path, published: Path) -> dict[str, float]:
    """IoU by the naming protocol: classes named on the training frames, scored on all others with a label."""
    tables = {}
    for file in sorted(published.glob("*.png")):
        labels = np.asarray(Image.open(folder / file.name))
        tables[int(file.stem)] = table(labels, np.asarray(Image.open(file)))
    names = metrics.naming(metrics.pooled([t for n, t in tables.items() if n in TRAINING]))
    _, iou = metrics.mean_iou(metrics.pooled([t for n, t in tables.items() if n not in TRAINING]), names)
    return {NAMES[k]: value for k, value in iou.items()}


def main(settings: Settings | None = None, seeds: tuple[int, ...] = (0,), everything: bool = True) -> None:
    source = data.folder("cheetah")
    if source is None:
        print("skipped: no folder 'cheetah' in SPWNET_DATA")
        return
    settings = settings or Settings()
    seeds = tuple(int(s) for s in os.environ.get("SPWNET_SEEDS", "").split(",") if s) or seeds
    published = source / "published_labels"
    labelled = None if everything and len(seeds) == 1 else [int(file.stem) for file in sorted(published.glob("*.png"))]
    print("| seed | ground | animal | sky | classes | train, s | segment, s | frames | peak memory, GiB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for seed in seeds:
        with tempfile.TemporaryDirectory() as scratch:
            start = time.perf_counter()
            model = spwnet.train(
                source / "images", settings=settings.model_copy(update={"seed": seed}), frames=TRAINING
            )
            trained = time.perf_counter()
            result = spwnet.segment(model, source / "images", scratch, frames=labelled, resume=True)
            segmented = time.perf_counter()
            iou = score(Path(scratch) / "labels", published)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"| {seed} | {iou['ground']:.3f} | {iou['animal']:.3f} | {iou['sky']:.3f} | {len(model.info['classes'])} "
            f"| {trained - start:.0f} | {segmented - trained:.0f} | {len(result.names)} | {peak:.2f} |",
            flush=True,
        )

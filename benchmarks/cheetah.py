"""The main job: train on four frames of the cheetah video, segment all 402, compare with the published labels."""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import spwnet
from benchmarks import data, scores, speed
from spwnet.config import Settings
from spwnet.images import label_image, open_images


def main(settings: Settings | None = None, seeds: tuple[int, ...] = (0,)) -> None:
    folder = data.folder("cheetah")
    if folder is None:
        print("skipped: no folder 'cheetah' in SPWNET_DATA")
        return
    cheetah = data.load("cheetah", folder)
    settings = settings or Settings()
    seeds = tuple(int(s) for s in os.environ.get("SPWNET_SEEDS", "").split(",") if s) or seeds
    labelled_only = len(seeds) > 1
    names = dict(cheetah.names)
    print(f"| seed | {' | '.join(names.values())} | classes | train, s | segment, s | frames | peak memory, GiB |")
    print("| --- " * (len(names) + 6) + "|")
    for seed in seeds:
        seeded = settings.model_copy(update={"seed": seed})
        # In a process of its own, whose peak is no other work's.
        iou, classes, train, segment, frames, peak = speed.in_child(measure, folder, seeded, labelled_only)
        print(
            f"| {seed} | {' | '.join(f'{iou[label]:.3f}' for label in names)} | {classes} "
            f"| {train:.0f} | {segment:.0f} | {frames} | {peak / 2**30:.2f} |",
            flush=True,
        )


def measure(
    folder: Path, settings: Settings, labelled_only: bool
) -> tuple[dict[int, float], int, float, float, int, int]:
    """Return IoU of each class, number of classes, seconds of training and segmenting, frames, and peak memory."""
    cheetah = data.load("cheetah", folder)
    with TemporaryDirectory() as scratch:
        start = time.perf_counter()
        model = spwnet.train(cheetah.images, settings=settings, frames=cheetah.training)
        trained = time.perf_counter()
        result = spwnet.segment(
            model, cheetah.images, scratch, frames=list(cheetah.labelled) if labelled_only else None
        )
        segmented, peak = time.perf_counter(), speed.peak_bytes()
        written = open_images(Path(scratch) / "labels")
        labels = {n: label_image(written, k) for k, n in enumerate(written.numbers) if n in cheetah.labelled}
        iou = scores.name_and_score(cheetah, labels).iou
    return iou, len(model.info["classes"]), trained - start, segmented - trained, len(result.names), peak

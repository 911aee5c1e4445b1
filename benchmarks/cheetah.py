"""The main job: train on four frames of the cheetah video, segment all 402, compare with the published labels."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import spwnet
from benchmarks import data, scores
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
    frames = None if len(seeds) == 1 else list(cheetah.labelled)
    names = dict(cheetah.names)
    print(f"| seed | {' | '.join(names.values())} | classes | train, s | segment, s | frames | peak memory, GiB |")
    print("| --- " * (len(names) + 6) + "|")
    for seed in seeds:
        with TemporaryDirectory() as scratch:
            start = time.perf_counter()
            seeded = settings.model_copy(update={"seed": seed})
            model = spwnet.train(cheetah.images, settings=seeded, frames=cheetah.training)
            trained = time.perf_counter()
            result = spwnet.segment(model, cheetah.images, scratch, frames=frames)
            segmented = time.perf_counter()
            written = open_images(Path(scratch) / "labels")
            labels = {n: label_image(written, k) for k, n in enumerate(written.numbers) if n in cheetah.labelled}
            iou = scores.name_and_score(cheetah, labels).iou
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"| {seed} | {' | '.join(f'{iou[label]:.3f}' for label in names)} | {len(model.info['classes'])} "
            f"| {trained - start:.0f} | {segmented - trained:.0f} | {len(result.names)} | {peak:.2f} |",
            flush=True,
        )

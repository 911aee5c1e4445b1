"""The naming protocol on videos, micrographs and volumes: the default against k-means on superpixel colours."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import numpy as np

import spwnet
from benchmarks import data
from spwnet import metrics
from spwnet.codebook import Descriptors, fit_codebook
from spwnet.config import Settings
from spwnet.images import ImageSource, label_image, open_images
from spwnet.prediction import prepare_image
from spwnet.preparation import measure
from spwnet.superpixels import perceptual

if TYPE_CHECKING:
    from pathlib import Path

VIDEOS = ("video/garden", "video/ice", "video/salesman")
SETS = (*VIDEOS, "micro/superalloy", "volumes/puma_weave", "volumes/sim_electrode_xct")
BASELINE_PIXELS = 60.0
"""Pixels in a superpixel of the baseline."""


def load(name: str, folder: Path) -> tuple[ImageSource, ImageSource, list[int], tuple[int, ...]]:
    """Images, truth, positions to train on, and labels of the truth that do not count."""
    if name.startswith("volumes"):
        images, truth = open_images(folder / "image.tif", "ZYX"), open_images(folder / "labels.tif", "ZYX")
        return images, truth, [round(share * (len(images) - 1)) for share in (0.2, 0.4, 0.6, 0.8)], (255,)
    images, truth = open_images(folder / "images"), open_images(folder / "labels")
    last = len(images) - 1
    if name.startswith("micro"):
        return images, truth, [0, 1, 2, 3], ()
    return images, truth, [0, round(last / 3), round(2 * last / 3), last], (0,)


def score(labels: list[np.ndarray], truth: ImageSource, training: list[int], ignore: tuple[int, ...]) -> float:
    tables = [metrics.contingency(found, label_image(truth, i), ignore) for i, found in enumerate(labels)]
    names = metrics.naming(metrics.pooled([tables[i] for i in training]))
    mean, _ = metrics.mean_iou(metrics.pooled([t for i, t in enumerate(tables) if i not in training]), names)
    return mean


def baseline(images: ImageSource, training: list[int], seed: int) -> list[np.ndarray]:
    """k-means with 32 centres on the mean colours of superpixels."""
    settings = spwnet.make_settings(overrides={"superpixels.size": BASELINE_PIXELS, "images.scale": 1.0})
    normalisation = measure([images[i] for i in training], settings.images)
    pooled, regions = [], []
    for i in range(len(images)):
        prepared, superpixels = prepare_image(images[i], settings, normalisation)
        assert superpixels is not None
        colour = perceptual(prepared.unit, rgb=prepared.rgb).reshape(superpixels.labels.size, -1)
        flat = superpixels.labels.ravel()
        sums = np.stack([np.bincount(flat, weights=c) for c in colour.T], axis=1)
        pooled.append(Descriptors((sums / np.bincount(flat)[:, None]).astype(np.float32)))
        regions.append(superpixels.labels)
    book = fit_codebook([pooled[i] for i in training], [(pooled[0].rows.shape[1], 1.0)], 32, seed)
    return [book.assign(points)[labels] for points, labels in zip(pooled, regions, strict=True)]


def main() -> None:
    seeds = [int(s) for s in os.environ.get("SPWNET_SEEDS", "0").split(",")]
    print("| set | seed | default | k-means on colour | train, s | segment, s |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in SETS:
        folder = data.folder(name)
        if folder is None:
            print(f"| {name} | skipped: not in SPWNET_DATA | | | | |")
            continue
        images, truth, training, ignore = load(name, folder)
        for seed in seeds:
            start = time.perf_counter()
            numbers = [images.numbers[i] for i in training]
            model = spwnet.train(images, settings=Settings(seed=seed), frames=numbers)
            trained = time.perf_counter()
            ours = spwnet.segment(model, images).labels
            done = time.perf_counter()
            print(
                f"| {name} | {seed} | {score(ours, truth, training, ignore):.3f} "
                f"| {score(baseline(images, training, seed), truth, training, ignore):.3f} "
                f"| {trained - start:.0f} | {done - trained:.0f} |",
                flush=True,
            )

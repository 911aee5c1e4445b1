"""The published preset: every loss on a crop of a frame, on superpixels and in dense mode; one step of it as it is."""

from __future__ import annotations

import math
import os
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

import spwnet
from benchmarks import data, speed
from benchmarks.regions import best
from spwnet import losses, training
from spwnet.descriptors import network_input
from spwnet.devices import convolution_type, deterministic, memory_format
from spwnet.gathering import gather
from spwnet.graph import build_graph
from spwnet.trained import make_network

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spwnet.config import Settings

EVERY_LOSS = {"image": 0.5, "patches": 1.0, "cut": 0.5, "similarity": 0.1, "continuity": 0.1, "tau_continuity": 1.0}
STEPS = 3
LIMIT = 480
"""Seconds that one step as published may take, with what comes before it."""


def main() -> None:
    source = data.folder("cheetah")
    if source is None:
        print("skipped: no folder 'cheetah' in SPWNET_DATA")
        return
    frame = np.asarray(Image.open(source / "images" / "0010.jpg"))[300:800, 500:1300]
    print(f"| mode | whole training, s for each of its {STEPS} steps | losses of the last step |")
    print("| --- | --- | --- |")
    for method in ("slic", "none"):
        settings = spwnet.make_settings(
            "published-cheetah",
            overrides={
                "losses": EVERY_LOSS,
                "superpixels": {"method": method, "count": 3000},
                "training": {"epochs": 1, "batches": STEPS},
            },
        )
        steps: list[spwnet.Progress] = []
        start = time.perf_counter()
        spwnet.train(frame, settings=settings, on_progress=steps.append)
        seconds = (time.perf_counter() - start) / STEPS
        values = steps[-1].values
        if not all(math.isfinite(value) for value in values.values()):
            raise SystemExit(f"not finite: {values}")
        print(f"| {method} | {seconds:.1f} | {', '.join(f'{n} {v:.3f}' for n, v in values.items())} |", flush=True)


def step() -> None:
    """Print the time of one step of the published preset as it is, its memory, and where the time goes."""
    source = data.folder("cheetah")
    if source is None:
        print("skipped: no folder 'cheetah' in SPWNET_DATA")
        return
    warm_up = int(os.environ.get("SPWNET_WARMUP", "1"))
    images = data.load("cheetah", source).images
    frames = [images[images.numbers.index(number)].pixels for number in data.CHEETAH_TRAINING]
    found = speed.in_child(measure_step, frames, {}, warm_up, limit=LIMIT)
    if found is None:
        print(f"skipped: took longer than {LIMIT} s; SPWNET_WARMUP=0 leaves out the step before the one measured")
        return
    height, width = found["size"]
    print(
        f"{found['parameters'] / 1e6:.1f} M parameters, {found['images']} images of {height}×{width} working pixels, "
        f"{found['superpixels']} superpixels each on average, {found['threads']} threads, {found['dtype']}, "
        f"{warm_up} steps before the one measured\n"
    )
    print("| step, s | peak memory, GiB | superpixels, s | share | convolutions, s | share |")
    print("| --- " * 6 + "|")
    seconds, region, convolutions = found["seconds"], found["superpixel_seconds"], found["convolution_seconds"]
    print(
        f"| {seconds:.1f} | {found['peak'] / 2**30:.2f} | {region:.3f} | {region / seconds:.2%} "
        f"| {convolutions:.1f} | {convolutions / seconds:.0%} |\n"
    )
    print(speed.FLOOR_HEAD)
    print(speed.floor_row("step of the published preset", found["operations"], found["rate"], convolutions))
    print(
        "\nSuperpixels: pooling, labels, similarity and continuity of all images, forward and backward, timed apart on "
        "feature maps of the step's sizes. Convolutions: own time of their kernels, profiled within the step."
    )


def measure_step(
    frames: list[NDArray[np.uint8]], overrides: dict[str, Any], warm_up: int
) -> dict[str, int | float | str | tuple[int, ...]]:
    """Take one step of the published preset in this process and measure it."""
    settings = spwnet.make_settings("published-cheetah", overrides=overrides)
    device = torch.device("cpu")
    dtype = convolution_type(settings.training.precision, device)
    gathered = gather(frames, "all", None, settings)
    batch = []
    for prepared, superpixels in gathered.pairs:
        graph = None if superpixels is None else build_graph(superpixels, prepared.unit)
        pixels = network_input(prepared, device, settings.model)
        batch.append(training.set_up_image(pixels, prepared, graph, settings, None))
    network = make_network(settings, 3).to(memory_format=memory_format(2))
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=settings.training.learning_rate, weight_decay=settings.training.weight_decay
    )
    rng = np.random.default_rng(settings.seed)
    with deterministic():
        for _ in range(warm_up):
            training.step(network, optimiser, batch, settings, rng, dtype)
        with speed.counted(network) as operations, speed.profiled() as convolutions:
            start = time.perf_counter()
            training.step(network, optimiser, batch, settings, rng, dtype)
            seconds = time.perf_counter() - start
        # Before the rest: what is measured beside the step takes memory of its own.
        peak = speed.peak_bytes()
        superpixel_seconds = superpixel_work(batch, settings)
    return {
        "seconds": seconds,
        "peak": peak,
        "superpixel_seconds": superpixel_seconds,
        "convolution_seconds": convolutions(),
        "operations": speed.BACKWARD * sum(operations),
        "rate": speed.rate(dtype),
        "images": len(batch),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "superpixels": sum(image.graph.count for image in batch if image.graph is not None) // len(batch),
        "size": tuple(batch[0].pixels.shape[2:]),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
    }


def superpixel_work(batch: list[training.TrainingImage], settings: Settings) -> float:
    """Seconds of the losses on superpixels, forward and backward, of all images of a step."""
    weights = settings.losses.model_copy(update={"image": 0.0, "patches": 0.0})
    settings = settings.model_copy(update={"losses": weights})
    rng = np.random.default_rng(0)
    seconds = 0.0
    for image in batch:
        shape = (1, settings.model.classes, *image.pixels.shape[2:])
        features = torch.randn(shape).to(memory_format=memory_format(2)).requires_grad_()
        # In the network's place, so that only what comes after it is timed.
        network: Any = SimpleNamespace(encode=lambda _, features=features: features)

        def work(network: Any = network, image: training.TrainingImage = image) -> None:
            (part,) = training.loss_parts(network, [image], settings, rng, torch.float32)
            losses.weighted_sum(part[0], weights.model_dump()).backward()

        seconds += best(work)
    return seconds

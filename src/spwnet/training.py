"""Training: set up → fit → step."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from spwnet import losses
from spwnet.devices import arithmetic, convolution_type, deterministic, memory_format, to_tensor
from spwnet.errors import InputError, RunError, Stopped
from spwnet.patches import check_schedule, make_schedule, patch_region, sample_patches

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from spwnet.config import Settings
    from spwnet.graph import RegionGraph
    from spwnet.model import WNet
    from spwnet.preparation import Prepared
    from spwnet.runs import Run

CHECKPOINT_SECONDS = 60.0
PREVIEW_SECONDS = 5.0
PREVIEW_SHARE = 0.1
"""Share of the training time that previews may take."""


@dataclass(frozen=True)
class TrainingImage:
    """One training image and what the losses need of it, on the device of training.

    Attributes
    ----------
    pixels : (1, C, H, W) tensor
        Input of the network.
    patch_region : ((top, bottom), (left, right))
        Rows and columns that patches are drawn from.
    graph : RegionGraph or None
        None in dense mode.
    cut : tensor or (tensor, offsets) or None
        Weights of the normalised cut: of the graph's edges, or between pixels in dense mode.
    continuity : (E,) tensor or None
        Weights of the graph's edges for the continuity.
    """

    pixels: Tensor
    patch_region: tuple[tuple[int, int], tuple[int, int]]
    graph: RegionGraph | None
    cut: Tensor | tuple[Tensor, list[tuple[int, ...]]] | None
    continuity: Tensor | None


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is.

    Attributes
    ----------
    stage : str
        "train" or "segment".
    done, total : int
        Steps or images.
    seconds_left : float
        Estimate from the mean time of those done.
    values : dict
        The losses of the step by name, or nothing.
    """

    stage: str
    done: int
    total: int
    seconds_left: float
    values: dict[str, float]


def check_images(prepared: Sequence[Prepared], settings: Settings) -> None:
    """Check that the images are large enough for network and patches, before anything long starts.

    Raises
    ------
    InputError, SettingsError
        Naming the image, its size, and what to change.
    """
    smallest = 2**settings.model.n_blocks
    for image in prepared:
        shape = image.network.shape[:2]
        if min(shape) < smallest or max(shape) == smallest:
            raise InputError(
                f"expected at least {smallest}×{smallest + 1} working pixels for `model.n_blocks = "
                f"{settings.model.n_blocks}`, but image '{image.name}' has {shape[0]}×{shape[1]}; "
                "use a larger `images.scale` or fewer `model.n_blocks`"
            )
        if settings.losses.patches > 0:
            check_schedule(settings.patches, shape, image.name, smallest)


def set_up_image(
    prepared: Prepared, graph: RegionGraph | None, settings: Settings, device: torch.device
) -> TrainingImage:
    """Bring one image to the device, with the weights that stay the same in every step."""
    weights = settings.losses
    cut: Tensor | tuple[Tensor, list[tuple[int, ...]]] | None = None
    continuity = None
    if weights.cut > 0:
        if graph is None:
            cut = losses.dense_cut_weights(to_tensor(prepared.unit, device)[0])
        else:
            cut = graph.cut_weights(weights.tau_cut)
    if weights.continuity > 0 and graph is not None:
        continuity = graph.continuity_weights(weights.tau_continuity)
    return TrainingImage(
        pixels=to_tensor(prepared.network, device),
        patch_region=patch_region(prepared.network.shape[:2], settings.patches),
        graph=graph,
        cut=cut,
        continuity=continuity,
    )


def loss_terms(
    network: WNet, image: TrainingImage, settings: Settings, rng: np.random.Generator, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Compute every loss whose weight is above 0 for one image, {name: scalar}."""
    weights = settings.losses
    terms: dict[str, Tensor] = {}
    device = image.pixels.device
    if weights.patches > 0:
        errors = []
        for height, width, count in make_schedule(settings.patches):
            patches = sample_patches(image.pixels[0], height, width, count, rng, image.patch_region)
            patches = patches.contiguous(memory_format=memory_format(patches.ndim - 2))
            with arithmetic(device, dtype):
                _, output = network(patches)
            errors.append(losses.reconstruction(output, patches))
        terms["patches"] = torch.stack(errors).mean()
    if not any((weights.image, weights.cut, weights.similarity, weights.continuity)):
        return terms
    with arithmetic(device, dtype):
        if weights.image > 0:
            features, output = network(image.pixels)
            terms["image"] = losses.reconstruction(output, image.pixels)
        else:
            features = network.encode(image.pixels)
    return terms | _segmentation_terms(features[0], image, settings)


def _segmentation_terms(features: Tensor, image: TrainingImage, settings: Settings) -> dict[str, Tensor]:
    """Cut, similarity and continuity, on superpixels or between pixels."""
    weights, graph = settings.losses, image.graph
    terms: dict[str, Tensor] = {}
    if graph is None:
        if weights.cut > 0:
            cut_weights, offsets = image.cut  # type: ignore[misc]
            terms["cut"] = losses.dense_cut(features.softmax(0), cut_weights, offsets)
        if weights.similarity > 0:
            terms["similarity"] = losses.similarity(features, features.detach().flatten(1).argmax(0))
        if weights.continuity > 0:
            terms["continuity"] = losses.dense_continuity(features)
        return terms
    pooled = graph.pool(features)
    if weights.cut > 0:
        terms["cut"] = losses.normalised_cut(pooled, graph.edges, image.cut)  # type: ignore[arg-type]
    if weights.similarity > 0:
        mode = settings.labels.mode
        # Centres are fitted after training: until then the labels are those of the network.
        nodes = graph.node_labels(features, pooled, "argmax_of_mean" if mode == "codebook" else mode)
        terms["similarity"] = losses.similarity(features, nodes[graph.labels])
    if weights.continuity > 0:
        terms["continuity"] = losses.continuity(pooled, graph.edges, image.continuity)  # type: ignore[arg-type]
    return terms


def step(
    network: WNet,
    optimiser: torch.optim.Optimizer,
    images: Sequence[TrainingImage],
    settings: Settings,
    rng: np.random.Generator,
    dtype: torch.dtype = torch.float32,
) -> dict[str, float]:
    """Take one optimiser step on the sum over the images, all weighing alike.

    Returns
    -------
    dict
        Each loss, added up over the images without its weight, and "total" with the weights.

    Raises
    ------
    RunError
        If a loss is not finite; the step is not taken.
    """
    weights = settings.losses.model_dump()
    sums: dict[str, float] = {}
    network.train()
    optimiser.zero_grad(set_to_none=True)
    for image in images:
        terms = loss_terms(network, image, settings, rng, dtype)
        total = losses.weighted_sum(terms, weights)
        total.backward()  # type: ignore[no-untyped-call]
        for name, value in {**terms, "total": total}.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    odd = [name for name, value in sums.items() if not math.isfinite(value)]
    if odd:
        raise RunError(
            f"expected finite losses, but the loss '{odd[0]}' is {sums[odd[0]]}; start again with a lower "
            "`training.learning_rate` or a lower weight of that loss"
        )
    optimiser.step()
    return sums


@torch.no_grad()
def calibrate(network: WNet, images: Sequence[TrainingImage], dtype: torch.dtype) -> None:
    """Set the batch statistics to the mean of those of the whole training images.

    The running averages of training mix small patches and whole images; prediction sees whole images.
    """
    norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    network.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    for image in images:
        with arithmetic(image.pixels.device, dtype):
            network(image.pixels)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.eval()


def fit(
    network: WNet,
    images: Sequence[TrainingImage],
    settings: Settings,
    *,
    run: Run | None = None,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_preview: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> WNet:
    """Train the network for the settings' epochs.

    Parameters
    ----------
    network : WNet
        On the device of the images; trained in place.
    images : sequence of TrainingImage
    settings : Settings
    run : Run, optional
        Where history and checkpoints go.
    resume : bool
        Go on from the run's last checkpoint.
    on_progress : callable
        Called with a `Progress` after each step.
    on_preview : callable, optional
        Called with the step every few seconds, the network calibrated and in evaluation mode.
    should_stop : callable
        Asked after each step; if it says yes, a checkpoint is written and `Stopped` raised.

    Returns
    -------
    WNet
        The same network, calibrated, in evaluation mode.

    Raises
    ------
    Stopped
        If asked to stop; the checkpoint holds everything up to the last step.
    RunError
        If a loss is not finite.
    """
    device = images[0].pixels.device
    dtype = convolution_type(settings.training.precision, device)
    network.to(device, memory_format=memory_format(images[0].pixels.ndim - 2))  # type: ignore[call-overload]
    optimiser = torch.optim.Adam(network.parameters(), lr=settings.training.learning_rate)
    first = run.load_checkpoint(network, optimiser) if run is not None and resume else 0
    total = settings.training.epochs * settings.training.batches
    start = saved = previewed = time.monotonic()
    preview_pause = 0.0
    with deterministic():
        for number in range(first, total):
            # Each step has its own random numbers, so that a resumed training draws the same.
            rng = np.random.default_rng([settings.seed, number])
            terms = step(network, optimiser, images, settings, rng, dtype)
            done = number + 1
            now = time.monotonic()
            if run is not None:
                run.log(done, terms)
            on_progress(Progress("train", done, total, (now - start) / (done - first) * (total - done), terms))
            stop = done < total and should_stop()
            epoch_ends = done % settings.training.batches == 0
            if run is not None and (stop or done == total or (epoch_ends and now - saved > CHECKPOINT_SECONDS)):
                run.save_checkpoint(network, optimiser, done)
                saved = now
            if stop:
                raise Stopped(f"stopped after step {done} of {total}; go on by `--resume` (in Python `resume=True`)")
            if on_preview is not None and done < total and now - previewed > max(PREVIEW_SECONDS, preview_pause):
                calibrate(network, images, dtype)
                on_preview(done)
                previewed = time.monotonic()
                preview_pause = (previewed - now) / PREVIEW_SHARE
        calibrate(network, images, dtype)
    return network

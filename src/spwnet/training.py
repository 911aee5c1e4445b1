"""Training: set up → fit → step."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from spwnet import losses
from spwnet.devices import arithmetic, convolution_type, deterministic, to_tensor, training_format
from spwnet.errors import InputError, RunError, SettingsError, Stopped
from spwnet.filters import averaged
from spwnet.model import SHARPNESS
from spwnet.patches import check_schedule, make_schedule, patch_region, sample_patches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from spwnet.config import Settings
    from spwnet.graph import RegionGraph
    from spwnet.model import WNet
    from spwnet.preparation import Prepared
    from spwnet.runs import Run

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS = 60.0
PREVIEW_SECONDS = 5.0
PREVIEW_SHARE = 0.1
"""Share of the training time that previews may take."""
MOST_TOGETHER = 8
"""Parts of images that go through the network together."""
MOST_CALIBRATED = 4
"""Whole images that batch statistics are taken over at a time."""
JITTER = 0.2
"""Random shift of each channel of the evidence in a step, over its standard deviation."""
WARM_UP = 0.3
"""Share of the steps in which the learning rate rises."""
FIRST_RATE, LAST_RATE = 0.04, 1e-4
"""Learning rate of the first and of the last step, over the highest."""


@dataclass(frozen=True)
class TrainingImage:
    """One training image and what the losses need of it, on the device of training.

    Attributes
    ----------
    pixels : (1, C + E, H, W) tensor
        Input of the network, on cells of `reduction` working pixels a side: the image, and the evidence if it takes
        any.
    channels : int
        C, the channels to reconstruct.
    patch_region : ((top, bottom), (left, right))
        Rows and columns that patches are drawn from.
    graph : RegionGraph or None
        Of the superpixels at the cells' first pixels; None in dense mode.
    cut : tensor or (tensor, offsets) or None
        Weights of the normalised cut: of the graph's edges, or between pixels in dense mode.
    continuity : (E,) tensor or None
        Weights of the graph's edges for the continuity.
    target : (K, H, W) float32 tensor or None
        Share of each class in each cell, that the similarity compares with; None takes the network's own.
    """

    pixels: Tensor
    channels: int
    patch_region: tuple[tuple[int, int], tuple[int, int]]
    graph: RegionGraph | None
    cut: Tensor | tuple[Tensor, list[tuple[int, ...]]] | None
    continuity: Tensor | None
    target: Tensor | None = None


@dataclass(frozen=True)
class Progress:
    """How far a piece of work is.

    Attributes
    ----------
    stage : str
        "train", "segment" or "regions".
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


class Fitted(NamedTuple):
    """What became of a training.

    Attributes
    ----------
    network : WNet
        Calibrated, in evaluation mode.
    steps : int
        Taken in all; fewer than the settings' if it was kept early, or failed.
    fault : str or None
        Why the step after those could not be taken.
    """

    network: WNet
    steps: int
    fault: str | None = None


class _Interrupt:
    """What Ctrl-C does in a job that stops where it likes."""

    def __init__(self) -> None:
        self.pressed = threading.Event()

    def __call__(self, *_: Any) -> None:
        if self.pressed.is_set():
            raise KeyboardInterrupt
        self.pressed.set()
        logger.warning("stopping as soon as this step is done; press again to stop at once")


@contextmanager
def stoppable() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether Ctrl-C was pressed; a second Ctrl-C interrupts at once.

    A job within another hears the same press: neither misses it.
    """
    interrupt = _Interrupt()
    if threading.current_thread() is not threading.main_thread():
        yield interrupt.pressed.is_set
        return
    before = signal.getsignal(signal.SIGINT)
    if isinstance(before, _Interrupt):
        yield before.pressed.is_set
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield interrupt.pressed.is_set
    finally:
        # None is a handler that was installed outside Python, which cannot be put back
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)


def check_images(prepared: Sequence[Prepared], settings: Settings) -> None:
    """Check that the images are large enough for network and patches, before anything long starts.

    Raises
    ------
    InputError, SettingsError
        Naming the image, its size, and what to change.
    """
    smallest = 2**settings.model.n_blocks * settings.model.reduction
    if settings.patches.crop is not None and settings.patches.crop <= smallest:
        raise SettingsError(
            f"expected `patches.crop` above {smallest}, because the network reduces so many pixels to one, but got "
            f"{settings.patches.crop}; use a larger one, or fewer `model.n_blocks`"
        )
    for image in prepared:
        shape = image.network.shape[:2]
        if max(shape) <= smallest:
            raise InputError(
                f"expected more than {smallest} working pixels along one side at least, because the network reduces so "
                f"many to one, but image '{image.name}' has {shape[0]}×{shape[1]}; use a larger `images.scale`, or "
                "fewer `model.n_blocks`"
            )
        if settings.losses.patches > 0:
            check_schedule(settings.patches, shape, image.name, smallest, settings.model.reduction)


def set_up_image(
    pixels: Tensor,
    prepared: Prepared,
    graph: RegionGraph | None,
    settings: Settings,
    target: NDArray[np.integer[Any]] | None = None,
) -> TrainingImage:
    """Gather what the losses need of one image, with the weights that stay the same in every step.

    Parameters
    ----------
    pixels : (1, C + E, H, W) tensor
        From `network_input`.
    prepared : Prepared
    graph : RegionGraph or None
    settings : Settings
    target : (N,) int array, optional
        Classes for the similarity, of the superpixels or, in dense mode, of the working pixels.
    """
    device, reduction = pixels.device, settings.model.reduction
    shape = prepared.unit.shape[:-1]
    (top, bottom), (left, right) = patch_region(shape, settings.patches)
    shares: Tensor | None = None
    if target is not None:
        classes = torch.from_numpy(target.astype(np.int64)).to(device)
        classes = (classes if graph is None else classes[graph.labels]).view(shape)
        shares = functional.one_hot(classes, settings.model.classes).movedim(-1, 0).float()
        shares = averaged(shares[None], reduction)[0].contiguous()
    cut: Tensor | tuple[Tensor, list[tuple[int, ...]]] | None = None
    if reduction > 1 and graph is not None:
        places = torch.arange(math.prod(shape), device=device).view(shape)
        graph, _ = graph.part(places[::reduction, ::reduction])
    if settings.losses.cut > 0:
        if graph is not None:
            cut = graph.cut_weights(settings.losses.tau_cut)
        else:
            cut = losses.dense_cut_weights(averaged(to_tensor(prepared.unit, device), reduction)[0])
    return TrainingImage(
        pixels=pixels,
        channels=prepared.network.shape[-1],
        patch_region=((top // reduction, bottom // reduction), (left // reduction, right // reduction)),
        graph=graph,
        cut=cut,
        continuity=continuity_weights(graph, settings),
        target=shares,
    )


def continuity_weights(graph: RegionGraph | None, settings: Settings) -> Tensor | None:
    """Weights of the edges for the continuity, or None where it is off or there is no graph."""
    if settings.losses.continuity == 0 or graph is None:
        return None
    return graph.continuity_weights(settings.losses.tau_continuity)


def cropped(image: TrainingImage, settings: Settings, rng: np.random.Generator) -> TrainingImage:
    """Draw the part of an image that a step sees: a square at a random place, or all of it."""
    height, width = image.pixels.shape[2:]
    if settings.patches.crop is None:
        return image
    side = settings.patches.crop // settings.model.reduction
    if side >= max(height, width):
        return image
    top, left = (int(rng.integers(n - min(side, n) + 1)) for n in (height, width))
    rows, columns = slice(top, top + side), slice(left, left + side)
    pixels = image.pixels[:, :, rows, columns]
    target = None if image.target is None else image.target[:, rows, columns]
    places = torch.arange(height * width, device=pixels.device).view(height, width)[rows, columns]
    if image.graph is None:
        cut = image.cut
        if isinstance(cut, tuple):
            cut = losses.cropped_cut_weights(*cut, (rows, columns))
        return replace(image, pixels=pixels, cut=cut, target=target)
    graph, _ = image.graph.part(places)
    return replace(
        image,
        pixels=pixels,
        graph=graph,
        cut=None if image.cut is None else graph.cut_weights(settings.losses.tau_cut),
        continuity=continuity_weights(graph, settings),
        target=target,
    )


def loss_parts(
    network: WNet, images: Sequence[TrainingImage], settings: Settings, rng: np.random.Generator, dtype: torch.dtype
) -> Iterator[dict[int, dict[str, Tensor]]]:
    """Compute every loss whose weight is above 0, in parts that add up: each size of patches is one.

    Taking the gradients of one part before the next is asked for needs less memory.

    Parameters
    ----------
    network : WNet
    images : sequence of TrainingImage
        Of one size: they go through the network together.
    settings : Settings
    rng : numpy Generator
    dtype : torch dtype
        Arithmetic of the convolutions.

    Yields
    ------
    dict
        {position of the image: {name: scalar}}
    """
    weights, channels = settings.losses, images[0].channels
    if weights.patches > 0:
        for index, image in enumerate(images):
            for error in _patch_errors(network, image, settings, rng, dtype):
                yield {index: {"patches": error}}
    if not any((weights.image, weights.cut, weights.similarity, weights.continuity)):
        return
    images = [cropped(image, settings, rng) for image in images]
    pixels = torch.cat([_jittered(image, rng) for image in images])
    pixels = pixels.contiguous(memory_format=training_format(pixels.ndim - 2, dtype, pixels.device))
    with arithmetic(pixels.device, dtype):
        features, output = network(pixels) if weights.image > 0 else (network.encode(pixels), None)
    part: dict[int, dict[str, Tensor]] = {index: {} for index in range(len(images))}
    for index, image in enumerate(images):
        if output is not None:
            part[index]["image"] = losses.reconstruction(output[index], image.pixels[0, :channels])
        part[index] |= _segmentation_terms(features[index], image, settings)
    yield part


def _patch_errors(
    network: WNet, image: TrainingImage, settings: Settings, rng: np.random.Generator, dtype: torch.dtype
) -> Iterator[Tensor]:
    """Yield the error of the reconstruction of each patch size, over the number of sizes."""
    schedule, reduction = make_schedule(settings.patches), settings.model.reduction
    for height, width, count in schedule:
        sides = max(1, height // reduction), max(1, width // reduction)
        patches = sample_patches(image.pixels[0], *sides, count, rng, image.patch_region)
        patches = patches.contiguous(memory_format=training_format(patches.ndim - 2, dtype, patches.device))
        with arithmetic(patches.device, dtype):
            _, output = network(patches)
        yield losses.reconstruction(output, patches[:, : image.channels]) / len(schedule)


def together(images: Sequence[TrainingImage], most: int) -> list[list[TrainingImage]]:
    """Divide images into groups of one size, `most` at most, in their order."""
    groups: list[list[TrainingImage]] = []
    for image in images:
        fits = groups and len(groups[-1]) < most and groups[-1][0].pixels.shape == image.pixels.shape
        if fits:
            groups[-1].append(image)
        else:
            groups.append([image])
    return groups


def _jittered(image: TrainingImage, rng: np.random.Generator) -> Tensor:
    """Shift each channel of the evidence at random, so that the network trusts no single one."""
    evidence = image.pixels[:, image.channels :]
    if evidence.shape[1] == 0:
        return image.pixels
    shifts = torch.from_numpy(rng.standard_normal(evidence.shape[1]).astype(np.float32)).to(evidence.device)
    shape = (1, -1, *[1] * (evidence.ndim - 2))
    spread = evidence.std(tuple(range(2, evidence.ndim)), keepdim=True)
    return torch.cat([image.pixels[:, : image.channels], evidence + JITTER * spread * shifts.view(shape)], dim=1)


def _segmentation_terms(features: Tensor, image: TrainingImage, settings: Settings) -> dict[str, Tensor]:
    """Cut, similarity and continuity, on superpixels or between pixels."""
    weights, graph = settings.losses, image.graph
    terms: dict[str, Tensor] = {}
    pooled = features.flatten(1).T if graph is None else graph.pool(features)
    if weights.cut > 0:
        if graph is None:
            cut_weights, offsets = image.cut  # type: ignore[misc]
            terms["cut"] = losses.dense_cut(features.softmax(0), cut_weights, offsets)
        else:
            terms["cut"] = losses.normalised_cut(pooled, graph.edges, image.cut)  # type: ignore[arg-type]
    if weights.similarity > 0:
        if image.target is not None:
            terms["similarity"] = losses.similarity(SHARPNESS * features, image.target)
        elif graph is None:
            terms["similarity"] = losses.similarity(features, pooled.detach().argmax(1))
        else:
            mode = settings.labels.mode
            # Centres are fitted after training: until then the labels are those of the network.
            nodes = graph.node_labels(features, pooled, "argmax_of_mean" if mode == "codebook" else mode)
            terms["similarity"] = losses.similarity(features, nodes[graph.labels])
    if weights.continuity > 0:
        if graph is None:
            terms["continuity"] = losses.dense_continuity(features)
        else:
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
        If a loss or its gradient is not finite; the step is not taken.
    """
    weights = settings.losses.model_dump()
    sums: dict[str, float] = {}
    network.train()
    optimiser.zero_grad(set_to_none=True)
    # Whole images one by one, as published: that many activations are kept at a time.
    for group in together(images, 1 if settings.patches.crop is None else MOST_TOGETHER):
        for part in loss_parts(network, group, settings, rng, dtype):
            totals = {index: losses.weighted_sum(terms, weights) for index, terms in part.items()}
            torch.stack(list(totals.values())).sum().backward()  # type: ignore[no-untyped-call]
            for index, terms in part.items():
                for name, value in {**terms, "total": totals[index]}.items():
                    sums[name] = sums.get(name, 0.0) + value.item()
    odd = [name for name, value in sums.items() if not math.isfinite(value)]
    if odd:
        raise RunError(
            f"expected finite losses, but the loss '{odd[0]}' is {sums[odd[0]]}; start again with a lower "
            "`training.learning_rate` or a lower weight of that loss"
        )
    slopes = [weight.grad.norm() for weight in network.parameters() if weight.grad is not None]
    if not torch.isfinite(torch.stack(slopes)).all():
        raise RunError(
            "expected finite gradients, but the losses rise beyond what numbers can hold; start again with a lower "
            "`training.learning_rate`"
        )
    optimiser.step()
    return sums


def learning_rate(number: int, settings: Settings) -> float:
    """Return the learning rate of a step, counted from 0: constant, or one cycle of two half-cosines [1]_.

    References
    ----------
    .. [1] L. N. Smith, N. Topin, Super-convergence: very fast training of neural networks using large learning rates,
       arXiv 1708.07120, 2017.
    """
    highest = settings.training.learning_rate
    if settings.training.schedule == "constant":
        return highest
    total = settings.training.epochs * settings.training.batches
    turn = WARM_UP * (total - 1)
    if number < turn:
        start, end, share = FIRST_RATE, 1.0, number / turn
    else:
        start, end, share = 1.0, LAST_RATE, (number - turn) / max(total - 1 - turn, 1)
    return highest * (end + (start - end) * (1 + math.cos(math.pi * share)) / 2)


@torch.no_grad()
def calibrate(network: WNet, images: Sequence[TrainingImage], dtype: torch.dtype) -> None:
    """Set the batch statistics to those of the whole training images, each weighing alike.

    The running averages of training mix small patches and whole images; prediction sees whole images.
    """
    norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    network.train()
    for norm in norms:
        norm.reset_running_stats()
    seen = 0
    for group in together(images, MOST_CALIBRATED):
        seen += len(group)
        for norm in norms:
            norm.momentum = len(group) / seen
        pixels = torch.cat([image.pixels for image in group])
        with arithmetic(pixels.device, dtype):
            network(pixels.contiguous(memory_format=training_format(pixels.ndim - 2, dtype, pixels.device)))
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
    should_keep: Callable[[], bool] = lambda: False,
) -> Fitted:
    """Train the network for the settings' epochs, or until told to keep what there is.

    If a loss or a gradient is not finite, that step is undone, and the training ends with what the steps before it
    gave.

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
    should_keep : callable
        Asked after each step but the last; if it says yes, that step is the last.

    Returns
    -------
    Fitted
        With the same network.

    Raises
    ------
    Stopped
        If asked to stop; the checkpoint holds everything up to the last step.
    RunError
        If a loss or a gradient is not finite in the first step.
    """
    device = images[0].pixels.device
    dtype = convolution_type(settings.training.precision, device)
    form = training_format(images[0].pixels.ndim - 2, dtype, device)
    network.to(device, memory_format=form)  # type: ignore[call-overload]
    # With a weight decay of 0, as published, this is Adam.
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=settings.training.weight_decay)
    first = run.load_checkpoint(network, optimiser) if run is not None and resume else 0
    total = settings.training.epochs * settings.training.batches
    start = saved = previewed = time.monotonic()
    preview_pause = 0.0
    steps, fault = max(first, total), None
    with deterministic():
        for number in range(first, total):
            # Each step has its own random numbers, so that a resumed training draws the same.
            rng = np.random.default_rng([settings.seed, number])
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(number, settings)
            before = [buffer.clone() for buffer in network.buffers()]
            try:
                terms = step(network, optimiser, images, settings, rng, dtype)
            except RunError as error:
                if number == 0:
                    raise
                for buffer, old in zip(network.buffers(), before, strict=True):
                    buffer.copy_(old)
                steps, fault = number, str(error)
                logger.error(
                    "step %d of %d failed, and what the steps before it gave is kept: %s", number + 1, total, error
                )
                if run is not None:
                    run.save_checkpoint(network, optimiser, steps)
                break
            done = number + 1
            now = time.monotonic()
            if run is not None:
                run.log(done, terms)
            on_progress(Progress("train", done, total, (now - start) / (done - first) * (total - done), terms))
            last = done == total or should_keep()
            stop = not last and should_stop()
            epoch_ends = done % settings.training.batches == 0
            if run is not None and (stop or last or (epoch_ends and now - saved > CHECKPOINT_SECONDS)):
                run.save_checkpoint(network, optimiser, done)
                saved = now
            if stop:
                how = "without a run directory nothing is kept"
                if run is not None:
                    how = "go on by `--resume` (in Python `resume=True`)"
                raise Stopped(f"stopped after step {done} of {total}; {how}")
            if last:
                steps = done
                break
            if on_preview is not None and now - previewed > max(PREVIEW_SECONDS, preview_pause):
                calibrate(network, images, dtype)
                on_preview(done)
                previewed = time.monotonic()
                preview_pause = (previewed - now) / PREVIEW_SHARE
        calibrate(network, images, dtype)
    return Fitted(network, steps, fault)

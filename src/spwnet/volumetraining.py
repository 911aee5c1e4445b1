"""Training on a few slices of a volume, with what lies around them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn import functional

from spwnet.blocks import within
from spwnet.codebook import Descriptors, fit_codebook
from spwnet.devices import arithmetic, convolution_type, deterministic
from spwnet.errors import InputError
from spwnet.filters import averaged
from spwnet.graph import build_graph
from spwnet.previews import in_range
from spwnet.superpixels import superpixels_from_labels
from spwnet.trained import evidence_kinds, make_network
from spwnet.training import Fitted, TrainingImage, continuity_weights, fit
from spwnet.volumetric import STEPS, Part, describe_part, see

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from spwnet.blocks import Grid, Region
    from spwnet.codebook import Codebook
    from spwnet.config import Settings
    from spwnet.model import WNet
    from spwnet.preparation import Normalisation
    from spwnet.runs import Run
    from spwnet.training import Progress
    from spwnet.volumes import Volume

    Seen = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.integer[Any]]]
    """Input, reconstruction and classes of a picture."""


def windows(grid: Grid, slices: Sequence[tuple[int, int]], most_pixels: int, seed: int) -> list[Region]:
    """Return the parts of the slices that are trained on, one layer of cells thick, in working voxels.

    Parameters
    ----------
    grid : Grid
    slices : sequence of (axis, number)
        Stored slices across an axis, 0 for z, 1 for y, 2 for x.
    most_pixels : int
        A slice of more than one and a half times as many working voxels is seen in a window of so many, at random.
    seed : int

    Returns
    -------
    list of region
        One for each slice, in their order.
    """
    rng = np.random.default_rng(seed)
    found: list[Region] = []
    for axis, number in slices:
        start = number // grid.bins[axis] // grid.cells[axis] * grid.cells[axis]
        region = [slice(0, 0)] * 3
        region[axis] = slice(start, min(start + grid.cells[axis], grid.working[axis]))
        others = [along for along in range(3) if along != axis]
        share = math.sqrt(min(1.0, most_pixels / math.prod(grid.working[along] for along in others)))
        for along in others:
            size, cell = grid.working[along], grid.cells[along]
            side = size if share**2 * 1.5 > 1 else max(1, int(size * share))
            place = int(rng.integers(0, (size - side) // cell + 1)) * cell
            region[along] = slice(place, place + side)
        found.append((region[0], region[1], region[2]))
    return found


def check_size(grid: Grid, settings: Settings) -> None:
    """Check that slices are large enough for the network.

    Raises
    ------
    InputError
        If a network is to learn, and no side has more cells than it reduces to one.
    """
    for axis in settings.volumes.axes:
        others = [along for along in range(3) if along != axis]
        sides = [grid.working[along] for along in others]
        cells = [-(-side // grid.cells[along]) for side, along in zip(sides, others, strict=True)]
        least = 2**settings.volumes.n_blocks
        if settings.learns and max(cells) <= least:
            raise InputError(
                f"expected slices of more than {least * settings.model.reduction} working voxels "
                f"along one side at least, because the network reduces so many to one, but those across "
                f"{'zyx'[axis]} have {sides[0]}×{sides[1]}; use a larger `images.scale`, or the preset 'instant'"
            )


@deterministic()
def fit_volume(
    volume: Volume,
    grid: Grid,
    cores: Sequence[tuple[int, Region]],
    settings: Settings,
    normalisation: Normalisation,
    device: torch.device,
    *,
    run: Run | None,
    resume: bool,
    on_progress: Callable[[Progress], None],
    on_preview: Callable[[int, Sequence[Seen]], None] | None,
    should_stop: Callable[[], bool],
    should_keep: Callable[[], bool],
) -> tuple[Fitted | None, Codebook]:
    """Train the network, if there is one, and fit the codebook on parts of a volume.

    Parameters
    ----------
    volume : Volume
    grid : Grid
    cores : sequence of (axis, region)
        Slices across an axis, from `windows`.
    settings, normalisation, device
    run : Run or None
        Where checkpoints and losses go.
    resume : bool
    on_progress, should_stop, should_keep : callable
        As of `fit`.
    on_preview : callable or None
        As of `fit`, with what the network makes of each part.

    Returns
    -------
    Fitted or None
        As of `fit`; None without a network.
    Codebook
        Of evidence that includes the network's, if there is one.

    Raises
    ------
    InputError
        If a part cannot be read.
    Stopped
        As of `fit`.
    """
    channels = volume.channels
    taught = settings.model_copy(update={"codebook": settings.codebook.model_copy(update={"evidence": "handmade"})})
    parts = [see(volume, grid, core, settings, normalisation, learns=settings.learns) for _, core in cores]
    network = fitted = None
    if settings.learns:
        network = make_network(settings, channels, solid=True).to(device)
        targets: list[NDArray[np.int32] | None] = [None] * len(parts)
        if settings.losses.target == "codebook" and settings.losses.similarity > 0:
            described = [describe_part(None, part, grid, taught, device) for part in parts]
            codebook = fit_codebook(
                [_in_core(part, one) for part, one in zip(parts, described, strict=True)],
                evidence_kinds(taught, channels, solid=True),
                settings.model.classes,
                settings.seed,
                STEPS,
            )
            members = np.arange(codebook.finest)
            targets = [codebook.assign(one, members).classes for one in described]
        batch = [
            _set_up(part, axis, grid, settings, classes, device)
            for (axis, _), part, classes in zip(cores, parts, targets, strict=True)
        ]
        network.scale_evidence([image.pixels for image in batch])
        trained, show = network, on_preview

        def look(done: int) -> None:
            assert show is not None
            show(done, [_seen(trained, image, settings, normalisation) for image in batch])

        fitted = fit(
            network, batch, settings, run=run, resume=resume, on_progress=on_progress,
            on_preview=None if on_preview is None else look, should_stop=should_stop, should_keep=should_keep,
        )  # fmt: skip
    with torch.inference_mode():
        rows = [_in_core(part, describe_part(network, part, grid, settings, device)) for part in parts]
    kinds = evidence_kinds(settings, channels, solid=True)
    return fitted, fit_codebook(rows, kinds, settings.codebook.finest, settings.seed, STEPS)


@torch.inference_mode()
def _seen(network: WNet, image: TrainingImage, settings: Settings, normalisation: Normalisation) -> Seen:
    """Return input, reconstruction and the network's own classes of a layer of cells."""
    assert image.graph is not None
    with arithmetic(image.pixels.device, convolution_type(settings.training.precision, image.pixels.device)):
        features, output = network(image.pixels)
    features = features[0].float()
    nodes = image.graph.node_labels(features, image.graph.pool(features), "argmax_of_mean")
    unit, reconstruction = (
        in_range(planes.float().movedim(0, -1).cpu().numpy(), normalisation)
        for planes in (image.pixels[0, : image.channels], output[0])
    )
    return unit, reconstruction, nodes[image.graph.labels].view(features.shape[1:]).cpu().numpy()


def _in_core(part: Part, descriptors: Descriptors) -> Descriptors:
    """Keep the supervoxels in the part itself, and the edges between them."""
    places = torch.arange(len(part.graph.labels)).view(part.graph.shape)[within(part.core, part.around)]
    graph, nodes = part.graph.part(places)
    return Descriptors(descriptors.rows[nodes.numpy()], graph.edges.numpy(), graph.contacts.numpy())


def _set_up(
    part: Part, axis: int, grid: Grid, settings: Settings, target: NDArray[np.integer[Any]] | None, device: torch.device
) -> TrainingImage:
    """Make the layer of cells of a part's core an image that the network is trained on."""
    core = within(part.core, part.around)
    layer = core[axis].start // grid.cells[axis]
    others = [along for along in range(3) if along != axis]
    rows, columns = (
        slice(core[along].start // grid.cells[along], -(-core[along].stop // grid.cells[along])) for along in others
    )
    pixels = part.pixels[axis][layer : layer + 1, :, *part.plane(axis)][:, :, rows, columns].contiguous()
    nodes = part.graph.labels.view(part.graph.shape)[core]
    # The section of the supervoxels at the first voxel of each cell.
    first, second = (grid.cells[along] for along in others)
    labels = nodes.select(axis, 0)[::first, ::second].numpy()
    channels = len(part.colour)
    graph = build_graph(
        superpixels_from_labels(labels, labels.shape), pixels[0, :channels].movedim(0, -1).numpy(), device
    )
    shares = None
    if target is not None:
        classes = torch.from_numpy(target.astype(np.int64))[nodes]
        one_hot = functional.one_hot(classes, settings.model.classes).movedim(-1, 0).float()
        shares = averaged(one_hot[None], grid.cells)[0].select(1 + axis, 0).contiguous().to(device)
    height, width = pixels.shape[2:]
    return TrainingImage(
        pixels=pixels.to(device),
        channels=channels,
        patch_region=((0, height), (0, width)),
        graph=graph,
        cut=graph.cut_weights(settings.losses.tau_cut) if settings.losses.cut > 0 else None,
        continuity=continuity_weights(graph, settings),
        target=shares,
    )

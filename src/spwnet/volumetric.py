"""Volumes, part by part: supervoxels, their graph and their classes, which do not depend on where parts are cut."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import numpy as np
import torch

from spwnet.blocks import Grid, make_grid, widened, within
from spwnet.codebook import Descriptors, agreed
from spwnet.descriptors import solid, solid_reach
from spwnet.devices import arithmetic, available_memory, convolution_type, deterministic, memory_format
from spwnet.errors import InputError, SettingsError
from spwnet.filters import averaged, gaussian, reach
from spwnet.graph import RegionGraph, build_graph, joined
from spwnet.prediction import predict, prepare_image
from spwnet.preparation import LAB_RANGE, SMOOTH, perceptual, restore, to_unit
from spwnet.superpixels import Seeds, lattice_slic, relabelled
from spwnet.volumes import SliceSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from spwnet.blocks import Region
    from spwnet.config import LabelSettings, Settings
    from spwnet.model import WNet
    from spwnet.preparation import Normalisation
    from spwnet.trained import TrainedModel
    from spwnet.volumes import Volume

STEPS = 1
"""Of evening out between supervoxels, and of agreeing on classes: more change little, and see further."""
ITERATIONS = 2
"""Of SLIC, likewise."""
SLAB_VOXELS = 2_000_000
"""Stored voxels that are read and averaged at a time."""
BATCH_CELLS = 60_000
"""Cells that go through the network at a time."""


def grid_of(volume: Volume, settings: Settings) -> Grid:
    """Lay out the working voxels and supervoxels of a volume as the settings say.

    Raises
    ------
    SettingsError
        If a setting is not for volumes.
    """
    for name, value, only in (
        ("images.margin", settings.images.margin, 0),
        ("images.unsharp_radius", settings.images.unsharp_radius, 0.0),
        ("superpixels.method", settings.superpixels.method, "slic"),
        ("labels.mode", settings.labels.mode, "codebook"),
    ):
        if value != only:
            raise SettingsError(
                f"expected `{name} = {only!r}` for a volume, but got {value!r}; leave it out, or segment it slice by "
                'slice with `volumes.mode = "slices"`'
            )
    if settings.superpixels.count is not None:
        raise SettingsError(
            f"expected supervoxels by their size, `volumes.size`, but got `superpixels.count = "
            f"{settings.superpixels.count}`; leave it out"
        )
    return make_grid(
        volume.shape,
        volume.spacing,
        scale=settings.images.scale,
        max_pixels=settings.images.max_pixels,
        size=settings.volumes.size,
        reduction=settings.model.reduction,
    )


def check_slices(volume: Volume, axes: Sequence[int]) -> None:
    """Check that slices across the axes, one for each, fit into memory, where all of them are held together.

    Raises
    ------
    InputError
    """
    counts = [math.prod(n for along, n in enumerate(volume.shape) if along != axis) for axis in axes]
    needed, there = sum(counts) * volume.channels * volume.dtype.itemsize, available_memory()
    if needed > there:
        raise InputError(
            f"expected about {needed / 2**30:.1f} GiB of memory at least for {len(axes)} of the slices of "
            f"'{volume.name}', but there are {there / 2**30:.1f} GiB; check that the file is not damaged, or cut it "
            "into parts"
        )


def network_reach(n_blocks: int) -> int:
    """Cells on either side of a cell that a U-Net of so many poolings sees."""
    sides = [1 << level for level in range(n_blocks + 1)]
    # Two convolutions a level on the way down, one between levels and two a level on the way up, and uneven pooling.
    return 2 * sum(sides) + sum(sides[1:]) + 2 * sum(sides[:-1]) + sides[-1] - 1


@dataclass(frozen=True)
class Halo:
    """Working voxels that a part has to see beyond its own, along each axis.

    Attributes
    ----------
    nodes : three ints
        To where supervoxels are known, because classes agree with those of neighbours.
    seeds : three ints
        From there on, for the supervoxels to be what they are in the whole volume.
    evidence : three ints
        From there on, for their evidence.
    align : three ints
        Regions begin at multiples of it, as cells and what the network pools do.
    """

    nodes: tuple[int, ...]
    seeds: tuple[int, ...]
    evidence: tuple[int, ...]
    align: tuple[int, ...]


def halo_of(grid: Grid, n_blocks: int | None, axes: Sequence[int] = (0,)) -> Halo:
    """Work out the halo; `n_blocks` are the poolings of the network that looks across `axes`, None without one."""
    # A supervoxel lies within one distance of its seed, and learns from neighbours one distance on in each step.
    nodes = [n + 1 for n in grid.seeds_to_voxels(2 * STEPS + 2)]
    blur = [reach(SMOOTH / ratio) + 1 for ratio in grid.scale]
    seeds = [n + b for n, b in zip(grid.seeds_to_voxels(1.5 + 2 * (ITERATIONS - 1)), blur, strict=True)]
    evidence = solid_reach(grid.cells, grid.scale)
    align = list(grid.cells)
    if n_blocks is not None:
        for axis in range(3):
            if any(across != axis for across in axes):
                evidence[axis] += network_reach(n_blocks) * grid.cells[axis]
                align[axis] *= 2**n_blocks
    return Halo(tuple(nodes), tuple(seeds), tuple(evidence), tuple(align))


@dataclass(frozen=True)
class Part:
    """A part of a volume with the supervoxels in and around it.

    Attributes
    ----------
    core : region
        The part itself, in working voxels.
    around : region
        Where supervoxels are known.
    graph : RegionGraph
        Of the supervoxels there.
    colour : (C, *around) float32 tensor
        Channels in 0…100, or CIELAB.
    filters : (E, *cells) float32 tensor
        Evidence on the cells of `around`.
    pixels : dict of {axis: (d, C + E, h, w) float32 tensor}
        What the network takes of each layer of cells of `around` across an axis; within the layer it is wider.
    inside : three slices
        Cells along each axis, of those that reach beyond `around`, that are in it.
    """

    core: Region
    around: Region
    graph: RegionGraph
    colour: Tensor
    filters: Tensor
    pixels: dict[int, Tensor]
    inside: Region

    def plane(self, axis: int) -> tuple[slice, slice]:
        """Rows and columns of `pixels` across an axis that are in `around`."""
        rows, columns = (part for along, part in enumerate(self.inside) if along != axis)
        return rows, columns


def see(
    volume: Volume,
    grid: Grid,
    core: Region,
    settings: Settings,
    normalisation: Normalisation,
    *,
    learns: bool,
) -> Part:
    """Read a part of a volume, divide it into supervoxels and gather their evidence.

    Parameters
    ----------
    volume : Volume
    grid : Grid
    core : region
        In working voxels.
    settings : Settings
    normalisation : Normalisation
    learns : bool
        Whether a network takes it in.

    Returns
    -------
    Part

    Raises
    ------
    InputError
        If the part cannot be read.
    """
    halo = halo_of(grid, settings.volumes.n_blocks if learns else None, settings.volumes.axes)
    around = widened(core, halo.nodes, grid.working, grid.cells)
    seeded = widened(around, halo.seeds, grid.working)
    farthest = [max(pair) for pair in zip(halo.evidence, halo.seeds, strict=True)]
    wide = widened(around, farthest, grid.working, halo.align)
    unit = read_unit(volume, grid, wide, normalisation)
    if normalisation.rgb:
        channels_last = perceptual(unit.movedim(0, -1).numpy(), rgb=True)
        colour = torch.from_numpy(np.ascontiguousarray(np.moveaxis(channels_last, -1, 0)))
    else:
        colour = unit * LAB_RANGE
    smooth = gaussian(colour, [SMOOTH / ratio for ratio in grid.scale])
    axes = [
        Seeds(size, count, part.start, part.stop)
        for size, count, part in zip(grid.working, grid.seeds, seeded, strict=True)
    ]
    features = smooth[(slice(None), *within(seeded, wide))]
    labels = lattice_slic(features, axes, settings.superpixels.compactness, ITERATIONS)
    here = within(around, wide)
    own = labels[within(around, seeded)].numpy()
    graph = lattice_graph(own, [len(seeds.present) for seeds in axes], unit[(slice(None), *here)])
    filters = solid(colour, smooth, grid.cells, grid.scale)
    z, y, x = (slice(part.start // side, -(-part.stop // side)) for part, side in zip(here, grid.cells, strict=True))
    in_cells = z, y, x
    pixels = {}
    if learns:
        means = averaged(unit[None], grid.cells)[0]
        if normalisation.standardise:
            mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (normalisation.mean, normalisation.std))
            means = (means - mean) / std
        cells = torch.cat([means, filters] if settings.model.evidence else [means])
        for axis in settings.volumes.axes:
            layers = cells.movedim(1 + axis, 0)[in_cells[axis]]
            pixels[axis] = layers.contiguous()
    return Part(
        core=core,
        around=around,
        graph=graph,
        colour=colour[(slice(None), *here)].contiguous(),
        filters=filters[(slice(None), *in_cells)].contiguous(),
        pixels=pixels,
        inside=in_cells,
    )


def read_unit(volume: Volume, grid: Grid, region: Region, normalisation: Normalisation) -> Tensor:
    """Read working voxels as (C, d, h, w) float32 in 0…1, a few layers at a time."""
    size = [part.stop - part.start for part in region]
    unit = torch.empty((volume.channels, *size))
    per_layer = max(1, math.prod(size[1:]) * math.prod(grid.bins))
    step = max(1, SLAB_VOXELS // per_layer)
    for start in range(region[0].start, region[0].stop, step):
        layers = slice(start, min(start + step, region[0].stop))
        values = to_unit(volume.read(grid.stored((layers, *region[1:]))), normalisation)
        planes = torch.from_numpy(values).movedim(-1, 0)[None]
        unit[:, start - region[0].start : layers.stop - region[0].start] = averaged(planes, grid.bins)[0]
    return unit


def lattice_graph(labels: NDArray[np.int32], lattice: Sequence[int], unit: Tensor) -> RegionGraph:
    """Join supervoxels whose seeds are neighbours, corners included, and that touch.

    Parameters
    ----------
    labels : (d, h, w) int32 array
        Seed of each voxel, from `lattice_slic`.
    lattice : three ints
        Seeds along each axis.
    unit : (C, d, h, w) float32 tensor
        For the mean colours.

    Returns
    -------
    RegionGraph
        On the CPU. Contacts are the faces that voxels have in common.
    """
    from scipy.sparse import csr_array

    found = relabelled(labels)
    count = found.count
    # Voxels that touch have seeds at most two apart along an axis: the sum of weighted places tells every such step.
    weights = (25, 5, 1)
    z, y, x = (np.arange(n, dtype=np.int32) * weight for n, weight in zip(lattice, weights, strict=True))
    places = (z[:, None, None] + y[:, None] + x).ravel()[labels]
    most = 2 * sum(weights)
    neighbour = np.zeros(2 * most + 1, bool)
    for offset in product((-1, 0, 1), repeat=3):
        neighbour[most + int(np.dot(offset, weights))] = True
    neighbour[most] = False
    lower, upper = [], []
    for axis in range(3):
        near, far = (
            tuple(part if a == axis else slice(None) for a in range(3)) for part in (slice(None, -1), slice(1, None))
        )
        apart = neighbour[places[far] - places[near] + most]
        a, b = found.labels[near][apart], found.labels[far][apart]
        lower.append(np.minimum(a, b))
        upper.append(np.maximum(a, b))
    pairs = (np.concatenate(lower), np.concatenate(upper))
    half = csr_array((np.ones(len(pairs[0]), np.float32), pairs), shape=(count, count))
    half.sum_duplicates()
    return joined(found, half, unit.flatten(1).numpy())


def describe_part(
    network: WNet | None, part: Part, grid: Grid, settings: Settings, device: torch.device
) -> Descriptors:
    """Describe each supervoxel by what the settings take as evidence, averaged over it: as `kinds`."""
    evidence, graph = settings.codebook.evidence, part.graph
    rows = []
    if network is not None and evidence in ("all", "learned"):
        learned = _classified(network, part, convolution_type(settings.training.precision, device), device)
        rows.append(graph.average(learned, grid.cells))
    if evidence != "learned":
        rows.append(graph.average(part.colour, 1))
        if evidence != "colour":
            rows.append(graph.average(part.filters[len(part.colour) :], grid.cells))
    return Descriptors(np.concatenate(rows, axis=1), graph.edges.numpy(), graph.contacts.numpy())


def _classified(network: WNet, part: Part, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Probability of each class on the cells of `around`, (K, *cells), layer by layer; of several axes the mean."""
    total: Tensor | None = None
    for axis, pixels in part.pixels.items():
        found = []
        for some in torch.split(pixels, max(1, BATCH_CELLS // math.prod(pixels.shape[2:]))):
            batch = some.to(device, memory_format=memory_format(2))
            with arithmetic(device, dtype):
                found.append(network.classify(batch)[(slice(None), slice(None), *part.plane(axis))].cpu())
        layers = torch.cat(found).movedim(0, 1 + axis)
        total = layers if total is None else total + layers
    assert total is not None
    return (total / len(part.pixels)).contiguous()


@deterministic()
@torch.inference_mode()
def predict_part(model: TrainedModel, volume: Volume, region: Region, labels: LabelSettings) -> NDArray[np.int32]:
    """Label a region of a volume, the same wherever its borders are.

    Parameters
    ----------
    model : TrainedModel
        Trained on volumes.
    volume : Volume
    region : region
        In stored voxels, beginning at multiples of the grid's bins.
    labels : LabelSettings

    Returns
    -------
    (d, h, w) int32 array
    """
    if not model.solid:
        return _predict_slices(model, volume, region, labels)
    assert model.codebook is not None
    grid = grid_of(volume, model.settings)
    z, y, x = (slice(part.start // b, -(-part.stop // b)) for part, b in zip(region, grid.bins, strict=True))
    learns = model.network is not None and model.settings.codebook.evidence in ("all", "learned")
    part = see(volume, grid, (z, y, x), model.settings, model.normalisation, learns=learns)
    descriptors = describe_part(model.network, part, grid, model.settings, model.device)
    nearest = agreed(model.codebook.energies(descriptors, STEPS), steps=STEPS).argmin(1)
    classes: NDArray[np.int32] = model.members(labels)[nearest].astype(np.int32)
    nodes = part.graph.labels.numpy().reshape(part.graph.shape)[within(part.core, part.around)]
    found: NDArray[np.int32] = classes[nodes]
    for axis, (b, size) in enumerate(zip(grid.bins, region, strict=True)):
        if b > 1:
            found = np.repeat(found, b, axis).take(np.arange(size.stop - size.start), axis)
    return found


def _predict_slices(model: TrainedModel, volume: Volume, region: Region, labels: LabelSettings) -> NDArray[np.int32]:
    """Label whole slices, each on its own as images are, and cut the region out of them."""
    source, layers = SliceSource(volume), []
    for z in range(region[0].start, region[0].stop):
        prepared, superpixels = prepare_image(source[z], model.settings, model.normalisation)
        graph = None if superpixels is None else build_graph(superpixels, prepared.unit, model.device)
        classes, _ = predict(model, prepared, graph, labels)
        layers.append(restore(classes, prepared.frame)[region[1], region[2]])
    return np.stack(layers)

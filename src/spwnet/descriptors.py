"""Hand-made evidence at every pixel: colour, contrast, texture and orientation at several scales."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from spwnet.devices import memory_format, to_tensor
from spwnet.filters import averaged, gaussian, reach

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spwnet.config import ModelSettings
    from spwnet.preparation import Prepared

WIDE = 32.0
"""Standard deviation of the surroundings that each channel is compared with, in working pixels."""
FAINT = 1.0
"""Contrast, on the scale 0…100, below which differences hardly count."""


class Kind(NamedTuple):
    """Values of a descriptor that are one kind of evidence, and the weight of that kind."""

    size: int
    weight: float


LEARNED_WEIGHT = 0.4
"""Of what the network learned, against the weights of the hand-made groups."""

GROUPS: dict[str, tuple[tuple[str, ...], float]] = {
    "colour": (("colour",), 0.6),
    "smooth": (("smooth 2", "smooth 4"), 0.8),
    "local": (("local", "local 4"), 0.5),
    "energy": (("energy 0", "energy 1", "energy 2", "energy 4"), 0.7),
    "band": (("band 1", "band 2", "band 4", "band 8"), 0.4),
    "orientation": (("orientation 4", "orientation 8"), 0.5),
}
"""Kinds of evidence by group, and the weight of the group; its kinds share it."""
SOLID: dict[str, tuple[tuple[str, ...], float]] = {
    "colour": (("colour",), 1.6),
    "smooth": (("smooth 1", "smooth 2"), 0.8),
    "energy": (("energy 0",), 0.3),
    "band": (("band 1",), 0.6),
    "grain": (("grain 4",), 0.35),
}
"""As `GROUPS`, for volumes: what can be seen from near by, so that a block needs little around it."""
NEAR, FINE = 2.0, 1.0
"""Widths of the smoothing of the values of volumes, in the shortest side of a voxel."""
GRAIN = 4.0
"""Width over which the squared steps along each axis are averaged, likewise."""
ENERGY = 3.0
"""Width over which the energy is averaged, likewise."""


def kinds(evidence: str, channels: int, learned: int, ndim: int = 2, *, solid: bool = False) -> list[Kind]:
    """Return the kinds of evidence in a descriptor, in order.

    Parameters
    ----------
    evidence : str
        "all", "handmade", "colour" or "learned".
    channels : int
        Channels C of the images.
    learned : int
        K, the classes whose probability the network adds.
    ndim : int
        Number of spatial dimensions, 2 or 3.
    solid : bool
        Whether they are of supervoxels, by `SOLID`, instead of by `GROUPS`.
    """
    if evidence == "colour":
        return [Kind(channels, 1.0)]
    network = [Kind(learned, LEARNED_WEIGHT)]
    if evidence == "learned":
        return network
    sizes = {"orientation": ndim * (ndim + 1) // 2 - 1, "grain": 3}
    filters = [
        Kind(sizes.get(group, channels), weight / math.sqrt(len(names)))
        for group, (names, weight) in (SOLID if solid else GROUPS).items()
        for name in names
    ]
    # One grey value has to say what three colours say.
    filters[0] = filters[0]._replace(weight=filters[0].weight * math.sqrt(3 / min(channels, 3)))
    return filters if evidence == "handmade" else [*network, *filters]


def solid(perceptual: Tensor, smooth: Tensor, cells: Sequence[int], scale: Sequence[float]) -> Tensor:
    r"""Compute hand-made evidence of a volume, or a part of one, on cells.

    As `handmade`, but of filters that are narrow, and with the grain of the first channel: with
    :math:`D_a = G_4((x_{p+a} - x_p)^2)` the mean square of the steps along axis a, it is
    :math:`\log(1 + D_a) - \mathrm{mean}_b \log(1 + D_b)`. Fibres, and layers, are smooth along themselves.

    Parameters
    ----------
    perceptual, smooth : (C, d, h, w) float32 tensors
        Channels in 0…100, or CIELAB, and the same blurred by a Gaussian of 1.
    cells : three ints
        Voxels a side of the cells.
    scale : three floats
        Length of a voxel along each axis over the shortest; filters have the same width in all directions.

    Returns
    -------
    (D, *reduced) float32 tensor
        D is the sizes of the `kinds` "handmade" added up.
    """

    def blur(maps: Tensor, sigma: float) -> Tensor:
        return gaussian(maps, solid_widths(sigma, cells, scale))

    def mean(maps: Tensor) -> Tensor:
        return averaged(maps[None], cells)[0]

    image = mean(perceptual)
    fine, near = blur(image, FINE), blur(image, NEAR)
    energy = torch.log(FAINT + torch.sqrt(blur(mean((perceptual - smooth).square()), ENERGY).clamp(min=0) + 1e-6))
    steps = mean(torch.stack([_step_squares(perceptual[0], axis) for axis in range(3)]))
    grain = torch.log(FAINT + blur(steps, GRAIN).clamp(min=0))
    return torch.cat([image, fine, near, energy, fine - near, grain - grain.mean(0, keepdim=True)])


def solid_widths(sigma: float, cells: Sequence[int], scale: Sequence[float]) -> list[float]:
    """Standard deviation along each axis, in cells, that adds to the blur of the cells themselves to make `sigma`."""
    return [
        math.sqrt(max((sigma / ratio) ** 2 - (side**2 - 1) / 12, 0.0)) / side
        for side, ratio in zip(cells, scale, strict=True)
    ]


def solid_reach(cells: Sequence[int], scale: Sequence[float]) -> list[int]:
    """Voxels along each axis that `solid` sees beyond a voxel."""
    widest = max((ENERGY, GRAIN), key=lambda sigma: max(solid_widths(sigma, cells, scale)))
    return [
        (reach(width) + 1) * side + reach(1 / ratio) + 1
        for width, side, ratio in zip(solid_widths(widest, cells, scale), cells, scale, strict=True)
    ]


def _step_squares(values: Tensor, axis: int) -> Tensor:
    """Half the squared steps to the neighbours on either side along an axis, added up."""
    size = values.shape[axis]
    squares = torch.zeros_like(values)
    if size > 1:
        steps = (values.narrow(axis, 1, size - 1) - values.narrow(axis, 0, size - 1)).square_().div_(2)
        squares.narrow(axis, 0, size - 1).add_(steps)
        squares.narrow(axis, 1, size - 1).add_(steps)
    return squares


def network_input(prepared: Prepared, device: torch.device | str, settings: ModelSettings) -> Tensor:
    """Return what the network takes of an image: means of the image and, if asked for, the hand-made evidence.

    Parameters
    ----------
    prepared : Prepared
    device : torch device
    settings : ModelSettings
        `reduction` and `evidence`.

    Returns
    -------
    (1, C + E, *spatial) float32 tensor
        Each side over `reduction`, rounded up.
    """
    device = torch.device(device)
    pixels = averaged(to_tensor(prepared.network, device), settings.reduction)
    if settings.evidence:
        maps = _maps(prepared.colour.to(device), prepared.smooth.to(device), settings.reduction)
        # Of one memory format: mixed ones are joined several times slower.
        pixels = torch.cat([pixels[0].contiguous(), *maps])[None]
    return pixels.contiguous(memory_format=memory_format(pixels.ndim - 2))


def handmade(perceptual: Tensor, reduction: int = 1, smooth: Tensor | None = None) -> Tensor:
    r"""Compute hand-made evidence of an image, on cells of `reduction` pixels a side.

    With :math:`G_s` the image blurred by a Gaussian of standard deviation s: colour is :math:`G_0`, smooth
    :math:`G_2, G_4`; local is each channel against its surroundings,
    :math:`(G_0 - G_{32}) / \sqrt{\sigma_{32}^2 + 1}`; energy is :math:`\log(1 + \mathrm{rms}(G_a - G_b))`, the root
    mean square over a Gaussian of max(4a, 3), and band :math:`G_a - G_b` itself, for b the next larger of 0, 1, 2, 4,
    8, 16; orientation is the traceless part of the structure tensor [1]_ over the root of its trace.

    Parameters
    ----------
    perceptual : (C, *spatial) float32 tensor
        CIELAB, or channels in 0…100.
    reduction : int
        1 gives a value for each pixel.
    smooth : (C, *spatial) float32 tensor, optional
        :math:`G_1` at every pixel, where it is known already.

    Returns
    -------
    (D, *reduced) float32 tensor
        On the device of the input; D is the sizes of the kinds "handmade" added up.

    References
    ----------
    .. [1] J. Bigün, G. H. Granlund, Optimal orientation detection of linear symmetry, ICCV 1987.
    """
    finest = gaussian(perceptual, 1) if smooth is None else smooth
    return torch.cat(_maps(perceptual, finest, reduction))


def _maps(perceptual: Tensor, finest: Tensor, reduction: int) -> list[Tensor]:
    """Maps of `handmade`, in order."""

    def blur(maps: Tensor, sigma: float) -> Tensor:
        # Averaging over cells has blurred by their own width already, wide ones by more than the narrowest filters.
        return gaussian(maps, math.sqrt(max(sigma**2 - (reduction**2 - 1) / 12, 0.0)) / reduction)

    def energy(power: Tensor, sigma: float) -> Tensor:
        return torch.log(FAINT + torch.sqrt(blur(power, sigma).clamp(min=0) + 1e-6))

    def mean(maps: Tensor) -> Tensor:
        return averaged(maps[None], reduction)[0]

    image = mean(perceptual)
    blurred = {0: image, **{s: blur(image, s) for s in (1, 2, 4, 8, 16)}}
    around = blur(image, WIDE)
    spread = torch.sqrt(blur((image - around).square(), WIDE).clamp(min=0) + 1)
    bands = {a: blurred[a] - blurred[b] for a, b in ((1, 2), (2, 4), (4, 8), (8, 16))}
    # The finest contrast and slopes lie between pixels: their squares are averaged, not they themselves.
    powers = {0: mean((perceptual - finest).square()), **{a: bands[a].square() for a in (1, 2, 4)}}
    slopes = mean(_slope_products(finest[:1]))
    maps = {
        "colour": image,
        "smooth 2": blurred[2],
        "smooth 4": blurred[4],
        "local": (image - around) / spread,
        "local 4": (blurred[4] - around) / spread,
        **{f"band {a}": band for a, band in bands.items()},
        **{f"energy {a}": energy(power, max(4 * a, 3)) for a, power in powers.items()},
        **{f"orientation {s}": _orientation(blur(slopes, s)) for s in (4, 8)},
    }
    return [maps[name] for names, _ in GROUPS.values() for name in names]


def _slope_products(lightness: Tensor) -> Tensor:
    """Structure tensor before smoothing: products of the slopes, the squares first, (d(d+1)/2, *spatial)."""
    ndim = lightness.ndim - 1
    slopes = [_slope(lightness, axis) for axis in range(1, ndim + 1)]
    products = [slopes[i] * slopes[i] for i in range(ndim)]
    products += [slopes[i] * slopes[j] for i in range(ndim) for j in range(i + 1, ndim)]
    return torch.cat(products)


def _orientation(tensor: Tensor) -> Tensor:
    """Traceless part of the structure tensor, (d(d+1)/2 − 1, *spatial); its length is the contrast along it."""
    ndim = tensor.ndim - 1
    diagonal, off = tensor[:ndim], tensor[ndim:]
    contrast = torch.sqrt(diagonal.sum(0, keepdim=True).clamp(min=0) + 1e-3)
    return torch.cat([diagonal[1:] - diagonal[:-1], 2 * off]) / contrast


def _slope(image: Tensor, axis: int) -> Tensor:
    """Central differences; 0 across a border."""
    length = image.shape[axis]
    slope = torch.zeros_like(image)
    if length > 2:
        inner = image.narrow(axis, 2, length - 2) - image.narrow(axis, 0, length - 2)
        slope.narrow(axis, 1, length - 2).copy_(inner / 2)
    return slope

"""Hand-made evidence at every pixel: colour, contrast, texture and orientation at several scales."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from spwnet.devices import memory_format, to_tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from spwnet.config import ModelSettings
    from spwnet.preparation import Prepared

LINEAR = {2: "bilinear", 3: "trilinear"}

WIDE = 32.0
"""Standard deviation of the surroundings that lightness is compared with, in working pixels."""
REDUCE_FROM = 4.0
"""Gaussians from this width on are taken on a smaller image, where they are half as wide at least."""
TRUNCATE = 3.0
"""Gaussians end after so many standard deviations."""
FAINT = 1.0
"""Contrast, on the scale 0…100, below which differences hardly count."""


class Kind(NamedTuple):
    """Values of a descriptor that are one kind of evidence, and the weight of that kind."""

    size: int
    weight: float


LEARNED_WEIGHT = 0.6
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


def kinds(evidence: str, channels: int, learned: int, ndim: int = 2) -> list[Kind]:
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
    """
    if evidence == "colour":
        return [Kind(channels, 1.0)]
    network = [Kind(learned, LEARNED_WEIGHT)]
    if evidence == "learned":
        return network
    orientations = ndim * (ndim + 1) // 2 - 1
    filters = [
        Kind(orientations if group == "orientation" else channels, weight / math.sqrt(len(names)))
        for group, (names, weight) in GROUPS.items()
        for name in names
    ]
    # One grey value has to say what three colours say.
    filters[0] = filters[0]._replace(weight=filters[0].weight * math.sqrt(3 / min(channels, 3)))
    return filters if evidence == "handmade" else [*network, *filters]


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
        image = to_tensor(prepared.colour, device)[0].contiguous()
        # Of one memory format: mixed ones are joined several times slower.
        pixels = torch.cat([pixels[0].contiguous(), *_maps(image, settings.reduction)])[None]
    return pixels.contiguous(memory_format=memory_format(pixels.ndim - 2))


def averaged(images: Tensor, reduction: int) -> Tensor:
    """Average (B, C, *spatial) over cells of `reduction` pixels a side, fewer at the far borders."""
    if reduction == 1:
        return images
    # Sums of strided views, whole rows first: twice as fast as pooling on a CPU.
    for axis in range(2, images.ndim):
        size = images.shape[axis]
        slices = [slice(None)] * axis
        sums = images[(*slices, slice(0, None, reduction))].clone()
        for offset in range(1, min(reduction, size)):
            more = images[(*slices, slice(offset, None, reduction))]
            sums.narrow(axis, 0, more.shape[axis]).add_(more)
        cells = sums.shape[axis]
        sums.narrow(axis, 0, size // reduction).div_(reduction)
        if size % reduction:
            sums.narrow(axis, cells - 1, 1).div_(size % reduction)
        images = sums
    return images


def interpolated(maps: Tensor, reduction: int, shape: Sequence[int]) -> Tensor:
    """Bring (C, *reduced) from cells of `reduction` pixels a side to (C, *shape), linearly between their centres."""
    if reduction == 1:
        return maps
    mode = LINEAR[len(shape)]
    wide = functional.interpolate(maps[None], scale_factor=reduction, mode=mode, align_corners=False)[0]
    return wide[(slice(None), *(slice(size) for size in shape))]


def handmade(perceptual: Tensor, reduction: int = 1) -> Tensor:
    r"""Compute hand-made evidence of an image, on cells of `reduction` pixels a side.

    With :math:`G_s` the image blurred by a Gaussian of standard deviation s: colour is :math:`G_0`, smooth
    :math:`G_2, G_4`; local is lightness against its surroundings, :math:`(G_0 - G_{32}) / \sigma_{32}`; energy is
    :math:`\log(1 + \mathrm{rms}(G_a - G_b))` and band :math:`G_a - G_b` itself, for b the next larger of
    0, 1, 2, 4, 8, 16; orientation is the traceless part of the structure tensor [1]_ over the root of its trace.

    Parameters
    ----------
    perceptual : (C, *spatial) float32 tensor
        CIELAB, or channels in 0…100.
    reduction : int
        1 gives a value for each pixel.

    Returns
    -------
    (D, *reduced) float32 tensor
        On the device of the input; D is the sizes of the kinds "handmade" added up.

    References
    ----------
    .. [1] J. Bigün, G. H. Granlund, Optimal orientation detection of linear symmetry, ICCV 1987.
    """
    return torch.cat(_maps(perceptual, reduction))


def _maps(perceptual: Tensor, reduction: int) -> list[Tensor]:
    """Maps of `handmade`, in order."""

    def blur(maps: Tensor, sigma: float) -> Tensor:
        # Averaging over cells has blurred by their own width already.
        return gaussian(maps, math.sqrt(sigma**2 - (reduction**2 - 1) / 12) / reduction)

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
    finest = gaussian(perceptual, 1)
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
    """Traceless part of the structure tensor, whose length is the contrast along the direction: (d, *spatial)."""
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


def gaussian(image: Tensor, sigma: float) -> Tensor:
    """Blur (C, *spatial) by a Gaussian of standard deviation `sigma` in pixels, mirrored at the borders."""
    if sigma >= REDUCE_FROM:
        factor = 2 ** math.floor(math.log2(2 * sigma / REDUCE_FROM))
        size = [max(1, round(n / factor)) for n in image.shape[1:]]
        small = functional.interpolate(image[None], size=size, mode="area")[0]
        wide = gaussian(small, sigma / factor)
        mode = LINEAR[len(size)]
        return functional.interpolate(wide[None], size=image.shape[1:], mode=mode, align_corners=False)[0]
    radius = int(TRUNCATE * sigma + 0.5)
    weights = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    for axis in range(1, image.ndim):
        length = image.shape[axis]
        # Positions that mirror the image, however small: … 2 1 0 | 0 1 2 … n−1 | n−1 n−2 …
        period = torch.arange(-radius, length + radius, device=image.device) % (2 * length)
        padded = image.index_select(axis, torch.minimum(period, 2 * length - 1 - period))
        image = padded.narrow(axis, radius, length) * (weights[0] / total)
        # In-place sums of shifted views: several times faster than a depthwise convolution on a CPU.
        for k in range(1, radius + 1):
            image.add_(padded.narrow(axis, radius - k, length), alpha=weights[k] / total)
            image.add_(padded.narrow(axis, radius + k, length), alpha=weights[k] / total)
    return image

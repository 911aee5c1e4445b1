"""Edge evidence at every pixel: by how much colour and texture differ on the two sides of it, in each direction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from spwnet.devices import deterministic
from spwnet.preparation import perceptual

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

DIRECTIONS = 8
"""Directions of an edge, evenly over half a turn from the direction of x."""
RADIUS = 5
"""Radius of the half-discs, in pixels of each scale."""
SCALES = 3
"""Full, half and quarter size."""
WORDS = 32
"""Texture words of one image."""
LIGHTNESS_BINS, COLOUR_BINS = 12, 16
"""Bins of the histograms of a half-disc."""
LAB_LOW, LAB_SPAN = (0.0, -73.0, -95.0), (100.0, 168.0, 190.0)
"""Range of CIELAB's L, a and b in natural images; what is beyond falls into the outermost bin."""
PLAIN_WEIGHT = 2.0
"""Edges of channels that are no colours are averaged and weighed by this against the sum over L, a and b."""
FILTER_RADIUS, FILTER_SIGMA = 8, 2.0
"""Reach, and standard deviation across a line, of the filters of texture, in pixels."""
SAMPLE = 12_000
"""Pixels that texture words are fitted on."""
ROUNDS = 12
"""Of the k-means that fits them."""
FAINT_EDGE = 1e-4
"""Keeps the distance of two empty bins finite."""


@dataclass(frozen=True)
class Evidence:
    """What is known of an image at every pixel before any region is.

    Attributes
    ----------
    colour : (H, W, C) float32 array
        CIELAB, or the channels in 0…100.
    words : (H, W) int64 array
        Texture word of each pixel, 0 … `WORDS` − 1.
    colour_edges, texture_edges : list of (DIRECTIONS, h, w) float32 arrays
        Strength of an edge in each direction, one array for each scale.
    """

    colour: Floats
    words: NDArray[np.int64]
    colour_edges: list[Floats]
    texture_edges: list[Floats]


@deterministic()
@torch.inference_mode()
def find_evidence(unit: Floats, *, rgb: bool, seed: int = 0) -> Evidence:
    """Compare the two halves of discs around each pixel by their histograms of colour and of texture words [1]_.

    Parameters
    ----------
    unit : (H, W, C) float32 array
        Range 0…1.
    rgb : bool
        Whether the channels are red, green and blue.
    seed : int
        Of the texture words.

    Returns
    -------
    Evidence

    References
    ----------
    .. [1] D. Martin, C. Fowlkes, J. Malik, Learning to detect natural image boundaries using local brightness, color,
       and texture cues, IEEE TPAMI 26 (5), 2004.
    """
    colour = perceptual(unit, rgb=rgb)
    if rgb:
        ranged = ((colour - np.array(LAB_LOW, np.float32)) / np.array(LAB_SPAN, np.float32)).clip(0, 1)
        bins, weight, texture = (LIGHTNESS_BINS, COLOUR_BINS, COLOUR_BINS), 1.0, ranged[..., 0]
    else:
        ranged, bins = unit, (LIGHTNESS_BINS,) * unit.shape[-1]
        weight, texture = PLAIN_WEIGHT / unit.shape[-1], unit.mean(-1)
    soft = [_soft_bins(torch.from_numpy(np.ascontiguousarray(ranged[..., c])), n) for c, n in enumerate(bins)]
    words = _texture_words(torch.from_numpy(np.ascontiguousarray(texture)), seed)
    colour_bins = torch.cat(soft)
    word_bins = functional.one_hot(words, WORDS).permute(2, 0, 1).float()
    colour_edges, texture_edges = [], []
    for scale in range(SCALES):
        if scale:
            colour_bins, word_bins = _halved(colour_bins), _halved(word_bins)
        colour_edges.append((weight * _half_disc_distance(colour_bins)).numpy())
        texture_edges.append(_half_disc_distance(word_bins).numpy())
    return Evidence(colour, words.numpy(), colour_edges, texture_edges)


def at_full_size(edges: Floats, shape: tuple[int, int]) -> Floats:
    """Bring (DIRECTIONS, h, w) to (DIRECTIONS, H, W), bilinearly."""
    if edges.shape[1:] == shape:
        return edges
    tensor = torch.from_numpy(edges)[None]
    full: Floats = functional.interpolate(tensor, size=shape, mode="bilinear", align_corners=False)[0].numpy()
    return full


def _soft_bins(plane: Tensor, bins: int) -> Tensor:
    """(H, W) in 0…1 → (bins, H, W) membership, Gaussian with the standard deviation of one bin."""
    centres = (torch.arange(bins) + 0.5) / bins
    weights = torch.exp(-0.5 * ((plane[None] - centres[:, None, None]) * bins).square())
    return weights / weights.sum(0)


def _halved(bins: Tensor) -> Tensor:
    return functional.avg_pool2d(bins[None], 2, ceil_mode=True, count_include_pad=False)[0]


def _half_discs() -> Tensor:
    """One half of the disc for each direction, and the whole disc, each adding up to 1: (DIRECTIONS + 1, 1, k, k)."""
    y, x = np.mgrid[-RADIUS : RADIUS + 1, -RADIUS : RADIUS + 1].astype(float)
    disc = np.clip(RADIUS + 0.5 - np.hypot(x, y), 0, 1)
    angles = np.pi * np.arange(DIRECTIONS) / DIRECTIONS
    halves = [disc * np.clip(y * np.cos(t) - x * np.sin(t) + 0.5, 0, 1) for t in angles]
    kernels = np.stack([kernel / kernel.sum() for kernel in (*halves, disc)])
    return torch.from_numpy(kernels[:, None].astype(np.float32))


def _half_disc_distance(bins: Tensor) -> Tensor:
    """χ² distance ½ Σ (g − h)² / (g + h) of the histograms g and h of two half-discs: (DIRECTIONS, H, W)."""
    kernels = _half_discs()
    total = bins.new_zeros((DIRECTIONS, *bins.shape[1:]))
    for plane in bins:
        if not bool(plane.any()):
            continue
        padded = functional.pad(plane[None, None], (RADIUS,) * 4, mode="replicate")
        means = functional.conv2d(padded, kernels)[0]
        twice = 2 * means[DIRECTIONS:]
        # The other half is what the whole disc has besides this one.
        total += (2 * means[:DIRECTIONS] - twice).square_().div_(twice + FAINT_EDGE)
    return total.mul_(0.5)


def _filters() -> Tensor:
    """Even and odd line filters in each direction and one centre-surround filter, each of absolute sum 1, mean 0."""
    reach = np.arange(-FILTER_RADIUS, FILTER_RADIUS + 1, dtype=float)
    y, x = np.meshgrid(reach, reach, indexing="ij")
    kernels = []
    for angle in np.pi * np.arange(DIRECTIONS) / DIRECTIONS:
        along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        envelope = np.exp(-((along / (2 * FILTER_SIGMA)) ** 2 + (across / FILTER_SIGMA) ** 2) / 2)
        kernels += [((across / FILTER_SIGMA) ** 2 - 1) * envelope, across * envelope]
    centre, surround = (np.exp(-(x**2 + y**2) / (2 * (FILTER_SIGMA * k) ** 2)) for k in (1.0, 1.6))
    kernels.append(centre / centre.sum() - surround / surround.sum())
    levelled = [kernel - kernel.mean() for kernel in kernels]
    return torch.from_numpy(np.stack([k / np.abs(k).sum() for k in levelled])[:, None].astype(np.float32))


def _texture_words(plane: Tensor, seed: int) -> Tensor:
    """Word of each pixel, (H, W): the nearest of k-means centres of the filters' responses in this image."""
    kernels = _filters()
    padded = functional.pad(plane[None, None], (FILTER_RADIUS,) * 4, mode="replicate")
    rows = functional.conv2d(padded, kernels)[0].flatten(1).T.contiguous()
    generator = torch.Generator().manual_seed(seed)
    sample = rows[torch.randperm(len(rows), generator=generator)[:SAMPLE]]
    centres = _far_apart(sample, generator)
    for _ in range(ROUNDS):
        nearest = torch.cdist(sample, centres).argmin(1)
        counts = torch.bincount(nearest, minlength=WORDS)[:, None]
        means = torch.zeros_like(centres).index_add_(0, nearest, sample) / counts.clamp(min=1)
        centres = torch.where(counts > 0, means, centres)
    distances = centres.square().sum(1) - 2 * rows @ centres.T
    return distances.argmin(1).view(plane.shape)


def _far_apart(rows: Tensor, generator: torch.Generator) -> Tensor:
    """k-means++: each next centre is drawn with probability ∝ squared distance to the nearest so far."""
    centres = [rows[0]]
    nearest = (rows - rows[0]).square().sum(1)
    for _ in range(WORDS - 1):
        chosen = rows[torch.multinomial(nearest + torch.finfo(nearest.dtype).tiny, 1, generator=generator)[0]]
        centres.append(chosen)
        nearest = torch.minimum(nearest, (rows - chosen).square().sum(1))
    return torch.stack(centres)

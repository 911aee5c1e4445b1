"""The losses of the method and their weighted sum: tensors in, scalars out.

Symbols as in the documentation: f features (K, *spatial), F pooled features (N, K), E edges of the
region adjacency graph, A and C their cut and continuity weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from spwnet.geometry import half_neighbourhood, shifted

if TYPE_CHECKING:
    from collections.abc import Mapping

TINY = 1e-9
"""Keeps the share of an empty class finite; far below the weight of one superpixel."""


def reconstruction(output: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of x̂ against x, over all pixels and channels."""
    return functional.mse_loss(output, target)


def normalised_cut(pooled: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    r"""Soft normalised cut of the region adjacency graph [1]_ [2]_.

    .. math:: L = 1 - \frac{1}{K} \sum_k \frac{p_k^T A p_k}{D \cdot p_k},
              \quad D_i = \sum_j A_{ij}, \quad p = \mathrm{softmax}_k(F)

    Parameters
    ----------
    pooled : (N, K) tensor
        F, features averaged over superpixels.
    edges : (2, E) int64 tensor
        Both directions of each pair.
    weights : (E,) tensor
        A_ij of each edge, at least 0.

    Returns
    -------
    scalar in 0…1; a class without weight counts as cut off, never as NaN

    References
    ----------
    .. [1] J. Shi, J. Malik, Normalized cuts and image segmentation, IEEE TPAMI 22 (8), 2000.
    .. [2] X. Xia, B. Kulis, arXiv 1711.08506, 2017.
    """
    p = functional.softmax(pooled, dim=1)
    source, target = edges
    within = (weights[:, None] * p[source] * p[target]).sum(0)
    degree = weights.new_zeros(p.shape[0]).index_add(0, source, weights)
    return 1 - (within / (degree @ p + TINY)).mean()


def similarity(features: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of f at every pixel against the label of the pixel's superpixel [1]_.

    Parameters
    ----------
    features : (K, *spatial) tensor
        Logits.
    labels : (P,) int64 or (K, *spatial) float tensor
        Label of each pixel, in the order of the flattened image, or the share of each; carries no gradient.

    References
    ----------
    .. [1] A. Kanezaki, Unsupervised image segmentation by backpropagation, ICASSP 2018.
    """
    if labels.ndim > 1:
        labels = labels.flatten(1).T
    return functional.cross_entropy(features.flatten(1).T, labels)


def continuity(pooled: Tensor, edges: Tensor, weights: Tensor) -> Tensor:
    r"""Mean absolute difference of each superpixel from the weighted mean of its neighbours.

    .. math:: L = \mathrm{mean}_{i,k} |F - C F|

    Parameters
    ----------
    pooled : (N, K) tensor
    edges : (2, E) int64 tensor
    weights : (E,) tensor
        C_ij, adding up to 1 over the neighbours j of each i.

    Returns
    -------
    scalar; a superpixel without neighbours adds 0
    """
    source, target = edges
    means = torch.zeros_like(pooled).index_add(0, source, weights[:, None] * pooled[target])
    alone = torch.ones(pooled.shape[0], dtype=torch.bool, device=pooled.device).index_fill(0, source, False)
    return (pooled - means).masked_fill(alone[:, None], 0).abs().mean()


def dense_cut(probabilities: Tensor, weights: Tensor, offsets: list[tuple[int, ...]]) -> Tensor:
    r"""Soft normalised cut between pixels [1]_.

    .. math:: L = 1 - \frac{1}{K} \sum_k \frac{\sum_p p_k(p) \sum_q w_{pq} p_k(q)}{\sum_p p_k(p) \sum_q w_{pq}}

    Parameters
    ----------
    probabilities : (K, *spatial) tensor
        softmax over K of f.
    weights : (len(offsets), *spatial) tensor
        As `dense_cut_weights` gives them.
    offsets : list of tuple
        As `dense_cut_weights` gives them.

    Returns
    -------
    scalar

    References
    ----------
    .. [1] X. Xia, B. Kulis, arXiv 1711.08506, 2017.
    """
    smoothed: Tensor = _WeightedNeighbours.apply(probabilities, weights, offsets)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        degree = _weighted_neighbours(torch.ones_like(probabilities[:1]), weights, offsets)
    axes = tuple(range(1, probabilities.ndim))
    within = (probabilities * smoothed).sum(axes)
    return 1 - (within / ((probabilities * degree).sum(axes) + TINY)).mean()


def dense_cut_weights(
    image: Tensor, *, sigma_colour: float = 10.0, sigma_position: float = 4.0, radius: int = 5
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Weights w_pq = exp(−|I_p − I_q|²/σ_I²) · exp(−|p − q|²/σ_X²) for |p − q| < r.

    Parameters
    ----------
    image : (C, *spatial) tensor
        Range 0…1; I is the image times 255, as σ_I = 10 is meant for 0…255.
    sigma_colour, sigma_position : float
        σ_I on the scale 0…255 and σ_X in pixels.
    radius : int
        r in pixels.

    Returns
    -------
    weights : (O, *spatial) tensor
        w between each pixel p and p + offset; 0 where that lies outside the image.
    offsets : list of O tuples
        One of each pair of opposite offsets; the pixel itself (w = 1) is not among them.
    """
    offsets = [o for o in half_neighbourhood(image.ndim - 1, radius) if sum(s * s for s in o) < radius * radius]
    weights = image.new_zeros((len(offsets), *image.shape[1:]))
    for weight, offset in zip(weights, offsets, strict=True):
        here, there = shifted(tuple(image.shape[1:]), offset)
        colour = (255 * (image[(slice(None), *here)] - image[(slice(None), *there)])).square().sum(0) / sigma_colour**2
        weight[here] = torch.exp(-colour - sum(s * s for s in offset) / sigma_position**2)
    return weights, offsets


def cropped_cut_weights(
    weights: Tensor, offsets: list[tuple[int, ...]], part: tuple[slice, ...]
) -> tuple[Tensor, list[tuple[int, ...]]]:
    """Weights of `dense_cut_weights` for a part of the image: none to pixels outside it."""
    cropped = weights[(slice(None), *part)].clone()
    for weight, offset in zip(cropped, offsets, strict=True):
        here, _ = shifted(tuple(weight.shape), offset)
        inside = torch.zeros_like(weight)
        inside[here] = 1
        weight *= inside
    return cropped, offsets


def _weighted_neighbours(x: Tensor, weights: Tensor, offsets: list[tuple[int, ...]]) -> Tensor:
    """Sum over q of w_pq x(q), the pixel itself included, for each channel of x."""
    out = x.clone()
    for weight, offset in zip(weights, offsets, strict=True):
        here, there = shifted(tuple(x.shape[1:]), offset)
        out[(slice(None), *here)] += weight[here] * x[(slice(None), *there)]
        out[(slice(None), *there)] += weight[here] * x[(slice(None), *here)]
    return out


class _WeightedNeighbours(torch.autograd.Function):
    """x ↦ W x; W is symmetric, so the gradient is W g and nothing of the size of x is kept for each offset."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, offsets: list[tuple[int, ...]]) -> Tensor:
        ctx.save_for_backward(weights)
        ctx.offsets = offsets
        return _weighted_neighbours(x, weights, offsets)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (weights,) = ctx.saved_tensors
        return _weighted_neighbours(gradients[0], weights, ctx.offsets), None, None


def dense_continuity(features: Tensor) -> Tensor:
    """Mean absolute difference of f between neighbours along each axis, averaged over the axes.

    Parameters
    ----------
    features : (K, *spatial) tensor

    Returns
    -------
    scalar; an axis of one pixel adds 0
    """
    axes = range(1, features.ndim)
    terms = [features.diff(dim=axis).abs().mean() for axis in axes if features.shape[axis] > 1]
    return torch.stack([*terms, features.new_zeros(())]).sum() / len(axes)


def weighted_sum(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> Tensor:
    """Total of the terms {name: scalar}, each times its weight β of the same name."""
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()

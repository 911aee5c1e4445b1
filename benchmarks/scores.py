"""The naming protocol's numbers, from label images and a set's truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet import metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from benchmarks.data import Set

LEFT_OUT = (0.0, 0.1, 0.2, 0.3, 0.5)
"""Shares of the most uncertain pixels that the risk is given without."""
LEAST_RUNS = 3
"""A rank correlation of fewer runs says nothing."""


@dataclass(frozen=True)
class Named:
    """Classes named on the training frames and scored on the others.

    Attributes
    ----------
    mean : float
        Mean intersection over union of the truth's classes.
    iou : dict of {int: float}
        That of each of them.
    names : dict of {int: int}
        Predicted class → truth's class.
    """

    mean: float
    iou: dict[int, float]
    names: dict[int, int]


def name_and_score(data: Set, labels: Mapping[int, NDArray[Any]]) -> Named:
    """Name each class by the truth it overlaps most on the training frames, score on all other frames.

    Parameters
    ----------
    data : Set
    labels : mapping of {int: (H, W) int array}
        Frame number → classes, on the image's pixels or on the truth's; frames without a truth are passed over.
    """
    tables = {}
    for number, found in labels.items():
        if number in data.labelled:
            truth = data.truth_of(number)
            found = found if found.shape == truth.shape else data.on_truth(found, truth.shape)
            tables[number] = metrics.contingency(found, truth, data.ignore)
    names = metrics.naming(metrics.pooled([table for number, table in tables.items() if number in data.training]))
    rest = metrics.pooled([table for number, table in tables.items() if number not in data.training])
    return Named(*metrics.mean_iou(rest, names), names)


def apply_names(labels: NDArray[Any], names: Mapping[int, int], void: int = -1) -> NDArray[Any]:
    """Put the truth's class in place of each predicted one; `void` where that has no name."""
    lookup = np.full(int(labels.max()) + 1, void)
    for predicted, name in names.items():
        if predicted < len(lookup):
            lookup[predicted] = name
    return lookup[labels]


def risk(
    data: Set, labels: Mapping[int, NDArray[Any]], uncertainty: Mapping[int, NDArray[Any]], names: Mapping[int, int]
) -> dict[str, float]:
    """Share of wrong pixels on the scored frames, without the most uncertain of them.

    Returns
    -------
    dict
        Share left out, as text → share of wrong pixels among the rest.
    """
    wrong, values = [], []
    for number, found in labels.items():
        if number in data.labelled and number not in data.training:
            truth = data.truth_of(number)
            named = apply_names(data.on_truth(found, truth.shape), names)
            counts = ~np.isin(truth, data.ignore)
            wrong.append((named != truth)[counts])
            values.append(data.on_truth(uncertainty[number], truth.shape)[counts])
    return risk_of(np.concatenate(wrong), np.concatenate(values))


def risk_of(
    wrong: NDArray[np.bool_], uncertainty: NDArray[Any], left_out: Sequence[float] = LEFT_OUT
) -> dict[str, float]:
    """As `risk`, of pixels (N,); among pixels of equal uncertainty the share is what chance would leave."""
    _, group = np.unique(uncertainty, return_inverse=True)
    sizes = np.concatenate([[0], np.cumsum(np.bincount(group))])
    errors = np.concatenate([[0], np.cumsum(np.bincount(group, weights=wrong))])
    kept = [(1 - share) * wrong.size for share in left_out]
    return {str(share): float(np.interp(k, sizes, errors) / k) for share, k in zip(left_out, kept, strict=True)}


def rank_correlation(scores: Sequence[float], truths: Sequence[float]) -> float | None:
    """Spearman's rank correlation of label-free scores with true ones; None of too few runs, or equal ones."""
    from scipy.stats import rankdata

    if len(scores) < LEAST_RUNS or len(set(scores)) == 1 or len(set(truths)) == 1:
        return None
    return float(np.corrcoef(rankdata(scores), rankdata(truths))[0, 1])

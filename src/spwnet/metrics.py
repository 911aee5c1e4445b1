"""Agreement of two segmentations.

Pixels are looked at once, by `contingency`; every metric is a function of the `Contingency` that comes out, and
`pooled` adds those of many frames, so that no more than one frame has to be in memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import ArrayLike, NDArray

    Ints = NDArray[np.int64]
    Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Contingency:
    """Pixels that each predicted label shares with each true label, empty cells left out.

    Attributes
    ----------
    predicted : (n_a,) int64 array
        Predicted labels that occur, ascending.
    truth : (n_b,) int64 array
        True labels that occur, ascending.
    rows, columns : (n_cells,) int64 arrays
        Index into `predicted` and `truth` of each non-empty cell, in row-major order.
    counts : (n_cells,) int64 array
        Pixels in each non-empty cell, all above 0.
    """

    predicted: Ints
    truth: Ints
    rows: Ints
    columns: Ints
    counts: Ints

    @cached_property
    def total(self) -> int:
        """Number of pixels; InputError where all of them are ignored, so no metric is defined."""
        if not self.counts.size:
            raise InputError(
                "expected at least one pixel to compare, but got none; check the label images and the values to ignore"
            )
        return int(self.counts.sum())

    @cached_property
    def predicted_sizes(self) -> Ints:
        """(n_a,) pixels of each predicted label."""
        return np.bincount(self.rows, weights=self.counts).astype(np.int64)

    @cached_property
    def truth_sizes(self) -> Ints:
        """(n_b,) pixels of each true label."""
        return np.bincount(self.columns, weights=self.counts).astype(np.int64)

    @property
    def table(self) -> Ints:
        """(n_a, n_b) dense table of the counts."""
        table = np.zeros((self.predicted.size, self.truth.size), np.int64)
        table[self.rows, self.columns] = self.counts
        return table


def contingency(predicted: ArrayLike, truth: ArrayLike, ignore: int | Iterable[int] | None = None) -> Contingency:
    """Count the pixels that each predicted label shares with each true label.

    Parameters
    ----------
    predicted, truth : int arrays of one shape
        Labels: any integers, of any shape, numbered in any way.
    ignore : int or ints, optional
        True labels whose pixels are left out.

    Returns
    -------
    Contingency
        It may be empty, for example of a frame that nobody labelled; only the metrics need pixels.

    Raises
    ------
    InputError
        If the shapes differ or the labels are no integers.

    Examples
    --------
    >>> contingency([7, 7, 9], [0, 0, 2]).table.tolist()
    [[2, 0], [0, 1]]
    """
    a, b = np.asarray(predicted), np.asarray(truth)
    if a.shape != b.shape:
        raise InputError(
            f"expected two segmentations of one shape, but got {a.shape} and {b.shape}; "
            "compare label images of the same picture at the same size"
        )
    ids_a, labels_a = _compact(a)
    ids_b, labels_b = _compact(b)
    pairs = ids_a * labels_b.size + ids_b
    if labels_a.size * labels_b.size <= 4 * pairs.size + 2**16:
        counts = np.bincount(pairs)
        cell = np.flatnonzero(counts)
        counts = counts[cell]
    else:
        cell, counts = np.unique(pairs, return_counts=True)
    rows, columns = np.divmod(cell, max(labels_b.size, 1))
    ignored = [] if ignore is None else list(ignore) if isinstance(ignore, Iterable) else [ignore]
    kept = ~np.isin(labels_b, ignored)[columns]
    return _from_cells(labels_a[rows[kept]], labels_b[columns[kept]], counts[kept])


def pooled(tables: Iterable[Contingency]) -> Contingency:
    """Add the contingencies of many frames, images or slices, label by label.

    Examples
    --------
    >>> frames = [([7, 9], [0, 2]), ([7, 7, 8], [0, 2, 2])]
    >>> pooled(contingency(a, b) for a, b in frames).table.tolist()
    [[2, 1], [0, 1], [0, 1]]
    """
    cells = [(table.predicted[table.rows], table.truth[table.columns], table.counts) for table in tables]
    none = np.zeros(0, np.int64)
    return _from_cells(*(np.concatenate(parts) for parts in zip((none,) * 3, *cells, strict=True)))


def rand(table: Contingency) -> float:
    """Rand index: the share of pixel pairs that both segmentations join or both separate (Rand 1971). Range 0…1."""
    pairs, joined, joined_a, joined_b = _pairs(table)
    return (pairs + 2 * joined - joined_a - joined_b) / pairs if pairs else 1.0


def adjusted_rand(table: Contingency) -> float:
    """Rand index adjusted for chance (Hubert & Arabie 1985): 1 for equal partitions, about 0 for random ones."""
    pairs, joined, joined_a, joined_b = _pairs(table)
    if joined == joined_a == joined_b:
        return 1.0
    expected = joined_a / pairs * joined_b
    return (joined - expected) / ((joined_a + joined_b) / 2 - expected)


def fowlkes_mallows(table: Contingency) -> float:
    """Geometric mean of pair precision and pair recall (Fowlkes & Mallows 1983). Range 0…1."""
    _, joined, joined_a, joined_b = _pairs(table)
    return float(np.sqrt(joined / joined_a) * np.sqrt(joined / joined_b)) if joined else 0.0


def homogeneity(table: Contingency) -> float:
    """1 − H(truth | predicted) / H(truth): 1 if each predicted label lies in one true label. Range 0…1."""
    entropy = _entropy(table.truth_sizes)
    given_predicted, _ = _conditional_entropies(table)
    return max(0.0, 1.0 - given_predicted / entropy) if entropy else 1.0


def completeness(table: Contingency) -> float:
    """1 − H(predicted | truth) / H(predicted): 1 if each true label lies in one predicted label. Range 0…1."""
    entropy = _entropy(table.predicted_sizes)
    _, given_truth = _conditional_entropies(table)
    return max(0.0, 1.0 - given_truth / entropy) if entropy else 1.0


def v_measure(table: Contingency) -> float:
    """Harmonic mean of homogeneity and completeness (Rosenberg & Hirschberg 2007). Range 0…1."""
    h, c = homogeneity(table), completeness(table)
    return 2 * h * c / (h + c) if h + c else 0.0


def adjusted_mutual_information(table: Contingency) -> float:
    """Mutual information adjusted for chance, arithmetic mean of the entropies.

    (I − E[I]) / ((H(predicted) + H(truth)) / 2 − E[I]), with E[I] over all pairs of partitions with the same region
    sizes (Vinh, Epps & Bailey 2010): 1 for equal partitions, about 0 for random ones.
    """
    truth_given_predicted, predicted_given_truth = _conditional_entropies(table)
    if truth_given_predicted == predicted_given_truth == 0:
        return 1.0
    if table.predicted.size == 1 or table.truth.size == 1:
        return 0.0
    entropy_a, entropy_b = _entropy(table.predicted_sizes), _entropy(table.truth_sizes)
    expected = _expected_mutual_information(table)
    return (entropy_b - truth_given_predicted - expected) / ((entropy_a + entropy_b) / 2 - expected)


def variation_of_information(table: Contingency) -> float:
    """H(predicted | truth) + H(truth | predicted) in bits (Meilă 2007): 0 for equal partitions, smaller is better."""
    return float(sum(_conditional_entropies(table)) / np.log(2))


def covering_parts(table: Contingency) -> tuple[float, int]:
    """Numerator and denominator of the covering of one annotation, to be summed over annotators and images.

    Parameters
    ----------
    table : Contingency
        Of the segmentation and one annotation.

    Returns
    -------
    (float, int)
        Σ over true regions R of |R| · max over predicted regions S of |R ∩ S| / |R ∪ S|, and Σ |R|.
    """
    union = table.predicted_sizes[table.rows] + table.truth_sizes[table.columns] - table.counts
    best = np.zeros(table.truth.size)
    np.maximum.at(best, table.columns, table.counts / union)
    return float(table.truth_sizes @ best), table.total


def segmentation_covering(
    segmentation: ArrayLike, annotations: Iterable[ArrayLike], ignore: int | Iterable[int] | None = None
) -> float:
    """Covering of several annotators' regions by a segmentation's (Arbeláez et al. 2011, section 2.1).

    Sum over annotators and regions of region size × best intersection over union, over the total size.
    Regions are sets of equal label, not split into connected parts.

    Parameters
    ----------
    segmentation : int array
    annotations : iterable of int arrays of the same shape
        One for each annotator.
    ignore : int or ints, optional
        Labels of annotations whose pixels are left out.

    Returns
    -------
    float
        Range 0…1.

    Raises
    ------
    InputError
        If there is no annotation or one without a pixel to compare, or as `contingency` does.
    """
    parts = [covering_parts(table) for table in _annotated(segmentation, annotations, ignore)]
    return sum(covered for covered, _ in parts) / sum(size for _, size in parts)


def probabilistic_rand(
    segmentation: ArrayLike, annotations: Iterable[ArrayLike], ignore: int | Iterable[int] | None = None
) -> float:
    """Rand index averaged over annotators (Unnikrishnan et al. 2007).

    Parameters and errors are those of `segmentation_covering`. Range 0…1.
    """
    return float(np.mean([rand(table) for table in _annotated(segmentation, annotations, ignore)]))


def mean_variation_of_information(
    segmentation: ArrayLike, annotations: Iterable[ArrayLike], ignore: int | Iterable[int] | None = None
) -> float:
    """Variation of information in bits averaged over annotators; smaller is better.

    Parameters and errors are those of `segmentation_covering`.
    """
    return float(np.mean([variation_of_information(table) for table in _annotated(segmentation, annotations, ignore)]))


def naming(table: Contingency) -> dict[int, int]:
    """Name each predicted class by the true class it overlaps most, the smaller one where two tie.

    Parameters
    ----------
    table : Contingency
        Of the frames to name by, void pixels ignored.

    Returns
    -------
    dict
        Predicted class → true class. A predicted class that does not occur, or on void pixels only, has no entry.
    """
    order = np.lexsort((table.columns, -table.counts, table.rows))
    _, first = np.unique(table.rows[order], return_index=True)
    best = table.truth[table.columns[order[first]]]
    return dict(zip(table.predicted.tolist(), best.tolist(), strict=True))


def mean_iou(
    table: Contingency, names: Mapping[int, int] | None = None, classes: Iterable[int] | None = None
) -> tuple[float, dict[int, float]]:
    """Intersection over union of each true class, pooled over all the pixels of a table.

    Parameters
    ----------
    table : Contingency
        Of the frames to score.
    names : mapping, optional
        Predicted class → true class, from `naming`; predicted classes without an entry are void, which is wrong for
        every true class. Without names the predicted classes are true classes already.
    classes : ints, optional
        True classes to average over; all that occur in the truth if not given.

    Returns
    -------
    mean : float
        Mean over the classes whose union is not empty.
    ious : dict
        True class → intersection over union in 0…1; NaN where the union is empty.

    Raises
    ------
    InputError
        If none of `classes` occurs, or no pixel is left to score.
    """
    classes = table.truth.tolist() if classes is None else list(classes)
    predicted = table.predicted.tolist()
    named = predicted if names is None else [names.get(label) for label in predicted]
    ious: dict[int, float] = {}
    for label in classes:
        is_named = np.array([name == label for name in named], bool)
        is_true = table.truth == label
        shared = table.counts[is_named[table.rows] & is_true[table.columns]].sum()
        union = table.predicted_sizes[is_named].sum() + table.truth_sizes[is_true].sum() - shared
        ious[int(label)] = float(shared / union) if union else float("nan")
    defined = [iou for iou in ious.values() if not np.isnan(iou)]
    if not defined:
        raise InputError(
            f"expected pixels of the classes {classes or 'of the truth'}, but got {table.truth.tolist() or 'none'}; "
            "check the class ids and the values to ignore"
        )
    return float(np.mean(defined)), ious


def score(predicted: ArrayLike, truth: ArrayLike, ignore: int | Iterable[int] | None = None) -> dict[str, float]:
    """All metrics of two segmentations; renumbering either changes none of them.

    Parameters
    ----------
    predicted, truth, ignore
        As in `contingency`.

    Returns
    -------
    dict
        Metric's name → value, in the order of `METRICS`.

    Raises
    ------
    InputError
        If no pixel is left to compare, or as `contingency` does.
    """
    return score_table(contingency(predicted, truth, ignore))


def score_table(table: Contingency) -> dict[str, float]:
    """As `score`, of a table that is there already, for example pooled over frames."""
    return {name: metric(table) for name, metric in METRICS.items()}


METRICS: dict[str, Callable[[Contingency], float]] = {
    "rand": rand,
    "adjusted_rand": adjusted_rand,
    "adjusted_mutual_information": adjusted_mutual_information,
    "homogeneity": homogeneity,
    "completeness": completeness,
    "v_measure": v_measure,
    "fowlkes_mallows": fowlkes_mallows,
    "variation_of_information": variation_of_information,
}


def _from_cells(labels_a: Ints, labels_b: Ints, counts: Ints) -> Contingency:
    """Contingency of (predicted label, true label, pixels) triplets, those of the same labels added up."""
    predicted, rows = np.unique(labels_a, return_inverse=True)
    truth, columns = np.unique(labels_b, return_inverse=True)
    cell, place = np.unique(rows * truth.size + columns, return_inverse=True)
    sums = np.zeros(cell.size, np.int64)
    np.add.at(sums, place, counts)
    return Contingency(predicted, truth, *np.divmod(cell, max(truth.size, 1)), sums)


def _compact(labels: NDArray[Any]) -> tuple[Ints, Ints]:
    """Renumber to 0 … n − 1: the flat ids and the n labels they stand for."""
    if labels.size == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    if labels.dtype.kind not in "biu":
        raise InputError(f"expected integer labels, but got {labels.dtype}; convert the label image to integers")
    if int(labels.max()) > np.iinfo(np.int64).max:
        raise InputError(f"expected labels below 2**63, but got {labels.max()}; renumber the label image")
    flat = labels.ravel().astype(np.int64)
    low, high = int(flat.min()), int(flat.max())
    if high - low > 4 * flat.size + 2**16:
        values, ids = np.unique(flat, return_inverse=True)
        return ids, values
    flat -= low
    present = np.bincount(flat) > 0
    return (np.cumsum(present) - 1)[flat], np.flatnonzero(present) + low


def _annotated(
    segmentation: ArrayLike, annotations: Iterable[ArrayLike], ignore: int | Iterable[int] | None
) -> list[Contingency]:
    tables = [contingency(segmentation, annotation, ignore) for annotation in annotations]
    if not tables:
        raise InputError("expected at least one annotation to compare with, but got none; give one for each annotator")
    return tables


def _pairs(table: Contingency) -> tuple[float, float, float, float]:
    """Ordered pairs of different pixels: all, and those joined by both, by predicted and by truth."""
    total = float(table.total)
    # In float64: the squares of large volumes overflow 64-bit integers.
    joined = [
        float(np.square(sizes, dtype=np.float64).sum() - total)
        for sizes in (table.counts, table.predicted_sizes, table.truth_sizes)
    ]
    return total * (total - 1), joined[0], joined[1], joined[2]


def _entropy(sizes: Ints) -> float:
    shares = sizes / sizes.sum()
    return float(-(shares @ np.log(shares)))


def _conditional_entropies(table: Contingency) -> tuple[float, float]:
    """H(truth | predicted) and H(predicted | truth), in nats."""
    shares = table.counts / table.total
    given_predicted = -(shares @ np.log(table.counts / table.predicted_sizes[table.rows]))
    given_truth = -(shares @ np.log(table.counts / table.truth_sizes[table.columns]))
    return float(given_predicted), float(given_truth)


def _expected_mutual_information(table: Contingency) -> float:
    """E[I] in nats over all pairs of partitions with the same region sizes (Vinh, Epps & Bailey 2010, eq. 24a)."""
    # Regions of equal size have equal terms: n pixels have at most √(2n) sizes, however many regions there are.
    fewer, more = sorted(
        (np.unique(sizes, return_counts=True) for sizes in (table.predicted_sizes, table.truth_sizes)),
        key=lambda sizes: sizes[0].size,
    )
    terms = (
        repeats * (more[1] @ _expected_terms(size, more[0], table.total)) for size, repeats in zip(*fewer, strict=True)
    )
    return float(sum(terms))


def _expected_terms(size: np.int64, others: Ints, total: int) -> Floats:
    """E[(n / N) log(n N / (a b))] for overlaps n of a region of a = `size` pixels with regions of b = `others`."""
    from scipy.special import gammaln

    # n is hypergeometric: by Bernstein's inequality P(|n − mean| > reach) < 2 exp(−45), far below rounding.
    mean = others * (size / total)
    variance = mean * (1 - np.maximum(size, others) / total)
    reach = 15 + np.sqrt(225 + 90 * variance)
    low = np.maximum(np.maximum(0, size + others - total), np.floor(mean - reach).astype(np.int64))
    high = np.minimum(np.minimum(size, others), np.ceil(mean + reach).astype(np.int64))
    lengths = high - low + 1
    starts = np.cumsum(lengths) - lengths
    n = np.arange(lengths.sum()) + np.repeat(low - starts, lengths)
    b = np.repeat(others, lengths)
    log_p = -(gammaln(n + 1) + gammaln(size - n + 1) + gammaln(b - n + 1) + gammaln(total - size - b + n + 1))
    p = np.exp(log_p - np.repeat(np.maximum.reduceat(log_p, starts), lengths))
    values = p * n * (np.log(np.maximum(n, 1)) - np.log(b) - np.log(size / total))
    expected: Floats = np.add.reduceat(values, starts) / np.add.reduceat(p, starts) / total
    return expected

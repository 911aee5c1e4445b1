"""Comparing label images with a truth, by every metric of the field."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet import metrics
from spwnet.errors import InputError
from spwnet.images import label_image, open_images

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from spwnet.images import ImageSource

logger = logging.getLogger(__name__)


def evaluate(
    predicted: Any,
    truth: Any,
    *,
    naming: Sequence[int] | None = None,
    ignore: Sequence[int] = (),
) -> dict[str, Any]:
    """Compare label images with a truth.

    Parameters
    ----------
    predicted, truth : path, glob, array, or sequence of these
        Label images. Files are paired by name, ``NAME.png`` also with ``NAME_0.png``, ``NAME_1.png`` … of several
        annotators; by order if no name fits. A warning counts those of either that are left without a partner.
    naming : sequence of int, optional
        Frame numbers on which each predicted class is named after the truth class it overlaps most; the mean
        IoU is then taken over all the other frames.
    ignore : sequence of int
        Truth labels that do not count; images without any other are left out, and named in a warning.

    Returns
    -------
    dict
        "images"; the metrics of `metrics.METRICS`, averaged over annotators, then images (so that "rand" is the
        probabilistic Rand index); "covering", pooled over all; with `naming` also "mean_iou" and "iou".

    Raises
    ------
    InputError
        If images cannot be paired, are no integers, their shapes differ, or nothing is left to compare.
    """
    ours, theirs = open_images(predicted, None), open_images(truth, None)
    tables: dict[int, list[metrics.Contingency]] = {}
    for position, others in _paired(ours, theirs):
        labels = _integers(ours, position)
        for other in others:
            annotation = _integers(theirs, other)
            if annotation.shape != labels.shape:
                raise InputError(
                    f"expected label images of one shape, but '{ours.names[position]}' has {labels.shape} and "
                    f"'{theirs.names[other]}' has {annotation.shape}; compare in the size of the input"
                )
            table = metrics.contingency(labels, annotation, ignore)
            if not table.counts.size:
                logger.warning("'%s' has no pixel that counts; it is left out", theirs.names[other])
                continue
            tables.setdefault(ours.numbers[position], []).append(table)
    if not tables:
        raise InputError("expected pixels to compare, but every one is to be ignored; check the labels to ignore")
    result: dict[str, Any] = {"images": len(tables)}
    # Over annotators first, then over images, as the field does.
    scores = [[metrics.score_table(table) for table in several] for several in tables.values()]
    for name in metrics.METRICS:
        result[name] = float(np.mean([np.mean([entry[name] for entry in several]) for several in scores]))
    parts = [metrics.covering_parts(table) for several in tables.values() for table in several]
    result["covering"] = sum(covered for covered, _ in parts) / sum(size for _, size in parts)
    if naming is not None:
        rest = sorted(set(tables) - set(naming))
        missing = sorted(set(naming) - set(tables))
        if missing or not rest or not naming:
            raise InputError(
                f"expected naming frames among the {len(tables)} that have a truth, with others left to score, but "
                + (f"frame {missing[0]} has none" if missing else f"got {len(naming)} of them")
                + f"; frames run from {min(tables)} to {max(tables)}"
            )
        names = metrics.naming(metrics.pooled([tables[number][0] for number in naming]))
        result["mean_iou"], iou = metrics.mean_iou(metrics.pooled([tables[number][0] for number in rest]), names)
        result["iou"] = {str(label): value for label, value in iou.items()}
    return result


def _integers(source: ImageSource, position: int) -> NDArray[Any]:
    labels = label_image(source, position)
    if labels.dtype.kind not in "biu":
        raise InputError(
            f"expected integer labels in '{source.names[position]}', but got {labels.dtype}; convert it to integers"
        )
    return labels


def _paired(ours: ImageSource, theirs: ImageSource) -> list[tuple[int, list[int]]]:
    """Pair label images: by name, then by name_k of several annotators, or by order if no name fits."""
    taken = set(ours.names)
    named: dict[str, list[int]] = {}
    annotated: dict[str, list[int]] = {}
    for k, other in enumerate(theirs.names):
        named.setdefault(other, []).append(k)
        head, _, tail = other.rpartition("_")
        if tail.isdecimal() and other not in taken:
            annotated.setdefault(head, []).append(k)
    found = [(position, named.get(name) or annotated.get(name, [])) for position, name in enumerate(ours.names)]
    pairs = [(position, others) for position, others in found if others]
    if not pairs and len(ours) == len(theirs):
        logger.info("no truth has the name of a predicted image: the two are paired by order")
        return [(k, [k]) for k in range(len(ours))]
    if not pairs:
        raise InputError(
            f"expected truth images of the same names as the {len(ours)} predicted ones, or as many, but got "
            f"{len(theirs)} and none named like '{ours.names[0]}'"
        )
    alone = [ours.names[position] for position, others in found if not others]
    if alone:
        logger.warning("%d of %d predicted images have no truth, '%s' first", len(alone), len(ours), alone[0])
    used = {k for _, others in pairs for k in others}
    spare = [name for k, name in enumerate(theirs.names) if k not in used]
    if spare:
        logger.warning("%d of %d truths are of no predicted image, '%s' first", len(spare), len(theirs), spare[0])
    return pairs

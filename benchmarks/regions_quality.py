"""The regions protocol: covering, probabilistic Rand index and variation of information over a family of levels.

`evaluate_set(folder, method)` is all that another benchmark needs. A method is the name of one in `METHODS`, or a
function from an image file to a `Family`, whose levels are as many, and mean the same, in every image.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

import spwnet
from benchmarks import data
from spwnet import metrics
from spwnet.superpixels import slic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

LEVELS = 40
SLIC_REGIONS = 500
FELZENSZWALB_SCALES = np.geomspace(30, 3000, 12)


@dataclass(frozen=True)
class Family:
    """Segmentations of one image: `leaves` (H, W), and for each level the region of each leaf, (levels, L)."""

    leaves: np.ndarray
    regions: np.ndarray


def ours(file: Path, **options) -> Family:
    """Our hierarchy at thresholds spread evenly over its heights' range 0…1."""
    hierarchy = spwnet.regions(file, **options)
    thresholds = np.linspace(0, 1, LEVELS + 2)[1:-1]
    return Family(hierarchy.leaves, np.stack([hierarchy.leaf_regions(hierarchy.regions_at(t)) for t in thresholds]))


def hand_made(file: Path) -> Family:
    """As `ours`, without the learned evidence."""
    return ours(file, learned=False)


def superpixels_by_linkage(file: Path) -> Family:
    """500 SLIC superpixels, neighbours merged by average linkage on mean CIELAB; levels are distances 1…80."""
    from skimage.color import rgb2lab

    from spwnet.graph import adjacent_pairs

    unit = np.asarray(Image.open(file).convert("RGB"), np.float32) / 255
    found = slic(unit, SLIC_REGIONS, rgb=True)
    flat = found.labels.ravel()
    sums = np.stack([np.bincount(flat, c) for c in rgb2lab(unit).reshape(flat.size, 3).T], axis=1)
    first, second, _ = adjacent_pairs(found.labels, found.count)
    merges, heights = _average_linkage(sums / np.bincount(flat)[:, None], first, second)
    tree = spwnet.RegionHierarchy(found.labels, merges, heights, np.zeros((found.count, 3), np.uint8))
    levels = [tree.leaf_regions(tree.regions_at(t)) for t in np.geomspace(1, 80, LEVELS)]
    return Family(found.labels, np.stack(levels))


def felzenszwalb(file: Path) -> Family:
    """Felzenszwalb's graph-based segmentation at a dozen scales, pixels being the leaves of the family."""
    from skimage.segmentation import felzenszwalb as segment

    image = np.asarray(Image.open(file).convert("RGB"))
    found = [segment(image, scale=scale, sigma=0.8, min_size=50) for scale in FELZENSZWALB_SCALES]
    cells, leaves = np.unique(np.stack(found).reshape(len(found), -1), axis=1, return_inverse=True)
    return Family(leaves.reshape(image.shape[:2]), cells)


METHODS: dict[str, Callable[[Path], Family]] = {
    "ours": ours,
    "ours, hand-made evidence alone": hand_made,
    "SLIC + average linkage": superpixels_by_linkage,
    "Felzenszwalb": felzenszwalb,
}


def evaluate_set(
    folder: Path, method: str | Callable[[Path], Family] = "ours", images: Iterable[str] | None = None
) -> dict[str, float]:
    """Score a method on a set of images with several annotators each.

    Parameters
    ----------
    folder : path
        With ``images/NAME.*`` and ``labels/NAME_k.png``, one for each annotator.
    method : str or function
        Name of one of `METHODS`, or a function from an image file to its `Family`.
    images : names, optional
        Which images; all of them if not given.

    Returns
    -------
    dict
        "covering_ods", "covering_ois", "pri_ods", "pri_ois", "vi_ods", "vi_ois", "images", and "seconds": CPU seconds
        an image. ODS is the best level for the whole set, each metric its own; OIS the best level of each image.
    """
    make = METHODS[method] if isinstance(method, str) else method
    files = {file.stem: file for file in sorted((folder / "images").iterdir())}
    chosen = list(files) if images is None else list(images)
    scores, seconds = [], 0.0
    for name in chosen:
        start = time.process_time()
        family = make(files[name])
        seconds += time.process_time() - start
        truths = [np.asarray(Image.open(file)) for file in sorted((folder / "labels").glob(f"{name}_*.png"))]
        scores.append(score_levels([metrics.contingency(family.leaves, truth) for truth in truths], family.regions))
    return {**summary(scores), "images": len(chosen), "seconds": seconds / len(chosen)}


def score_levels(tables: list[metrics.Contingency], regions: np.ndarray) -> np.ndarray:
    """Score each level of one image: (levels, 4) covered pixels, pixels, PRI and VI.

    Parameters
    ----------
    tables : list of Contingency
        Of the leaves with each annotator's labels; a level's tables follow from them without the pixels.
    regions : (levels, L) int array
        Region of each leaf.
    """
    rows = []
    for region in regions:
        merged = [metrics.pooled([replace(t, predicted=region[t.predicted])]) for t in tables]
        covered, total = np.sum([metrics.covering_parts(table) for table in merged], axis=0)
        rand = np.mean([metrics.rand(table) for table in merged])
        information = np.mean([metrics.variation_of_information(table) for table in merged])
        rows.append((covered, total, rand, information))
    return np.array(rows)


def summary(scores: list[np.ndarray]) -> dict[str, float]:
    """ODS and OIS of the scores of all images, each (levels, 4) as from `score_levels`."""
    covered, total, rand, information = np.moveaxis(np.stack(scores), -1, 0)
    return {
        "covering_ods": float((covered.sum(0) / total.sum(0)).max()),
        "covering_ois": float(covered.max(1).sum() / total[:, 0].sum()),
        "pri_ods": float(rand.mean(0).max()),
        "pri_ois": float(rand.max(1).mean()),
        "vi_ods": float(information.mean(0).min()),
        "vi_ois": float(information.min(1).mean()),
    }


def _average_linkage(points: np.ndarray, first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Merge adjacent points by average linkage: (n − 1, 2) merges and rising heights."""
    import heapq

    count = len(points)
    # A distance is the mean over all pairs of leaves of two regions, adjacent or not.
    between = np.sqrt(np.square(points[:, None] - points[None]).sum(-1))
    members = {k: [k] for k in range(count)}
    neighbours: dict[int, set[int]] = {k: set() for k in range(count)}
    heap = []
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        neighbours[a].add(b)
        neighbours[b].add(a)
        heap.append((between[a, b], a, b))
    heapq.heapify(heap)
    merges, heights = [], []
    while heap:
        height, a, b = heapq.heappop(heap)
        if a not in members or b not in members:
            continue
        new = count + len(merges)
        merges.append((a, b))
        heights.append(height)
        members[new] = members.pop(a) + members.pop(b)
        neighbours[new] = (neighbours.pop(a) | neighbours.pop(b)) - {a, b}
        for other in neighbours[new]:
            neighbours[other] -= {a, b}
            neighbours[other].add(new)
            heapq.heappush(heap, (between[np.ix_(members[new], members[other])].mean(), other, new))
    return np.array(merges, np.int32).reshape(-1, 2), np.maximum.accumulate(heights)


def main() -> None:
    folder = data.folder("bsds_val")
    if folder is None:
        print("skipped: no folder 'bsds_val' in SPWNET_DATA")
        return
    print("| method | covering | PRI | VI | CPU s an image |")
    print("| --- | --- | --- | --- | --- |")
    for name in METHODS:
        s = evaluate_set(folder, name)
        pairs = " | ".join(f"{s[f'{m}_ods']:.3f} / {s[f'{m}_ois']:.3f}" for m in ("covering", "pri", "vi"))
        print(f"| {name} | {pairs} | {s['seconds']:.1f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())

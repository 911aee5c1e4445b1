"""What the labels mean: colours of the classes, cleaning, areas."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from spwnet.errors import InputError
from spwnet.geometry import half_neighbourhood, shifted

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from spwnet.config import LabelSettings

    Labels = NDArray[np.integer[Any]]

Id = TypeVar("Id", bound="np.integer[Any]")

MOST_CLASSES = 2**24
"""Tables of classes are as long as their largest id."""

TIE = 1e-6
"""Difference of a blur from a half that arithmetic can make."""

# The first eight are Okabe & Ito's. The others are found one by one, each as far as can be from all before it for the
# viewer who tells it apart worst; tests/test_classes.py does it again. Embedded, so that no rounding can change them.
_COLOURS = np.frombuffer(
    bytes.fromhex(
        "0072b2 d55e00 cc79a7 f0e442 56b4e9 e69f00 009e73 000000 "
        "8800ff 663311 ccffaa 112288 554455 00ffdd 88bb66 bb55ff "
        "aa5544 441155 8811cc 99ff77 003322 aa0088 ddaaaa bbccee "
        "dd00bb aa3300 886677 cccc99 9999ff dd7744 1100cc 7777dd "
        "ddff11 885555 445588 44dd55 770033 ff6688 ee99cc 551144 "
        "ffcccc 663366 66cc22 331166 bb5533 6622aa 442200 8844ff "
        "ee77cc bbdd88 99ffff 8844cc 448855 446611 883333 ee5566 "
        "ff3399 88ccff eebb55 88ffbb 553399 5500aa 888811 0000ff"
    ),
    dtype=np.uint8,
).reshape(-1, 3)


def palette(n: int) -> NDArray[np.uint8]:
    """Return the colours of classes 0 … n−1, chosen for the colour-blind as well.

    The first eight are the colours of [1]_, ordered so that neighbours in number contrast. The next 56 are a greedy
    farthest-point selection in CIELAB: each is the candidate whose smallest distance to those before it is largest,
    where the distance is the smallest under normal vision, protanopia, deuteranopia and tritanopia, simulated as in
    [2]_. Nobody tells more than that apart; later classes repeat the 64 colours, lighter and darker in turn.

    Parameters
    ----------
    n : int
        Number of classes.

    Returns
    -------
    ndarray of uint8, shape (n, 3)
        sRGB. The colour of a class does not depend on `n`.

    References
    ----------
    .. [1] M. Okabe, K. Ito. *Color Universal Design*, 2008. https://jfly.uni-koeln.de/color/
    .. [2] G. M. Machado, M. M. Oliveira, L. A. F. Fernandes. A physiologically-based model for simulation of color
       vision deficiency. *IEEE Trans. Vis. Comput. Graph.* 15(6), 2009.
    """
    turn, entry = np.divmod(np.arange(n), len(_COLOURS))
    # Multiples of the golden ratio spread over an interval for any number of turns.
    share = np.where(turn == 0, 0.0, 0.2 + 0.5 * ((turn + 1) // 2 * 0.6180339887 % 1))
    end = np.where(turn % 2, 255.0, 0.0)
    mixed = _COLOURS[entry] * (1 - share)[:, None] + (end * share)[:, None]
    colours: NDArray[np.uint8] = np.rint(mixed).astype(np.uint8)
    return colours


def hexadecimal(colour: Iterable[int]) -> str:
    """Return a colour of three bytes as "#rrggbb"."""
    return "#" + bytes(colour).hex()


@dataclass(frozen=True)
class Legend:
    """What the classes 0 … n − 1 look like and are called.

    Attributes
    ----------
    colours : (n, 3) uint8 array
        sRGB.
    names : dict of {int: str}
        Of those that have one.
    background : int or None
        The class that is not drawn.
    """

    colours: NDArray[np.uint8]
    names: dict[int, str]
    background: int | None = None

    def name(self, k: int) -> str:
        """Return what a class is called: "class 3" unless it has a name."""
        return self.names.get(k, f"class {k}")


def legend(labels: LabelSettings, n_classes: int) -> Legend:
    """Return names and colours of classes: those of the settings, else of the palette."""
    colours = palette(n_classes)
    for one in labels.named:
        if one.colour is not None:
            colours[one.id] = list(bytes.fromhex(one.colour[1:]))
    background = next((one.id for one in labels.named if one.background), None)
    return Legend(colours, {one.id: one.name for one in labels.named}, background)


def clean(labels: NDArray[Id], settings: LabelSettings) -> NDArray[Id]:
    """Merge classes and clean them: smooth borders, fill holes, reassign and remove small pieces, keep the largest.

    Each step comes for all classes, or class by class in the order of their ids, before the next begins.

    Parameters
    ----------
    labels : ndarray of int, shape (H, W) or (D, H, W)
        Class ids.
    settings : LabelSettings
        What to do; all is off by default.

    Returns
    -------
    ndarray of int, shape of `labels`
        Class ids.

    Raises
    ------
    InputError
        If `labels` is not an image or a volume of class ids.
    """
    labels = merge_classes(labels, settings.merge)
    named = sorted(settings.named, key=lambda one: one.id)
    for one in named:
        labels = smooth_borders(labels, one.id, one.smooth)
    labels = fill_holes(labels, settings.fill_holes)
    for one in named:
        labels = fill_holes(labels, one.fill_holes, one.id)
    for rule in settings.reassign:
        labels = reassign_small(labels, rule.source, rule.smaller_than, rule.to)
    labels = remove_small(labels, settings.remove_objects)
    for one in named:
        if one.remove_to is None:
            labels = remove_small(labels, one.remove_objects, one.id)
        else:
            labels = reassign_small(labels, one.id, one.remove_objects, one.remove_to)
        if one.keep_largest:
            labels = keep_largest(labels, one.id, one.remove_to)
    return labels


def smooth_borders(labels: NDArray[Id], k: int, sigma: float) -> NDArray[Id]:
    """Smooth the border of a class: it is where a Gaussian blur of it is above a half.

    Pixels that it loses become the class of the nearest pixel that was none of it.

    Parameters
    ----------
    labels : ndarray of int, shape (H, W) or (D, H, W)
        Class ids.
    k : int
        The class.
    sigma : float
        Standard deviation of the Gaussian in pixels; 0 changes nothing.

    Returns
    -------
    ndarray of int, shape of `labels`
        Class ids.

    Raises
    ------
    InputError
        If `labels` is not an image or a volume of class ids.
    """
    from scipy import ndimage

    ids = _checked(labels)
    inside = ids == k
    if sigma == 0 or inside.all() or not inside.any():
        return labels
    blurred = ndimage.gaussian_filter(inside.astype(np.float32), sigma, mode="nearest")
    # Where it is as much one as the other, all stays.
    gained, lost = ~inside & (blurred > 0.5 + TIE), inside & (blurred < 0.5 - TIE)
    found = np.where(gained, k, ids)
    if lost.any():
        places = ndimage.distance_transform_edt(inside, return_distances=False, return_indices=True)
        found[lost] = ids[tuple(axis[lost] for axis in places)]
    return found.astype(labels.dtype)


def merge_classes(labels: NDArray[Id], groups: Sequence[Sequence[int]]) -> NDArray[Id]:
    """Make each group of classes one class, of the smallest id in the group.

    Parameters
    ----------
    labels : ndarray of int, shape (H, W) or (D, H, W)
        Class ids.
    groups : sequence of sequences of int
        Class ids that are one; no class in two groups. Classes that do not occur in `labels` do no harm.

    Returns
    -------
    ndarray of int, shape of `labels`
        Class ids.

    Raises
    ------
    InputError
        If `labels` is not an image or a volume of class ids.
    """
    ids = _checked(labels)
    table = np.arange(max([ids.max(), *(k for group in groups for k in group)]) + 1)
    for group in filter(None, groups):
        table[list(group)] = min(group)
    return table[ids].astype(labels.dtype)


def fill_holes(labels: NDArray[Id], smaller_than: int, k: int | None = None) -> NDArray[Id]:
    """Give small holes in a class to that class.

    A hole in class k is a connected piece of pixels of other classes, one or several, that touches nothing but k, not
    even at a corner, and does not reach the border of the image. Filled until there is none left.

    Parameters
    ----------
    labels : ndarray of int, shape (H, W) or (D, H, W)
        Class ids.
    smaller_than : int
        Holes of fewer pixels than this are filled.
    k : int, optional
        Only holes in this class.

    Returns
    -------
    ndarray of int, shape of `labels`
        Class ids.

    Raises
    ------
    InputError
        If `labels` is not an image or a volume of class ids.
    """
    ids = _checked(labels)
    if smaller_than <= 1:
        return labels
    pieces = _connected_pieces(ids)
    classes = pieces.classes.copy()
    open_ = pieces.at_border | (pieces.sizes >= smaller_than)
    if open_.all():
        return labels
    changed = True
    while changed:
        changed = False
        for around in np.unique(classes) if k is None else [k]:
            hole = _holes(pieces, classes, int(around), open_, smaller_than)
            if hole.any():
                classes[hole] = around
                changed = True
    return classes[pieces.image].astype(labels.dtype)


def reassign_small(labels: NDArray[Id], source: int, smaller_than: int, to: int) -> NDArray[Id]:
    """Give small connected pieces of one class to another class.

    Parameters
    ----------
    labels : ndarray of int, shape (H, W) or (D, H, W)
        Class ids.
    source : int
        Class whose pieces (full connectivity) are looked at.
    smaller_than : int
        Pieces of fewer pixels than this change their class.
    to : int
        The class they become.

    Returns
    -------
    ndarray of int, shape of `labels`
        Class ids.

    Raises
    ------
    InputError
        If `labels` is not an image or a volume of class ids, or of a type that does not hold `to`.
    """
    ids = _checked(labels)
    pieces, sizes = _pieces_of(ids, source)
    return _given(labels, ids, pieces, sizes < smaller_than, to)


def keep_largest(labels: NDArray[Id], k: int, to: int | None = None) -> NDArray[Id]:
    """Keep only the largest connected piece of a class.

    Parameters
    ----------
    labels : ndarray of int, shape (H, W) or (D, H, W)
        Class ids.
    k : int
        The class; of several pieces alike in size the first in scan order stays.
    to : int, optional
        The class that the other pieces become; the class that each touches most if not given.

    Returns
    -------
    ndarray of int, shape of `labels`
        Class ids.

    Raises
    ------
    InputError
        If `labels` is not an image or a volume of class ids, or of a type that does not hold `to`.
    """
    ids = _checked(labels)
    pieces, sizes = _pieces_of(ids, k)
    if len(sizes) < 3:
        return labels
    others = np.ones(len(sizes), bool)
    others[1 + sizes[1:].argmax()] = False
    if to is not None:
        return _given(labels, ids, pieces, others, to)
    others[0] = False
    whole = _connected_pieces(ids)
    doomed = np.zeros(len(whole.sizes), bool)
    doomed[whole.image[others[pieces]]] = True
    return _without(labels, whole, doomed, np.zeros(ids.max() + 1, np.intp))


def _pieces_of(ids: NDArray[np.intp], k: int) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """Connected pieces of one class, numbered from 1 in an image of them, and how many pixels each number has."""
    from scipy import ndimage

    pieces, _ = ndimage.label(ids == k, structure=np.ones((3,) * ids.ndim))
    return pieces, np.bincount(pieces.ravel())


def _given(
    labels: NDArray[Id], ids: NDArray[np.intp], pieces: NDArray[np.int32], which: NDArray[np.bool_], to: int
) -> NDArray[Id]:
    """Give some pieces to a class; number 0 is no piece."""
    if to > np.iinfo(labels.dtype).max:
        raise InputError(f"expected labels of a type that holds class {to}, but got {labels.dtype}; convert them first")
    which = which.copy()
    which[0] = False
    return np.where(which[pieces], to, ids).astype(labels.dtype)


def remove_small(labels: NDArray[Id], smaller_than: int, k: int | None = None) -> NDArray[Id]:
    """Give small connected pieces of any class, or of one, to the class they touch most.

    The smallest piece goes first and becomes one with the pieces of its new class around it, until no piece is
    smaller than the limit or only one is left. How much two pieces touch is the number of pixel sides (3-D: faces)
    they share; between classes that are touched alike the smaller id wins.

    Parameters
    ----------
    labels : ndarray of int, shape (H, W) or (D, H, W)
        Class ids.
    smaller_than : int
        Pieces (full connectivity) of fewer pixels than this are removed.
    k : int, optional
        Only pieces of this class.

    Returns
    -------
    ndarray of int, shape of `labels`
        Class ids.

    Raises
    ------
    InputError
        If `labels` is not an image or a volume of class ids.
    """
    ids = _checked(labels)
    if smaller_than <= 1:
        return labels
    pieces = _connected_pieces(ids)
    limits = np.zeros(ids.max() + 1, np.intp)
    limits[slice(None) if k is None else slice(k, k + 1)] = smaller_than
    return _without(labels, pieces, pieces.sizes < limits[pieces.classes], limits)


def areas(labels: Labels, n_classes: int) -> list[int]:
    """Count the pixels of each class.

    Parameters
    ----------
    labels : ndarray of int, shape (H, W) or (D, H, W)
        Class ids.
    n_classes : int
        Number of classes; ids are 0 … n_classes − 1.

    Returns
    -------
    list of int
        Pixels of class 0 … n_classes − 1.

    Raises
    ------
    InputError
        If `labels` is not an image or a volume of class ids, or has an id of `n_classes` or more.
    """
    counts: list[int] = np.bincount(_checked(labels).ravel(), minlength=n_classes).tolist()
    if len(counts) > n_classes:
        raise InputError(
            f"expected class ids below {n_classes}, but the labels hold class {len(counts) - 1}; "
            "give the number of classes they were made with"
        )
    return counts


def _checked(labels: Labels) -> NDArray[np.intp]:
    """Class ids as signed integers, wide enough for any arithmetic."""
    if labels.dtype.kind not in "iu":
        raise InputError(f"expected whole numbers as class ids, but got {labels.dtype}; convert them to integers")
    if labels.ndim not in (2, 3) or labels.size == 0:
        raise InputError(
            f"expected labels of shape (H, W) or (D, H, W), none of them 0, but got {labels.shape}; "
            "give one image or volume at a time"
        )
    if labels.min() < 0:
        raise InputError(f"expected class ids of at least 0, but got {labels.min()}; give unlabelled pixels a class")
    if labels.max() >= MOST_CLASSES:
        raise InputError(
            f"expected class ids below {MOST_CLASSES:,}, but got {labels.max()}; give unlabelled pixels a class, and "
            "number the others from 0"
        )
    ids = labels.astype(np.intp)
    return ids


@dataclass(frozen=True)
class _Pieces:
    """P connected pieces (full connectivity) of one class each, and the E pairs of them that touch."""

    image: NDArray[np.intp]
    """(*spatial) piece of each pixel, 0 … P−1 in scan order."""
    sizes: NDArray[np.intp]
    """(P,) pixels."""
    classes: NDArray[np.intp]
    """(P,) class ids."""
    at_border: NDArray[np.bool_]
    """(P,) whether the piece reaches the border of the image."""
    pairs: NDArray[np.intp]
    """(E, 2) pieces that touch, the smaller number first."""
    shared: NDArray[np.intp]
    """(E,) pixel sides shared; 0 if they meet at corners only."""


def _connected_pieces(ids: NDArray[np.intp]) -> _Pieces:
    from scipy.sparse import coo_array
    from skimage import measure

    image: NDArray[np.intp] = measure.label(ids, background=-1, connectivity=ids.ndim) - 1  # type: ignore[no-untyped-call]
    sizes = np.bincount(image.ravel())
    classes = np.empty_like(sizes)
    classes[image.ravel()] = ids.ravel()
    at_border = np.zeros(len(sizes), bool)
    for axis, length in enumerate(ids.shape):
        if length > 1 or ids.size == 1:  # a volume of one slice is as good as an image
            at_border[image.take([0, -1], axis)] = True
    lower, higher, sides = [], [], []
    for offset in half_neighbourhood(ids.ndim):
        here, there = (image[part] for part in shifted(image.shape, offset))
        differ = here != there
        one, other = here[differ], there[differ]
        lower.append(np.minimum(one, other))
        higher.append(np.maximum(one, other))
        sides.append(np.full(len(one), np.abs(offset).sum() == 1, np.intp))
    entries = (np.concatenate(sides), (np.concatenate(lower), np.concatenate(higher)))
    # Going through rows sums what belongs to one pair, in linear time, and keeps pairs of sum 0.
    touching = coo_array(entries, shape=(len(sizes), len(sizes))).tocsr().tocoo()
    pairs = np.stack([touching.row, touching.col], axis=1).astype(np.intp)
    return _Pieces(image, sizes, classes, at_border, pairs, touching.data)


def _holes(
    pieces: _Pieces, classes: NDArray[np.intp], k: int, open_: NDArray[np.bool_], smaller_than: int
) -> NDArray[np.bool_]:
    """Mark the pieces that make up small holes in class k, given the present classes of the pieces."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(classes)
    other = classes != k
    one, two = pieces.pairs[other[pieces.pairs].all(axis=1)].T
    _, group = connected_components(coo_array((np.ones(len(one)), (one, two)), shape=(n, n)), directed=False)
    sizes = np.bincount(group, weights=pieces.sizes)
    sizes[group[open_]] = smaller_than
    holes: NDArray[np.bool_] = other & (sizes[group] < smaller_than)
    return holes


def _without(labels: NDArray[Id], pieces: _Pieces, doomed: NDArray[np.bool_], limits: NDArray[np.intp]) -> NDArray[Id]:
    """Labels without some pieces, nor any that stays below the limit of its class by what is merged into it."""
    if not doomed.any():
        return labels
    owner = _absorb(pieces, doomed, limits)
    while (owner[owner] != owner).any():
        owner = owner[owner]
    return pieces.classes[owner][pieces.image].astype(labels.dtype)


def _absorb(pieces: _Pieces, doomed: NDArray[np.bool_], limits: NDArray[np.intp]) -> NDArray[np.intp]:
    """Merge pieces, the smallest first, until all reach the limits: (P,) piece that each went into."""
    sizes: list[int] = pieces.sizes.tolist()
    classes: list[int] = pieces.classes.tolist()
    owner = np.arange(len(sizes))
    touching: list[dict[int, int]] = [{} for _ in sizes]
    for (one, two), sides in zip(pieces.pairs.tolist(), pieces.shared.tolist(), strict=True):
        touching[one][two] = touching[two][one] = sides
    queue = [(sizes[piece], int(piece)) for piece in np.flatnonzero(doomed)]
    heapify(queue)
    while queue:
        size, piece = heappop(queue)
        if size != sizes[piece] or not touching[piece]:
            continue  # it grew or went into another since, or it is all there is
        border: defaultdict[int, int] = defaultdict(int)
        for neighbour, sides in touching[piece].items():
            border[classes[neighbour]] += sides
        winner = max(border, key=lambda k: (border[k], -k))
        group = [neighbour for neighbour in touching[piece] if classes[neighbour] == winner]
        into = max(group, key=lambda p: (len(touching[p]), -p))  # the one with most neighbours: least to move
        for part in [piece, *group]:
            if part != into:
                _move(touching, part, into)
                owner[part] = into
                sizes[into] += sizes[part]
                sizes[part] = 0
        if sizes[into] < limits[classes[into]]:
            heappush(queue, (sizes[into], into))
    return owner


def _move(touching: list[dict[int, int]], part: int, into: int) -> None:
    """Hand the neighbours of one piece over to another."""
    for neighbour, sides in touching[part].items():
        del touching[neighbour][part]
        if neighbour != into:
            total = touching[into].get(neighbour, 0) + sides
            touching[into][neighbour] = touching[neighbour][into] = total
    touching[part] = {}

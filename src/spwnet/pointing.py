"""Classes by name from where they are: points, or scribbles, on the images that a run shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from spwnet.errors import SettingsError, SpwnetError, did_you_mean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from spwnet.gallery import Gallery
    from spwnet.naming import ClassMap


def from_points(
    classes: ClassMap, labels: Sequence[NDArray[np.integer[Any]]], points: Mapping[str, Sequence[tuple[int, ...]]]
) -> ClassMap:
    """Name and merge classes by a few points, or pixels of scribbles, of each.

    Each of the finest classes goes to the name that most of its points have. Those without a point go where their
    nearest relative in the tree went, nearest by where the tree divides the two.

    Parameters
    ----------
    classes : ClassMap
        Of the run; only its tree counts.
    labels : sequence of (H, W) or (D, H, W) int arrays
        Finest class of each pixel of some images.
    points : mapping of name to sequence of (image, row, column) or (image, slice, row, column)
        Positions in `labels`.

    Returns
    -------
    ClassMap
        One class for each name, with ids in the order given.

    Raises
    ------
    SettingsError
        If there is no point, one lies outside its image, or no class is left to a name.
    """
    votes = np.zeros((len(points), classes.n_finest), np.int64)
    for row, (name, places) in enumerate(points.items()):
        for image, *place in places:
            inside = 0 <= image < len(labels) and len(place) == labels[image].ndim
            if not inside or not all(0 <= at < size for at, size in zip(place, labels[image].shape, strict=True)):
                raise SettingsError(
                    f"expected points of '{name}' within the {len(labels)} images, but got {image, *place}"
                )
            votes[row, labels[image][tuple(place)]] += 1
    if not votes.any():
        raise SettingsError("expected at least one point for a name, but got none; mark a place of each class")
    owner = np.where(votes.any(0), votes.argmax(0), -1)
    lost = [name for row, name in enumerate(points) if row not in owner]
    if lost:
        raise SettingsError(
            f"expected places of '{lost[0]}' that no other name has more points in, but there is none: the run tells "
            "it from nothing else there; mark other places, or train with more classes (`codebook.finest`)"
        )
    return classes.given_to(list(points), _inherited(owner, classes.parents))


def read_points(path: str | Path, gallery: Gallery) -> dict[str, list[tuple[int, int, int]]]:
    """Read a table of points: columns ``image``, ``row``, ``column`` and ``name``, the first line says so.

    Parameters
    ----------
    path : path
        CSV. `image` is the name of a training image, or its number from 0; row and column are in the image as stored.
    gallery : Gallery
        Of the run.

    Returns
    -------
    dict of {str: list of (image, row, column)}
        In the gallery's pictures, for `from_points`.

    Raises
    ------
    SettingsError, InputError
        If the table cannot be read, or a point is in none of the pictures.
    """
    import csv

    names = [exhibit.name for exhibit in gallery.exhibits]
    points: dict[str, list[tuple[int, int, int]]] = {}
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
        for number, row in enumerate(rows, start=2):
            image, place = row["image"].strip(), (int(row["row"]), int(row["column"]))
            index = names.index(image) if image in names else int(image) if image.isdecimal() else -1
            if not 0 <= index < len(names):
                raise SettingsError(
                    f"expected one of the training images {', '.join(names)}, or its number, in line {number} of "
                    f"{path}, but got {image!r}.{did_you_mean(image, names)}"
                )
            y, x = gallery.exhibits[index].locate(*place)
            points.setdefault(row["name"].strip(), []).append((index, int(y), int(x)))
    except (OSError, KeyError, AttributeError, TypeError, ValueError, csv.Error) as error:
        if isinstance(error, SpwnetError):
            raise
        raise SettingsError(
            f"expected a table of points at {path}, with the columns image, row, column and name, but: {error!r}"
        ) from error
    return points


def points_of_scribbles(
    scribbles: Mapping[str, NDArray[np.integer[Any]]], gallery: Gallery, names: Sequence[str] = ()
) -> dict[str, list[tuple[int, int, int]]]:
    """Turn label images with a few pixels marked into points.

    Parameters
    ----------
    scribbles : mapping of training image to (H, W) int array
        In the size of the stored image, or of the gallery's picture; 0 is not marked.
    gallery : Gallery
        Of the run.
    names : sequence of str
        What 1, 2, 3 … stand for; "class 1" and so on if not given.

    Returns
    -------
    dict of {str: list of (image, row, column)}
        In the gallery's pictures, for `from_points`.

    Raises
    ------
    SettingsError
        If there is no such training image, or a scribble is of another size, or has no name.
    """
    places = {exhibit.name: index for index, exhibit in enumerate(gallery.exhibits)}
    marks: dict[int, list[tuple[int, int, int]]] = {}
    for image, marked in scribbles.items():
        if image not in places:
            raise SettingsError(
                f"expected scribbles on the training images {', '.join(places)}, but got '{image}'."
                + did_you_mean(image, places)
            )
        exhibit = gallery.exhibits[places[image]]
        (_, bottom), (_, right) = exhibit.region
        fits = marked.shape in (exhibit.labels.shape, exhibit.stored)
        if exhibit.stored is None and marked.ndim == 2:
            # Galleries of before do not say how much of the image lies beyond what they show of it.
            fits = fits or (marked.shape[0] >= bottom and marked.shape[1] >= right)
        if not fits:
            raise SettingsError(
                f"expected scribbles on '{image}' in its size, but got {marked.shape}; draw on the image as stored"
            )
        rows, columns = np.nonzero(marked)
        values = marked[rows, columns]
        if marked.shape != exhibit.labels.shape:
            shown = np.ones(len(rows), bool)
            for at, (start, stop) in zip((rows, columns), exhibit.region, strict=True):
                shown &= (at >= start) & (at < stop)
            values = values[shown]
            rows, columns = exhibit.locate(rows[shown], columns[shown])
        for value, row, column in zip(values.tolist(), rows.tolist(), columns.tolist(), strict=True):
            marks.setdefault(value, []).append((places[image], row, column))
    if min(marks, default=1) < 0:
        raise SettingsError(f"expected scribbles of 0 (not marked), 1, 2 and so on, but got {min(marks)}")
    if names and max(marks, default=0) > len(names):
        raise SettingsError(
            f"expected scribbles of 1 to {len(names)}, as many as there are names, but got {max(marks)}"
        )
    return {names[value - 1] if names else f"class {value}": marks[value] for value in sorted(marks)}


def _inherited(owner: NDArray[np.intp], parents: Sequence[int] | None) -> NDArray[np.intp]:
    """Fill owners that are −1 from the nearest relatives in the tree; without one, all from the commonest owner."""
    owner = owner.copy()
    known = owner >= 0
    if parents is None:
        owner[~known] = np.bincount(owner[known]).argmax()
        return owner
    # The tree merges class k into parents[k], from the last class down: who of each group has a name, so far.
    members = [[k] for k in range(len(parents))]
    votes = [{int(name): 1} if name >= 0 else {} for name in owner]
    for k in range(len(parents) - 1, 0, -1):
        to = int(parents[k])
        for group, other in ((k, to), (to, k)):
            if not votes[group] and votes[other]:
                # Of names that as many have, the first.
                owner[members[group]] = max(sorted(votes[other]), key=votes[other].__getitem__)
        for name, count in votes[k].items():
            votes[to][name] = votes[to].get(name, 0) + count
        members[to] += members[k]
    return owner

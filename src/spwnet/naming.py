"""Classes by name: merged, split along the tree, named, coloured, cleaned; and the small file that keeps them."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from spwnet.classes import hexadecimal, palette
from spwnet.codebook import coarser, is_tree
from spwnet.config import LabelSettings, NamedClass, check_named
from spwnet.errors import SettingsError, SpwnetError, did_you_mean
from spwnet.storage import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from spwnet.gallery import Gallery

FORMAT = 1
CLEANING = ("smooth", "fill_holes", "remove_objects", "remove_to", "keep_largest")
"""What says how a class is cleaned."""
MOST_BYTES = 2**22
"""Size of a file of classes, at most."""


@dataclass(frozen=True)
class ClassMap:
    """The classes of a run by name, each of some of its finest classes; immutable: its methods return a changed copy.

    Attributes
    ----------
    classes : tuple of NamedClass
        By id.
    n_finest : int
        Number of finest classes: each is a member of one class.
    parents : (n_finest,) tuple of int or None
        Tree along which classes split, as in `Codebook`; without one they split into their members.
    model : str or None
        Fingerprint of the model whose classes they are.
    """

    classes: tuple[NamedClass, ...]
    n_finest: int
    parents: tuple[int, ...] | None = None
    model: str | None = None

    @staticmethod
    def of_tree(
        n_finest: int, n_classes: int, parents: Sequence[int] | None = None, model: str | None = None
    ) -> ClassMap:
        """Return the classes of a tree at some number of them, each called by its number.

        Raises
        ------
        SettingsError
            If there are not so many classes; without a tree, if it is another number than `n_finest`.
        """
        table = np.arange(n_finest, dtype=np.int32)
        if parents is not None:
            table = coarser(np.asarray(parents), n_classes)
        elif n_classes != n_finest:
            raise SettingsError(
                f"expected {n_finest} classes, because there is no tree to merge them along, but got {n_classes}"
            )
        colours = _colours(n_finest)
        classes = tuple(
            NamedClass(id=k, name=f"class {k}", colour=colours[k], members=tuple(np.flatnonzero(table == k).tolist()))
            for k in range(n_classes)
        )
        return ClassMap(classes, n_finest, None if parents is None else tuple(map(int, parents)), model)

    def table(self) -> NDArray[np.int32]:
        """Return the id of the class that each of the finest classes belongs to, (n_finest,)."""
        table = np.empty(self.n_finest, np.int32)
        for one in self.classes:
            table[list(one.members)] = one.id
        return table

    def labels(self, base: LabelSettings | None = None) -> LabelSettings:
        """Return settings of labels that give these classes; the rest of `base` stays.

        Raises
        ------
        SettingsError
            If a class is none that can be.
        """
        values = (base or LabelSettings()).model_dump() | {"merge": (), "reassign": (), "classes": "auto"}
        return LabelSettings.model_validate(values | {"named": [_class(one.model_dump()) for one in self.classes]})

    def find(self, which: int | str) -> NamedClass:
        """Return a class by its id or its name.

        Raises
        ------
        SettingsError
            If there is none.
        """
        for one in self.classes:
            if which in (one.id, one.name) or (isinstance(which, str) and which == str(one.id)):
                return one
        names = [one.name for one in self.classes]
        known = ", ".join(f"{one.id} ({one.name})" for one in self.classes[:12]) + (" …" if len(names) > 12 else "")
        raise SettingsError(f"expected one of the classes {known}, but got {which!r}.{did_you_mean(str(which), names)}")

    def merge(self, which: Iterable[int | str], name: str | None = None, colour: str | None = None) -> ClassMap:
        """Make several classes one, of the smallest id among them.

        Parameters
        ----------
        which : ids or names
        name, colour : str, optional
            If not given, of the first of them that is called by more than its number, or of the smallest id.

        Raises
        ------
        SettingsError
            If there is no such class, another is called so, or name or colour is none.
        """
        group = sorted({one.id: one for one in map(self.find, which)}.values(), key=lambda one: one.id)
        if not group:
            raise SettingsError("expected at least one class to merge, but got none")
        called = next((one for one in group if not _is_default(one)), group[0])
        whole = _class(
            called.model_dump()
            | {
                "id": group[0].id,
                "name": name or called.name,
                "colour": colour or called.colour,
                "background": group[0].background,
                "members": tuple(sorted(k for one in group for k in one.members)),
            }
        )
        gone = {one.id for one in group}
        rest = [one for one in self.classes if one.id not in gone]
        return self._with([*rest, whole], dict.fromkeys(gone, whole.id))

    def split(self, which: int | str) -> ClassMap:
        """Divide a class in two where the tree divides it last merged; without a tree, into its members.

        The part with the smallest finest class keeps id, name and colour; what splits off is called by its number.

        Raises
        ------
        SettingsError
            If there is no such class, or it is one of the finest.
        """
        one = self.find(which)
        if len(one.members) == 1:
            raise SettingsError(
                f"expected a class of several of the finest classes to split, but '{one.name}' is one of them; train "
                "with a higher `codebook.finest` for more"
            )
        if self.parents is None:
            groups = [[k] for k in one.members]
        else:
            parts = {k: {k} for k in one.members}
            for k in range(self.n_finest - 1, 0, -1):
                if k in parts:
                    to = self.parents[k]
                    if len(parts) == 2 and to in parts:
                        break
                    parts.setdefault(to, set()).update(parts.pop(k))
            groups = sorted([k for k in one.members if k in part] for part in parts.values())
        classes = [other for other in self.classes if other is not one]
        classes.append(one.model_copy(update={"members": tuple(groups[0])}))
        colours = _colours(self.n_finest)
        for group in groups[1:]:
            taken = {other.id for other in classes}
            # The least of its finest classes, which is its own number in the tree unless merging gave that away.
            k = group[0] if group[0] not in taken else next(k for k in range(self.n_finest + 1) if k not in taken)
            names = {other.name for other in classes}
            name = next(text for text in (f"class {k}", *(f"class {k}.{n}" for n in range(1, 10**4)))
                        if text not in names)  # fmt: skip
            classes.append(NamedClass(id=k, name=name, colour=colours[group[0]], members=tuple(group)))
        return self._with(classes)

    def change(self, which: int | str, **values: Any) -> ClassMap:
        """Change name, colour or cleaning of a class.

        Parameters
        ----------
        which : id or name
        **values
            "name", "colour", "smooth", "fill_holes", "remove_objects", "remove_to", "keep_largest", see `NamedClass`.

        Raises
        ------
        SettingsError
            If there is no such class, or a value is not allowed.
        """
        one = self.find(which)
        for name in values:
            if name not in ("name", "colour", *CLEANING):
                raise SettingsError(
                    f"expected one of name, colour, {', '.join(CLEANING)}, but got '{name}'"
                    + did_you_mean(name, ("name", "colour", *CLEANING))
                )
        changed = _class(one.model_dump() | values)
        return self._with([changed if other is one else other for other in self.classes])

    def mark_background(self, which: int | str | None) -> ClassMap:
        """Make a class the background, which is class 0; what was 0 takes its id. None unmarks it.

        Classes that are called by their number are called by the new one, and the background so; it is called by its
        number again when it no longer is.

        Raises
        ------
        SettingsError
            If there is no such class.
        """
        plain = []
        for one in self.classes:
            name = f"class {one.id}" if one.background and one.name == "background" else one.name
            plain.append(one.model_copy(update={"background": False, "name": name}))
        if which is None:
            return self._with(plain)
        k = self.find(which).id
        swapped = {k: 0, 0: k}
        classes = []
        for one in plain:
            values: dict[str, Any] = {"id": swapped.get(one.id, one.id), "background": one.id == k}
            if _is_default(one) and one.id in swapped:
                values["name"] = "background" if one.id == k else f"class {values['id']}"
            classes.append(one.model_copy(update=values))
        return self._with(classes, swapped)

    def _with(self, classes: Sequence[NamedClass], moved: Mapping[int, int] | None = None) -> ClassMap:
        """Return other classes of the same run, `moved` telling where the ids of the old ones went."""
        kept = []
        for one in classes:
            if moved and one.remove_to is not None:
                to = moved.get(one.remove_to, one.remove_to)
                one = one.model_copy(update={"remove_to": None if to == one.id else to})
            kept.append(one)
        kept.sort(key=lambda one: one.id)
        try:
            check_named(kept)
        except ValueError as error:
            raise SettingsError(str(error)) from None
        return replace(self, classes=tuple(kept))

    def to_toml(self) -> str:
        """Return the content of a file of classes."""
        lines = [
            "# Classes of an SP-WNet run: which of its finest classes belong together, and what they are called.",
            f"version = {FORMAT}",
            f"finest = {self.n_finest}",
        ]
        if self.model is not None:
            lines.append(f"model = {_toml(self.model)}")
        for one in self.classes:
            lines += ["", "[[classes]]"]
            values = one.model_dump(mode="json", exclude_defaults=True)
            lines += [f"{key} = {_toml(value)}" for key, value in values.items()]
        return "\n".join(lines) + "\n"

    def save(self, path: str | Path) -> Path:
        """Write a file of classes, whole or not at all.

        Raises
        ------
        OutputError
            If it cannot be written.
        """
        atomic_write(path, self.to_toml().encode())
        return Path(path)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the classes as plain values, which `from_json` takes."""
        return [one.model_dump(mode="json") for one in self.classes]

    def from_json(self, classes: Any) -> ClassMap:
        """Return other classes of the same run, from plain values that came from outside.

        Raises
        ------
        SettingsError
            If they are no classes, or do not have each of the finest classes once.
        """
        if not isinstance(classes, list) or not 1 <= len(classes) <= self.n_finest:
            raise SettingsError(f"expected a list of 1 to {self.n_finest} classes, but got {str(classes)[:80]}")
        found = self._with([_class(values) for values in classes])
        found.check()
        return found

    def check(self) -> None:
        """Check that each of the finest classes is in one class.

        Raises
        ------
        SettingsError
        """
        members = {k for one in self.classes for k in one.members}
        odd = sorted(members ^ set(range(self.n_finest)))
        if odd:
            came = f"class {odd[0]} is in none" if odd[0] < self.n_finest else f"there is no class {odd[0]}"
            raise SettingsError(f"expected each of the {self.n_finest} finest classes in one class, but {came}")


def read_classes(
    path: str | Path, n_finest: int | None = None, parents: Sequence[int] | None = None, model: str | None = None
) -> ClassMap:
    """Read a file of classes.

    Parameters
    ----------
    path : path
    n_finest, parents, model : optional
        Of the run that they are for; the file must be of the same model then.

    Raises
    ------
    SettingsError
        If the file is missing, is no file of classes, of a newer format, or of another model.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"it is larger than {MOST_BYTES // 2**20} MiB")
        values = tomllib.loads(text.decode("utf-8-sig"))
    except FileNotFoundError:
        raise SettingsError(
            f"expected a file of classes at {path}, but there is none; make one by `spwnet view RUN` or "
            "`spwnet classes RUN merge …`"
        ) from None
    except (ValueError, RecursionError, OSError) as error:
        raise SettingsError(f"expected a readable file of classes at {path}, but: {error}") from error
    version, finest, entries = (values.get(key) for key in ("version", "finest", "classes"))
    if isinstance(version, int) and version > FORMAT:
        raise SettingsError(
            f"expected a file of classes of format {FORMAT} at {path}, but got format {version}; update spwnet"
        )
    if not isinstance(version, int) or not isinstance(finest, int) or not isinstance(entries, list) or not entries:
        raise SettingsError(
            f"expected a file of classes with `version`, `finest` and [[classes]] at {path}, but one of them is missing"
        )
    if not 1 <= finest <= 65_536 or (n_finest is not None and finest != n_finest):
        raise SettingsError(
            f"expected classes made of {n_finest or 'up to 65536'} finest classes at {path}, but got {finest}; take "
            "the file of this run"
        )
    theirs = values.get("model")
    if theirs is not None and not (isinstance(theirs, str) and re.fullmatch("[0-9a-f]+", theirs)):
        raise SettingsError(f"expected the fingerprint of a model in hexadecimal digits at {path}, but got {theirs!r}")
    if model is not None and theirs is not None and theirs != model:
        raise SettingsError(
            f"expected classes of this model at {path}, but they were made for another one, whose classes mean "
            "something else; make them anew for this run"
        )
    if parents is not None and not is_tree(np.asarray(parents)):
        raise SettingsError("expected a tree of classes, but got none")
    empty = ClassMap((), finest, None if parents is None else tuple(map(int, parents)), model or theirs)
    try:
        return empty.from_json(entries)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


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
    owner = _inherited(owner, classes.parents)
    colours = _colours(len(points))
    return classes._with(
        [
            _class({"id": k, "name": name, "colour": colours[k], "members": np.flatnonzero(owner == k).tolist()})
            for k, name in enumerate(points)
        ]
    )


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


def _class(values: Any) -> NamedClass:
    try:
        return NamedClass.model_validate(values)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in item["loc"])
        text = item["msg"].removeprefix("Value error, ")
        raise SettingsError(
            f"expected a class, but '{where}': {text[0].lower() + text[1:]} (got {str(item['input'])[:80]!r})"
        ) from None


def _is_default(one: NamedClass) -> bool:
    return re.fullmatch(r"class \d+(\.\d+)?", one.name) is not None


def _colours(n: int) -> list[str]:
    return [hexadecimal(colour) for colour in palette(n)]


def _toml(value: Any) -> str:
    """Return a value as TOML: its basic strings, numbers and arrays are JSON's."""
    return json.dumps(value, ensure_ascii=False)

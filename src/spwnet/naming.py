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
from spwnet.errors import SettingsError, did_you_mean
from spwnet.storage import atomic_write

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray


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

    def given_to(self, names: Sequence[str], owner: NDArray[np.intp]) -> ClassMap:
        """Return one class for each name, in their order; `owner` is the place of the name of each finest class."""
        colours = _colours(len(names))
        return self._with(
            [
                _class({"id": k, "name": name, "colour": colours[k], "members": np.flatnonzero(owner == k).tolist()})
                for k, name in enumerate(names)
            ]
        )

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

"""Classes by name while somebody edits them: which are selected, and what can be undone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spwnet.errors import SettingsError
from spwnet.naming import ClassMap

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MOST_UNDONE = 100
"""Changes that can be undone."""


class Editing:
    """The classes of a model by name, a selection of them, and their history.

    Parameters
    ----------
    classes : ClassMap
    on_change : callable
        Called after each change of classes or selection.

    Attributes
    ----------
    classes : ClassMap
    selected : tuple of int
        Ids, in the order in which they were selected.
    """

    def __init__(self, classes: ClassMap, on_change: Callable[[], None] = lambda: None) -> None:
        self.classes = classes
        self.selected: tuple[int, ...] = ()
        self._on_change = on_change
        self._before: list[ClassMap] = []
        self._after: list[ClassMap] = []

    @property
    def can_undo(self) -> bool:
        """Whether there is a change to undo."""
        return bool(self._before)

    @property
    def can_redo(self) -> bool:
        """Whether a change was undone."""
        return bool(self._after)

    def replace(self, classes: ClassMap, selected: Iterable[int] = ()) -> None:
        """Put other classes in place of these; what is selected is kept where it is still there, or given."""
        if classes != self.classes:
            self._before = [*self._before, self.classes][-MOST_UNDONE:]
            self._after = []
        self._set(classes, [*selected] or self.selected)

    def undo(self) -> None:
        """Take the last change back.

        Raises
        ------
        SettingsError
            If there is none.
        """
        if not self._before:
            raise SettingsError("expected a change of the classes to undo, but there is none; merge or name some first")
        self._after.append(self.classes)
        self._set(self._before.pop(), self.selected)

    def redo(self) -> None:
        """Make the change again that was undone last.

        Raises
        ------
        SettingsError
            If there is none.
        """
        if not self._after:
            raise SettingsError("expected a change of the classes that was undone, but there is none; undo one first")
        self._before.append(self.classes)
        self._set(self._after.pop(), self.selected)

    def _set(self, classes: ClassMap, selected: Iterable[int]) -> None:
        self.classes = classes
        there = {one.id for one in classes.classes}
        self.selected = tuple(k for k in dict.fromkeys(selected) if k in there)
        self._on_change()

    def select(self, ids: Iterable[int]) -> None:
        """Select these classes and no other."""
        self._set(self.classes, ids)

    def toggle(self, k: int) -> None:
        """Add a class to what is selected, or take it away."""
        self.select([one for one in self.selected if one != k] if k in self.selected else [*self.selected, k])

    def cut(self, n_classes: int) -> None:
        """Begin anew with a number of classes, by the tree of the model."""
        base = self.classes
        self.replace(ClassMap.of_tree(base.n_finest, n_classes, base.parents, base.model))

    def merge(self, name: str | None = None) -> None:
        """Make what is selected one class.

        Raises
        ------
        SettingsError
            If less than two are selected.
        """
        if len(self.selected) < 2:
            raise SettingsError(
                f"expected at least two selected classes to merge, but {len(self.selected)} is; click on others"
            )
        self.replace(self.classes.merge(self.selected, name or None), [min(self.selected)])

    def split(self) -> None:
        """Divide each selected class in two along the tree; the parts are selected.

        Raises
        ------
        SettingsError
            If none is selected, or one cannot be divided.
        """
        classes, before = self.classes, {one.id for one in self.classes.classes}
        for k in self._some("split"):
            classes = classes.split(k)
        self.replace(classes, [*self.selected, *sorted({one.id for one in classes.classes} - before)])

    def change(self, **values: Any) -> None:
        """Change name, colour or cleaning of the selected classes; a name is for one alone.

        Raises
        ------
        SettingsError
            If none is selected, several are to have one name, or a value is not allowed.
        """
        chosen = self._some("change")
        if "name" in values and len(chosen) > 1:
            raise SettingsError(
                f"expected one selected class to name, but {len(chosen)} are; merge them first, or select one"
            )
        classes = self.classes
        for k in chosen:
            classes = classes.change(k, **values)
        self.replace(classes)

    def mark_background(self) -> None:
        """Make the selected class the background, or no longer so if it is.

        Raises
        ------
        SettingsError
            If not exactly one is selected.
        """
        chosen = self._some("be the background")
        if len(chosen) > 1:
            raise SettingsError(f"expected one selected class as background, but {len(chosen)} are; select one")
        one = self.classes.find(chosen[0])
        self.replace(self.classes.mark_background(None if one.background else one.id), [0])

    def _some(self, what: str) -> tuple[int, ...]:
        if not self.selected:
            raise SettingsError(
                f"expected selected classes to {what}, but none is; click on one, in the list or the image"
            )
        return self.selected

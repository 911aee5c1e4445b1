"""The command `spwnet classes`: merge, split, name, colour and clean the classes of a run, in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from spwnet.cli.progress import say
from spwnet.cli.reading import read_names
from spwnet.errors import SettingsError

if TYPE_CHECKING:
    from spwnet.gallery import Gallery
    from spwnet.naming import ClassMap

CHANGES = Group("What a class is to be", sort_key=1)
Action = Literal["show", "cut", "merge", "split", "change", "background", "points", "scribbles", "undo", "reset"]


def classes(
    run: Annotated[Path, Parameter(help="Run directory of a trained network.")],
    action: Annotated[
        Action,
        Parameter(
            help="show the classes; cut the tree at a number of them; merge some, split one, change one, make one "
            "the background; name them by points (a table image,row,column,name) or scribbles (label images); undo "
            "the last of these, or reset to the classes that training suggests."
        ),
    ] = "show",
    which: Annotated[
        str | None,
        Parameter(
            help='Classes by id or name, "0,1,ground"; or the number, the table or the folder that the action takes.'
        ),
    ] = None,
    /,
    *,
    name: Annotated[str | None, Parameter(help="Name; of scribbles several, in order.", group=CHANGES)] = None,
    colour: Annotated[str | None, Parameter(help='Colour, "#0072b2".', group=CHANGES)] = None,
    smooth: Annotated[float | None, Parameter(help="Smooth its borders by so many pixels.", group=CHANGES)] = None,
    fill_holes: Annotated[int | None, Parameter(help="Fill holes in it of fewer pixels.", group=CHANGES)] = None,
    remove_objects: Annotated[int | None, Parameter(help="Remove pieces of it of fewer pixels.", group=CHANGES)] = None,
    remove_to: Annotated[
        str | None,
        Parameter(help="Class that removed pieces become, not the one that each touches most.", group=CHANGES),
    ] = None,
    keep_largest: Annotated[bool | None, Parameter(help="Keep only its largest piece.", group=CHANGES)] = None,
) -> None:
    """Merge, split, name, colour and clean the classes of a run, for `spwnet segment --classes RUN/classes.toml`."""
    from spwnet.gallery import read_gallery
    from spwnet.runs import Run, load

    values: dict[str, Any] = {
        "name": name, "colour": colour, "smooth": smooth, "fill_holes": fill_holes, "remove_objects": remove_objects,
        "remove_to": remove_to, "keep_largest": keep_largest,
    }  # fmt: skip
    values = {key: value for key, value in values.items() if value is not None}
    allowed = {"merge": ("name", "colour"), "change": tuple(values), "scribbles": ("name",), "split": ()}
    odd = [key for key in values if key not in allowed.get(action, ())]
    if odd:
        raise SettingsError(
            f"expected no --{odd[0].replace('_', '-')} with '{action}', but got one; use `spwnet classes {run} change`"
        )
    if which is not None and action in ("show", "undo", "reset"):
        raise SettingsError(f"expected nothing after '{action}', but got {which!r}; leave it out")
    # Nothing is worked out by the network here.
    directory, model = Run(run), load(run, device="cpu")
    if action == "undo":
        if not directory.undo_classes():
            raise SettingsError(f"expected a change of the classes of {run} to undo, but there is none")
        say("undone")
    before = directory.class_map(model)
    gallery = read_gallery(directory.gallery)
    if remove_to is not None:
        values["remove_to"] = before.find(remove_to).id
    after = before
    if action == "reset":
        after = model.class_map()
    elif action not in ("show", "undo"):
        after = _changed(before, gallery, action, _needed(which, action), values)
    if after != before:
        directory.save_classes(after)
    _show(after, gallery)
    if directory.classes.exists():
        say(f"{directory.classes}")


def _needed(which: str | None, action: str) -> str:
    if which is None:
        wanted = {"cut": "a number of classes", "points": "a table of points", "scribbles": "label images"}
        raise SettingsError(f"expected {wanted.get(action, 'classes by id or name')} for '{action}', but got none")
    return which


def _changed(before: ClassMap, gallery: Gallery, action: Action, which: str, values: dict[str, Any]) -> ClassMap:
    """Return the classes after an action."""
    from spwnet.naming import ClassMap
    from spwnet.pointing import from_points, points_of_scribbles, read_points

    if action == "cut":
        if not which.isdecimal():
            raise SettingsError(f"expected a number of classes for 'cut', but got {which!r}")
        return ClassMap.of_tree(before.n_finest, int(which), before.parents, before.model)
    if action in ("points", "scribbles"):
        labels = [exhibit.labels for exhibit in gallery.exhibits]
        if action == "points":
            return from_points(before, labels, read_points(which, gallery))
        from spwnet.images import label_image, open_images

        source = open_images(which, None)
        marked = {name: label_image(source, k) for k, name in enumerate(source.names)}
        names = [str(part) for part in read_names(values.get("name"))]
        return from_points(before, labels, points_of_scribbles(marked, gallery, names))
    group = read_names(which)
    if action == "merge":
        return before.merge(group, **values)
    if len(group) != 1:
        raise SettingsError(f"expected one class for '{action}', but got {which!r}")
    if action == "split":
        return before.split(group[0])
    if action == "background":
        return before.mark_background(group[0])
    if not values:
        raise SettingsError("expected something to change, --name, --colour, --smooth or others, but got nothing")
    return before.change(group[0], **values)


def _show(found: ClassMap, gallery: Gallery) -> None:
    """Print a table of classes: id, share, colour, members and name."""
    from spwnet.naming import CLEANING

    pixels = [entry["pixels"] for entry in gallery.classes]
    total = max(sum(pixels), 1)
    say("id     area  colour   finest  name")
    for one in found.classes:
        share = sum(pixels[k] for k in one.members) / total
        cleaned = {key: getattr(one, key) for key in CLEANING}
        notes = ", ".join(
            key if value is True else f"{key} {value}"
            for key, value in cleaned.items()
            if value not in (None, 0, False)
        )
        mark = " (background)" if one.background else ""
        say(
            f"{one.id:<3} {share:>7.1%}  {one.colour or '':<7}  {len(one.members):>6}  {one.name}{mark}"
            + (f": {notes}" if notes else "")
        )

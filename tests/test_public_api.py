"""What users build on, in Python and on the command line, stands in `tests/data` and changes only on purpose."""

from __future__ import annotations

import inspect
import re
import types
from difflib import unified_diff
from pathlib import Path
from typing import Annotated, Literal, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

import spwnet
from spwnet.cli import app
from spwnet.presets import PRESETS

DATA = Path(__file__).parent / "data"
UPDATE = ".venv/bin/python -m tests.test_public_api"


def describe_api():
    """Every public name with its signature, members of classes below it."""
    lines = []
    for name in sorted(spwnet.__all__):
        lines += describe(name, getattr(spwnet, name))
    return "\n".join([*lines, "", "presets: " + ", ".join(sorted(PRESETS)), ""])


def describe(name, value):
    if not inspect.isclass(value):
        return [f"{name}{signature(value)}" if callable(value) else f"{name}: {type(value).__name__}"]
    bases = [base.__name__ for base in value.__bases__ if base is not object and base.__name__[0] != "_"]
    head = f"class {name}" + (f"({', '.join(bases)})" if bases else "")
    if issubclass(value, BaseModel):
        return [head, *(f"    {line}" for line in describe_settings(value))]
    # Members that come from elsewhere, such as those of ValueError, are not ours to freeze.
    ours = [one for one in reversed(value.__mro__) if one.__module__.startswith("spwnet")]
    members = {key: member for one in ours for key, member in vars(one).items() if not key.startswith("_")}
    fields = {key: note for one in ours for key, note in vars(one).get("__annotations__", {}).items()}
    own_init = any("__init__" in vars(one) for one in ours)
    made = [f"__init__{signature(value.__init__)}"] if own_init and not is_protocol(value) else []
    lines = [*made, *(f"{key}: {note}" for key, note in sorted(fields.items()) if not key.startswith("_"))]
    for key, member in sorted(members.items()):
        if isinstance(member, property):
            lines.append(f"{key}: {signature(member.fget).rpartition(' -> ')[2]} (property)")
        elif isinstance(member, classmethod | staticmethod):
            lines.append(f"{key}{signature(member.__func__)} ({type(member).__name__})")
        elif callable(member):
            lines.append(f"{key}{signature(member)}")
    return [head, *(f"    {line}" for line in lines)]


def is_protocol(value):
    return getattr(value, "_is_protocol", False)


def describe_settings(section, prefix=""):
    """Every setting with what it takes; defaults may become better ones."""
    for name, field in section.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            yield from describe_settings(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}: {spell(field.annotation)}"
            for one in get_args(field.annotation):
                if inspect.isclass(one) and issubclass(one, BaseModel):
                    yield from describe_settings(one, f"{prefix}{name}[].")


class Words(str):
    """Text that stands without quotes where Python would write an object."""

    def __repr__(self):
        return str(self)


def signature(function):
    """As it is written, but for defaults that are objects."""
    found = inspect.signature(function)
    parameters = [
        one.replace(
            annotation=spelled(one.annotation),
            default=one.default if one.default is one.empty or is_plain(one.default) else Words("…"),
        )
        for one in found.parameters.values()
    ]
    return str(found.replace(parameters=parameters, return_annotation=spelled(found.return_annotation)))


def spelled(annotation):
    return Words(annotation) if isinstance(annotation, str) else annotation


def is_plain(value):
    return value is None or isinstance(value, bool | int | float | str | tuple)


def describe_commands():
    """Every command with its arguments and flags."""
    lines = []
    for command in sorted(name for name in app if not name.startswith("-")):
        lines.append(f"spwnet {command}")
        for one in app[command].assemble_argument_collection():
            if one.names == ("*",):
                continue
            kind = spell(one.hint, optional=False)
            lines.append(f"    {', '.join(one.names)}: {kind}{', required' if one.required else ''}")
    return "\n".join([*lines, ""])


def spell(hint, *, optional=True):
    """Return a type in the words of this file, the same for every version of Python."""
    arguments = get_args(hint)
    if get_origin(hint) is Annotated:
        return spell(arguments[0], optional=optional)
    if get_origin(hint) in (types.UnionType, Union):
        # An option that is not given is None.
        return " | ".join(spell(one) for one in arguments if optional or one is not type(None))
    if get_origin(hint) is Literal:
        return " | ".join(map(repr, arguments))
    if arguments:
        inside = ", ".join("..." if one is Ellipsis else spell(one) for one in arguments)
        return f"{get_origin(hint).__name__}[{inside}]"
    return "None" if hint is type(None) else hint.__name__


LISTINGS = {"public_api.txt": describe_api, "command_line.txt": describe_commands}


@pytest.mark.parametrize("name", LISTINGS)
def test_nothing_public_changes_unwittingly(name):
    frozen, now = (DATA / name).read_text(encoding="utf-8"), LISTINGS[name]()
    changes = "\n".join(unified_diff(frozen.splitlines(), now.splitlines(), "frozen", "now", lineterm="", n=1))
    assert frozen == now, (
        f"what users build on has changed:\n{changes}\nIf that is meant, keep to the section on versions in "
        f"CONTRIBUTING.md, add a line to CHANGELOG.md, and write it down by `{UPDATE}`."
    )


def test_public_names_are_there():
    assert dir(spwnet) == sorted(spwnet.__all__)
    assert set(spwnet.__all__) == set(spwnet._HOME)
    assert len(set(spwnet.__all__)) == len(spwnet.__all__)
    assert all(getattr(spwnet, name) is not None for name in spwnet.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = spwnet.nothing


FUNCTIONS = sorted(name for name in spwnet.__all__ if inspect.isfunction(getattr(spwnet, name)))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstrings_of_functions_are_whole(name):
    text, found = inspect.getdoc(getattr(spwnet, name)), inspect.signature(getattr(spwnet, name))
    headings = re.findall(r"^(\w+)\n-+$", text, re.M)
    assert [one for one in headings if one != "Examples"] == ["Parameters", "Returns", "Raises"]
    (section,) = re.findall(r"^Parameters\n-+\n(.*?)\n\nReturns\n", text, re.M | re.S)
    entries = [line.partition(" : ")[0] for line in section.splitlines() if not line.startswith(" ")]
    assert set(found.parameters) <= {word.strip("* ") for entry in entries for word in entry.split(",")}


def write():
    for name, listing in LISTINGS.items():
        (DATA / name).write_text(listing(), encoding="utf-8")


if __name__ == "__main__":
    write()

"""Pages of the reference that are made from the program itself, so that they cannot go stale; no Sphinx in here."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import BaseModel


def commands() -> str:
    """Return the reference of all commands, as Markdown: what `--help` shows."""
    from spwnet.cli import app

    text = app.generate_docs(output_format="markdown")
    _, *parts = re.split(r"^(?=## spwnet )", text, flags=re.MULTILINE)
    return "\n".join(part.strip() + "\n" for part in parts)


def settings() -> str:
    """Return every setting with its default and what it may be, as Markdown."""
    from spwnet.config import Settings

    alone, sections = [], []
    for name, field in Settings.model_fields.items():
        inner = field.annotation
        if _is_section(inner):
            sections += [f"## {name}", "", _text(inner.__doc__), "", *_entries(inner, f"{name}.")]
        else:
            alone += _entry(name, field)
    return "\n".join([*alone, *sections])


def presets() -> str:
    """Return what each preset sets, as Markdown."""
    from spwnet.presets import PRESETS, flat

    lines = []
    for name, values in PRESETS.items():
        lines += [f"`{name}`"]
        changes = [f"`{key} = {_value(value)}`" for key, value in flat(values).items()]
        lines += [f": {', '.join(changes) if changes else 'the defaults above.'}", ""]
    return "\n".join(lines)


def formats() -> str:
    """Return a table of the format numbers that files carry, as Markdown."""
    from spwnet.config import SETTINGS_VERSION
    from spwnet.gallery import FORMAT as GALLERY
    from spwnet.hierarchy import HIERARCHY_FORMAT
    from spwnet.naming import FORMAT as CLASSES
    from spwnet.runs import RUN_FORMAT

    rows = [
        ("`run.json`", "`format`", RUN_FORMAT),
        ("settings, in `run.json` and TOML files", "`version`", SETTINGS_VERSION),
        ("`classes.toml`", "`version`", CLASSES),
        ("`gallery/`", "`format` in `gallery.json`", GALLERY),
        ("hierarchy of regions, `NAME.npz`", "`format` in its description", HIERARCHY_FORMAT),
    ]
    lines = ["| file | where the number stands | format |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {file} | {where} | {number} |" for file, where, number in rows)]) + "\n"


def named_class() -> str:
    """Return what a class of ``classes.toml`` may have, as Markdown."""
    from spwnet.config import NamedClass

    return "\n".join(_entries(NamedClass, ""))


PAGES = {
    "commands": commands,
    "settings": settings,
    "presets": presets,
    "formats": formats,
    "classes": named_class,
}


def write(folder: Path) -> None:
    """Write all of them to a folder, and leave those alone that are there and the same."""
    folder.mkdir(exist_ok=True)
    for name, make in PAGES.items():
        path, text = folder / f"{name}.md", make()
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _is_section(annotation: Any) -> bool:
    from pydantic import BaseModel

    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _entries(section: type[BaseModel], prefix: str) -> list[str]:
    return [line for name, field in section.model_fields.items() for line in _entry(prefix + name, field)]


def _entry(name: str, field: Any) -> list[str]:
    default = field.get_default(call_default_factory=True)
    choices = [value for value in _literals(field.annotation) if value != default]
    others = f" Also {', '.join(f'`{_value(value)}`' for value in choices)}." if choices else ""
    shown = name if field.is_required() else f"{name} = {_value(default)}"
    return [f"`{shown}`", f": {_text(field.description)}{others}", ""]


def _literals(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for part in get_args(annotation) for value in _literals(part)]


def _value(value: Any) -> str:
    return json.dumps(value).replace("null", '"none"')


def _text(text: str | None) -> str:
    return " ".join((text or "").split())

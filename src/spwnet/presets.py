"""Settings from a preset, a TOML file over it, and single values over both."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from spwnet.config import Section, Settings
from spwnet.errors import SettingsError, did_you_mean

UNKNOWN_KEY = "extra_forbidden"

PUBLISHED_NETWORK = {
    "classes": 32,
    "ch_mul": 64,
    "n_blocks": 4,
    "evidence": False,
    "reduction": 1,
    "final_norm": False,
}

# The published merges ({0, 1, 3} and {0, 6, 13, 25}) name classes of one trained network each: no preset can hold them.
PRESETS: dict[str, dict[str, Any]] = {
    "default": {},
    "instant": {"codebook": {"evidence": "handmade"}},
    "published-cheetah": {
        "seed": 84,
        "images": {"margin": 10, "scale": 1 / 3, "unsharp_radius": 5.0, "unsharp_amount": 1.0, "normalise": "range"},
        "patches": {"crop": None, "schedule": ((64, 64, 9), (64, 96, 6), (96, 64, 6), (96, 96, 4))},
        "superpixels": {"count": 12_000, "compactness": 10.0, "sigma": 1.0},
        "model": PUBLISHED_NETWORK,
        "losses": {
            "image": 0.5,
            "patches": 1.0,
            "cut": 0.0,
            "similarity": 0.1,
            "target": "own",
            "continuity": 0.1,
            "tau_continuity": 1.0,
        },
        "training": {"epochs": 15, "batches": 8, "learning_rate": 1e-3, "schedule": "constant", "weight_decay": 0.0},
        "labels": {"mode": "argmax_of_mean", "fill_holes": 100},
    },
    "published-hanyu": {
        "seed": 0,
        "images": {"margin": 0, "scale": 1 / 4, "unsharp_radius": 50.0, "unsharp_amount": 4.0, "normalise": "range"},
        "patches": {
            "crop": None,
            "schedule": ((64, 64, 16), (64, 128, 8), (128, 64, 8), (128, 128, 4)),
            "rows": (None, -50),
            "columns": (100, None),
        },
        "superpixels": {"count": 12_000, "compactness": 10.0, "sigma": 1.0},
        "model": PUBLISHED_NETWORK,
        "losses": {
            "image": 0.0,
            "patches": 1.0,
            "cut": 0.0,
            "similarity": 0.1,
            "target": "own",
            "continuity": 0.1,
            "tau_continuity": 0.0,
        },
        "training": {"epochs": 10, "batches": 8, "learning_rate": 1e-3, "schedule": "constant", "weight_decay": 0.0},
        "labels": {"mode": "argmax_of_mean", "remove_objects": 200},
    },
}


def make_settings(
    preset: str = "default",
    file: str | Path | None = None,
    overrides: dict[str, Any] | None = None,
) -> Settings:
    """Build settings from a preset, a TOML file over it, and single values over both.

    Parameters
    ----------
    preset : str
        Name of an entry of `PRESETS`.
    file : path, optional
        TOML file with any of the settings, in tables named like the sections.
    overrides : dict, optional
        Nested (``{"model": {"classes": 8}}``) or dotted (``{"model.classes": 8}``) values.

    Returns
    -------
    Settings

    Raises
    ------
    SettingsError
        If the preset or a setting is unknown (the nearest name is suggested), a value is out of
        range, or the file cannot be read.
    """
    if preset not in PRESETS:
        raise SettingsError(
            f"expected one of the presets {', '.join(PRESETS)}, but got {preset!r}.{did_you_mean(preset, PRESETS)}"
        )
    values = PRESETS[preset]
    for layer in (read_toml(file) if file is not None else {}, nested(overrides or {})):
        values = merged(values, layer)
    return parse_settings(values)


def read_toml(file: str | Path) -> dict[str, Any]:
    """Read a TOML settings file.

    Raises
    ------
    SettingsError
        If the file is missing or not valid TOML.
    """
    path = Path(file)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise SettingsError(f"expected a TOML settings file at {path}, but there is no such file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, OSError) as error:
        raise SettingsError(f"expected a readable TOML settings file at {path}, but: {error}") from error


def parse_settings(values: dict[str, Any]) -> Settings:
    """Validate nested values into `Settings`, with messages for people.

    Raises
    ------
    SettingsError
        Naming the setting, what was expected and what came.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise SettingsError(_readable(error)) from None


def setting_names(section: type[BaseModel] = Settings, prefix: str = "") -> dict[str, str]:
    """Return {dotted name: description} of every setting, in order of declaration."""
    names: dict[str, str] = {}
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            names.update(setting_names(inner, f"{prefix}{name}."))
        else:
            names[prefix + name] = " ".join((field.description or "").split())
    return names


def _readable(error: ValidationError) -> str:
    lines = []
    # One error for each branch of a union, which are alternatives.
    demands: dict[tuple[str, str], list[str]] = {}
    for item in error.errors(include_url=False):
        name = _name(item["loc"], unknown=item["type"] == UNKNOWN_KEY)
        if item["type"] == UNKNOWN_KEY:
            hint = did_you_mean(name, setting_names()) or did_you_mean(name, Settings.model_fields)
            lines.append(f"unknown setting '{name}'.{hint or ' `spwnet info --settings` lists all settings.'}")
        elif item["type"] == "value_error":
            where = f"setting '{name}': " if name else ""
            lines.append(where + item["msg"].removeprefix("Value error, "))
        else:
            text = item["msg"][0].lower() + item["msg"][1:]
            demands.setdefault((name, repr(item["input"])), []).append(text)
    for (name, came), (first, *others) in demands.items():
        text = " or ".join([first, *(other.removeprefix("input should be ") for other in others)])
        lines.append(f"setting '{name}': {text}, but got {came}")
    return "\n".join(dict.fromkeys(lines))


def _name(location: tuple[int | str, ...], *, unknown: bool) -> str:
    """Dotted name of a setting; pydantic puts in the branch of a union, which means nothing to users."""
    known = {name for section in Section.__subclasses__() for name in section.model_fields}
    parts = [str(part) for part in location if isinstance(part, int) or part in known]
    if unknown and location[-1] not in known:
        parts.append(str(location[-1]))
    return ".".join(parts)


def nested(values: dict[str, Any]) -> dict[str, Any]:
    """Turn dotted names into nested tables: {"a.b": 1} → {"a": {"b": 1}}."""
    tables: dict[str, Any] = {}
    for name, value in values.items():
        *sections, key = name.split(".")
        inner: dict[str, Any] = {key: value}
        for section in reversed(sections):
            inner = {section: inner}
        tables = merged(tables, inner)
    return tables


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn nested tables into dotted names, the inverse of `nested`."""
    names: dict[str, Any] = {}
    for key, value in values.items():
        names |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return names


EITHER = {"schedule": "sides", "sides": "schedule", "count": "size", "size": "count"}
"""Settings that say the same in two ways: whoever sets one over a preset means it instead of the other."""


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Lay nested tables over others."""
    result = {key: value for key, value in base.items() if EITHER.get(key) not in over or key in over}
    for key, value in over.items():
        old = result.get(key)
        result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result

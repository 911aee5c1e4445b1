"""What users write into the panel: settings, names, and which images to train on."""

from __future__ import annotations

import re
import tomllib
from typing import TYPE_CHECKING, Any

from spwnet.errors import InputError, SettingsError
from spwnet.presets import make_settings

if TYPE_CHECKING:
    from pathlib import Path

    from spwnet.config import Settings
    from spwnet.napari.inputs import LayerInput


def read_settings(preset: str, text: str = "", file: str | Path | None = None) -> Settings:
    """Make settings of a preset, a TOML file over it, and "training.epochs = 2; seed = 1" over both.

    Raises
    ------
    SettingsError
        If they cannot be read.
    """
    try:
        overrides = tomllib.loads("\n".join(text.split(";")))
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(
            f"expected settings like 'training.epochs = 2; seed = 1', but got {text!r}: {error}"
        ) from error
    return make_settings(preset, file, overrides)


def read_names(text: str) -> list[str]:
    """Read names apart by commas.

    Raises
    ------
    SettingsError
        If there are none, or one comes twice.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    twice = [name for name in names if names.count(name) > 1]
    if twice or not names:
        came = f"got '{twice[0]}' twice" if twice else "got none"
        raise SettingsError(f"expected names of classes apart by commas, 'matrix, fibre, pore', but {came}")
    return names


def chosen_frames(text: str, given: LayerInput, viewer: Any) -> list[int] | str | None:
    """Read which images or slices to train on.

    Parameters
    ----------
    text : str
        Nothing, for some spread evenly; "auto" for some that differ most; "all"; "current" for the one that the viewer
        shows; or numbers from 0, "0, 4, 10-12".
    given : LayerInput
    viewer : napari.components.ViewerModel

    Raises
    ------
    InputError
        If it is something else.
    """
    text = text.strip().lower()
    if text in ("", "auto", "all"):
        return text or None
    if text == "current":
        return [given.split(given.current(viewer))[1]]
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if match is None:
            raise InputError(
                f"expected numbers of images or slices like '0, 4, 10-12', 'current', 'auto' or 'all', but got {text!r}"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise InputError(f"expected the smaller number first, but got '{part.strip()}'; write {last}-{first}")
        if max(first, last) >= given.planes:
            raise InputError(
                f"expected numbers from 0 to {given.planes - 1}, but got {max(first, last)}; choose among these"
            )
        found += range(first, last + 1)
    return list(dict.fromkeys(found))

"""Errors a user can cause. Each message says what was expected, what came and what to do."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class SpwnetError(ValueError):
    """Base of all errors raised on purpose by this package; its text is written for users."""


class InputError(SpwnetError):
    """An image, a folder, a label image or an array that cannot be used."""


class SettingsError(SpwnetError):
    """A setting that is unknown, out of range or at odds with another or with the input."""


class OutputError(SpwnetError):
    """A place that cannot be written, or that holds something already."""


class RunError(SpwnetError):
    """A run directory that is missing a part, damaged, of another format, or of other settings."""


class Stopped(SpwnetError):
    """Work that was interrupted at a point from which it can be resumed."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the nearest known name, or ``""`` if none is near.

    Examples
    --------
    >>> did_you_mean("epoch", ["epochs", "seed"])
    " Did you mean 'epochs'?"
    """
    near = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean '{near[0]}'?" if near else ""

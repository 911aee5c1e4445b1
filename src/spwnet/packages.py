"""Packages that only some users need: each belongs to an extra."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spwnet.errors import SpwnetError


def optional_package(
    name: str, purpose: str, extra: str, error: type[SpwnetError], *, otherwise: str | None = None
) -> Any:
    """Import a package that need not be there.

    Parameters
    ----------
    name : str
        Of the package.
    purpose : str
        What it is needed for, as in "to read HDF5".
    extra : str
        Extra of this package that installs it.
    error : type
        What is raised without it.
    otherwise : str, optional
        What else the user can do than install it.

    Returns
    -------
    module

    Raises
    ------
    SpwnetError
        Of the type given, if it cannot be imported; it names the extra.
    """
    try:
        return import_module(name)
    except ImportError as cause:
        reason = " it is not installed" if cause.name == name else f": {cause}"
        raise error(
            f"expected the package {name} {purpose}, but{reason}; install it by `pip install 'spwnet[{extra}]'`"
            + (f", or {otherwise}" if otherwise else "")
        ) from cause

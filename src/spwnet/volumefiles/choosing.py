"""Which of the datasets of a file is the volume that is meant."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spwnet.errors import InputError
from spwnet.stacks import MOST_CHANNELS

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_NODES = 20_000
"""Groups and datasets of one file that are looked at in search of a volume."""


def is_plausible(array: Any) -> bool:
    """Whether an array looks like a volume."""
    named = "axistags" in array.attrs
    return _possible(array) and (
        named or array.ndim == 3 or (array.ndim == 4 and min(array.shape[::3]) <= MOST_CHANNELS)
    )


def _possible(array: Any) -> bool:
    """Whether an array is a volume if its axes are told."""
    return bool(array.dtype.kind in "buif" and len(array.shape or ()) > 2 and 0 not in array.shape)


def only_volume(volumes: list[tuple[str, Any]], everything: list[tuple[str, Any]]) -> tuple[str, Any]:
    """Return the only volume, or the only array that becomes one if its axes are told."""
    found = volumes or [item for item in everything if _possible(item[1])]
    if len(found) == 1:
        return found[0]
    count = f"there are {len(found)} of them" if found else "there is none"
    raise InputError(
        f"expected one volume, but {count}; give one by `dataset` / `--dataset`; there {listed(found or everything)}"
    )


def listed(arrays: Sequence[tuple[str, Any]]) -> str:
    """List datasets with path, shape and type, ten at most."""
    if not arrays:
        return "are no datasets"
    known = [
        f"{path or '/'} {tuple(array.shape or ())} of {array.dtype}"
        if hasattr(array, "shape")
        else f"{path or '/'} (OME-Zarr)"
        for path, array in arrays[:10]
    ]
    more = f" and {len(arrays) - 10} more" if len(arrays) > 10 else ""
    return f"{'is' if len(arrays) == 1 else 'are'} {', '.join(known)}{more}"

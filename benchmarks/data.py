"""Where the benchmarks' real images are."""

from __future__ import annotations

import os
from pathlib import Path


def folder(name: str) -> Path | None:
    """Return the set of that name below `SPWNET_DATA`, or None if it is not there."""
    root = os.environ.get("SPWNET_DATA")
    path = Path(root) / name if root else None
    return path if path and path.is_dir() else None

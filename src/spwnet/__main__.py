"""``python -m spwnet`` is the command ``spwnet``."""

from __future__ import annotations

import sys

from spwnet.cli import main

if __name__ == "__main__":
    sys.exit(main())

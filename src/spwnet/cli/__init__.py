"""The command `spwnet`."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import TYPE_CHECKING

from spwnet.cli.commands import app
from spwnet.cli.progress import console
from spwnet.errors import SpwnetError, Stopped

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["app", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if done, 1 if refused or failed, 130 if stopped (wrong flags exit with 2)."""
    from rich.logging import RichHandler

    # Threads that wait by spinning starve each other when the machine is busy: tenfold slower was seen.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Names of classes and settings hold characters that not every terminal has.
        sys.stdout.reconfigure(errors="backslashreplace")
    terminal = console()
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", force=True,
        handlers=[RichHandler(console=terminal, show_time=False, show_path=False, markup=False)],
    )  # fmt: skip
    try:
        app(arguments, result_action="return_value")
    except (Stopped, KeyboardInterrupt) as stop:
        terminal.print(f"stopped: {stop}" if str(stop) else "stopped", markup=False, style="yellow")
        return 130
    except RuntimeError as error:
        # torch's own way to say that memory is used up, on CPU and GPU
        if "allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        remedy = "use a lower `images.scale`, `images.max_pixels` or `model.ch_mul`"
        terminal.print(f"error: expected more free memory, but it is used up; {remedy}", markup=False, style="red")
        return 1
    except (SpwnetError, OSError, MemoryError) as error:
        terminal.print(f"error: {str(error) or type(error).__name__}", markup=False, style="red", soft_wrap=True)
        return 1
    return 0

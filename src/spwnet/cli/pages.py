"""The commands `spwnet view` and `spwnet report`: the page of a run, served or as a file."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from spwnet.cli.options import RUNNING, Browser
from spwnet.cli.progress import console, say

RunFolder = Annotated[Path, Parameter(help="Run directory of a trained network.")]


def view(
    run: RunFolder,
    /,
    *,
    port: Annotated[int, Parameter(help="Port on this machine; any that is free if 0.", group=RUNNING)] = 0,
    browser: Browser = True,
) -> None:
    """Look at a run, merge, split, name and clean its classes in the browser, and save them, until Ctrl-C."""
    from spwnet.classpage import view as serve

    with serve(run, port=port) as server:
        terminal = console()
        terminal.print(f"open {server.url}", markup=False, highlight=False, soft_wrap=True)
        terminal.print("on this machine only; Ctrl-C ends it", markup=False)
        if browser:
            server.browse()
        wait_for_ctrl_c()
    terminal.print("closed", markup=False)


def wait_for_ctrl_c() -> None:
    """Wait until the user has had enough."""
    never = threading.Event()
    with suppress(KeyboardInterrupt):
        # Windows interrupts no wait that has no end.
        while not never.wait(0.5):
            pass


def report(
    run: RunFolder,
    /,
    *,
    out: Annotated[Path | None, Parameter(help="File to write; RUN/report.html if not given.")] = None,
    overwrite: Annotated[bool, Parameter(help="Replace a file of that name.", negative="", group=RUNNING)] = False,
) -> None:
    """Write one HTML file that works offline: images, classes, tree, losses, settings, citation."""
    from spwnet.classpage import report as write

    path = write(run, out, overwrite=overwrite)
    say(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")

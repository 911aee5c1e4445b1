"""The terminal: one console, and on it the bar that shows how far the work is."""

from __future__ import annotations

import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console


@cache
def console() -> Console:
    """One console for log and progress bar: two would write over each other."""
    from rich.console import Console

    return Console(stderr=True)


def say(text: str) -> None:
    """Print a line of what was asked for, as long as somebody reads it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # As `head` leaves a pipe. Python would complain at its end of what it could not write.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def say_address(url: str) -> None:
    """Tell where a page is, on one line however long it is."""
    console().print(f"live view: {url}", soft_wrap=True, markup=False, highlight=False)


class ProgressBar:
    """Progress on the terminal: steps or images, losses, and the time left."""

    def __enter__(self) -> Callable[[Any], None]:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self.progress = Progress(*columns, console=console())
        self.progress.start()
        self.tasks: dict[str, Any] = {}
        return self._update

    def _update(self, state: Any) -> None:
        if state.stage not in self.tasks:
            self.tasks[state.stage] = self.progress.add_task(state.stage, total=state.total, note="")
        losses = " ".join(f"{name} {value:.3f}" for name, value in state.values.items())
        note = f"{duration(state.seconds_left)} left  {losses}"
        self.progress.update(self.tasks[state.stage], completed=state.done, total=state.total, note=note)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


def duration(seconds: float) -> str:
    """Write a time as minutes and seconds: "61:05"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"

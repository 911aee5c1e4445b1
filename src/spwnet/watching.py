"""Watching a training as it goes: on a page of this machine, in a notebook, in TensorBoard."""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Self

from spwnet.charting import History
from spwnet.errors import SettingsError, SpwnetError, Stopped
from spwnet.outputs import data_uri
from spwnet.packages import optional_package
from spwnet.serving import Page, Server
from spwnet.storage import prepare_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from spwnet.previews import Snapshot
    from spwnet.training import Progress

    Ending = Literal["finished", "stopped", "failed", "closed"]

logger = logging.getLogger(__name__)

LARGEST = 800
"""Pixels along the longer side of a picture that is shown."""
HELD_SECONDS = 1.0
"""For which an answer to the live page waits for news."""
LINGER_SECONDS = 3.0
"""For which a page that is open may take to fetch the end."""
NOTEBOOK_SECONDS = 1.0
"""Between two changes of what a notebook shows."""


class Watcher:
    """Somebody who looks on while a network is trained. What is not of interest need not be defined.

    A watcher is for one training. Its methods are called in the thread that trains, so they should be quick.
    """

    @property
    def keep(self) -> bool:
        """Whether training shall stop here and keep what it has learned, as if it had been all."""
        return False

    def update(self, progress: Progress) -> None:
        """Take notice of a step."""

    def show(self, snapshot: Snapshot) -> None:
        """Take new pictures."""

    def finish(self, ending: Ending, message: str = "") -> None:
        """Take notice of the end: "finished", "stopped" by the user, or "failed", with what there is to say of it."""

    def close(self) -> None:
        """Let go of everything; called by whoever made the watcher, more than once perhaps."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Audience:
    """The watchers of a training. One that fails is left out, and the training never notices.

    As a context manager it tells them how the training ended.

    Parameters
    ----------
    watchers : sequence of Watcher
    """

    def __init__(self, watchers: Sequence[Watcher] = ()) -> None:
        self._watchers = list(watchers)

    def __bool__(self) -> bool:
        return bool(self._watchers)

    def through(self, on_progress: Callable[[Progress], None]) -> Callable[[Progress], None]:
        """Return a callback that tells `on_progress` and then the watchers."""

        def both(progress: Progress) -> None:
            on_progress(progress)
            self._each(lambda watcher: watcher.update(progress))

        return both

    def show(self, snapshot: Snapshot) -> None:
        """Show new pictures."""
        self._each(lambda watcher: watcher.show(snapshot))

    def keep(self) -> bool:
        """Tell whether a watcher wants to stop after the step just taken."""
        return any(self._each(lambda watcher: watcher.keep))

    def _each(self, what: Callable[[Watcher], Any]) -> list[Any]:
        found = []
        for watcher in list(self._watchers):
            try:
                found.append(what(watcher))
            except Exception:  # whatever a watcher fails with, training goes on
                self._watchers.remove(watcher)
                logger.warning("%s failed; training goes on without it", type(watcher).__name__, exc_info=True)
                _close(watcher)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        ending: Ending = "failed"
        message = "the program that was training says why"
        if error is None:
            ending, message = "finished", ""
        elif isinstance(error, Stopped | KeyboardInterrupt):
            ending, message = "stopped", str(error)
        elif isinstance(error, SpwnetError):
            message = str(error)
        self._each(lambda watcher: watcher.finish(ending, message))


def _close(watcher: Watcher) -> None:
    try:
        watcher.close()
    except Exception:  # as above
        logger.warning("%s could not be closed", type(watcher).__name__, exc_info=True)


class _Display(Watcher):
    """What a page and a notebook show."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._history = History()
        self._progress: Progress | None = None
        self._snapshot: Snapshot | None = None
        self._ending: Ending | None = None
        self._message = ""

    def _status(self) -> dict[str, Any]:
        progress = self._progress
        return {
            "name": self._name,
            "ending": self._ending,
            "message": self._message,
            "done": progress.done if progress else 0,
            "total": progress.total if progress else 0,
            "seconds_left": progress.seconds_left if progress else None,
            "chart": self._history.chart().to_json(),
        }


def _pictures(snapshot: Snapshot | None) -> dict[str, Any]:
    if snapshot is None:
        return {"step": 0, "provisional": False, "rows": [], "classes": []}
    rows = []
    for row in snapshot.rows:
        kinds = {"input": row.input, "reconstruction": row.reconstruction, "classes": row.labels}
        shown = [
            {"kind": kind, "source": data_uri(rgb, LARGEST), "height": rgb.shape[0], "width": rgb.shape[1]}
            for kind, rgb in kinds.items()
            if rgb is not None
        ]
        rows.append({"name": row.name, "pictures": shown})
    classes = [{"id": k, "colour": snapshot.colours[k], "share": share} for k, share in snapshot.shares.items()]
    return {"step": snapshot.step, "provisional": snapshot.provisional, "rows": rows, "classes": classes}


class LivePage(_Display):
    """Show a training on a page of this machine, with a button to stop it and keep what it has learned.

    Nobody has to look: pictures are made for the page when it asks for them.

    Parameters
    ----------
    name : str
        What the page calls the training.
    port : int
        A free one if 0.
    browser : bool
        Whether to open the page in the user's browser, if there is a display, once there is something to see.

    Raises
    ------
    SettingsError
        If the port is taken.

    Examples
    --------
    >>> with LivePage("bones") as page:  # doctest: +SKIP
    ...     print(page.url)
    ...     spwnet.train("bones", "run", watch=[page])
    """

    def __init__(self, name: str = "training", *, port: int = 0, browser: bool = False) -> None:
        super().__init__(name)
        self._browser = browser
        self._news = threading.Condition()
        self._drawing = threading.Lock()
        self._keep = threading.Event()
        self._told = threading.Event()
        self._asked = -math.inf
        self._version = 0
        self._drawn: tuple[int, dict[str, Any]] = (-1, {})
        routes: dict[tuple[str, str], Callable[..., Any]] = {
            ("GET", ""): lambda: Page("live.html", {"name": name}),
            ("GET", "state"): self._state,
            ("GET", "news"): self._wait_for_news,
            ("GET", "pictures"): self._draw,
            ("POST", "stop"): self._stop_here,
            ("POST", "seen"): self._seen,
        }
        self._server = Server(routes, port=port).start()

    @property
    def url(self) -> str:
        """Address of the page, secret: whoever knows it can stop the training."""
        return self._server.url

    @property
    def keep(self) -> bool:
        """Whether the button was pressed."""
        return self._keep.is_set()

    def update(self, progress: Progress) -> None:
        """Take notice of a step."""
        with self._news:
            self._progress = progress
            self._history.add(progress.done, progress.values)

    def show(self, snapshot: Snapshot) -> None:
        """Take new pictures."""
        with self._news:
            self._snapshot = snapshot
            self._version += 1
        if self._browser:
            self._browser = False
            self._server.browse()

    def finish(self, ending: Ending, message: str = "") -> None:
        """Take notice of the end."""
        with self._news:
            self._ending, self._message = ending, message
            self._news.notify_all()

    def close(self) -> None:
        """Stop serving, as soon as a page that is open knows how it ended."""
        if self._ending is None:
            self.finish("closed")
        if time.monotonic() - self._asked < LINGER_SECONDS:
            self._told.wait(LINGER_SECONDS)
            # The answer to the page that says it knows is still on its way.
            time.sleep(0.1)
        self._asked = -math.inf
        self._server.close()

    def _state(self) -> dict[str, Any]:
        with self._news:
            self._asked = time.monotonic()
            return {**self._status(), "keeping": self.keep, "pictures": self._version}

    def _wait_for_news(self) -> dict[str, Any]:
        # Held here and not by a clock of the page, which a browser slows down when another page is in front.
        with self._news:
            self._news.wait_for(lambda: self._ending is not None, HELD_SECONDS)
        return self._state()

    def _draw(self) -> dict[str, Any]:
        with self._news:
            version, snapshot = self._version, self._snapshot
        with self._drawing:
            if self._drawn[0] < version:
                self._drawn = version, _pictures(snapshot)
            return {"version": self._drawn[0], **self._drawn[1]}

    def _stop_here(self, _: dict[str, Any]) -> dict[str, Any]:
        self._keep.set()
        return self._state()

    def _seen(self, _: dict[str, Any]) -> dict[str, Any]:
        self._told.set()
        return {}


class NotebookView(_Display):
    """Show a training below the cell of a notebook, as plain HTML.

    Interrupting the kernel stops the training, as Ctrl-C does elsewhere.

    Parameters
    ----------
    name : str
        What it is called.

    Raises
    ------
    SettingsError
        If this is no notebook.
    """

    def __init__(self, name: str = "training") -> None:
        super().__init__(name)
        try:
            from IPython.core.getipython import get_ipython
            from IPython.display import HTML, display
        except ImportError:
            shell = None
        else:
            shell = get_ipython()
        if shell is None:
            raise SettingsError(
                "expected a notebook to show the training in, but this is none; run it in one, or watch with `LivePage`"
            )
        self._html: Callable[[str], Any] = HTML
        self._display: Callable[..., Any] = display
        self._places: dict[str, Any] = {}
        self._shown_at = 0.0

    def update(self, progress: Progress) -> None:
        """Take notice of a step."""
        self._progress = progress
        self._history.add(progress.done, progress.values)
        if time.monotonic() - self._shown_at >= NOTEBOOK_SECONDS:
            self._show_status()

    def show(self, snapshot: Snapshot) -> None:
        """Take new pictures."""
        if not self._places:
            self._show_status()
        self._put("pictures", "notebook_pictures.html", _pictures(snapshot))

    def finish(self, ending: Ending, message: str = "") -> None:
        """Take notice of the end."""
        self._ending, self._message = ending, message
        self._show_status()

    def _show_status(self) -> None:
        self._shown_at = time.monotonic()
        self._put("status", "notebook_status.html", self._status())

    def _put(self, place: str, template: str, values: dict[str, Any]) -> None:
        html = self._html(Page(template, values).render())
        if place in self._places:
            self._places[place].update(html)
        else:
            self._places[place] = self._display(html, display_id=True)


class TensorBoardView(Watcher):
    """Write losses and pictures of a training for TensorBoard.

    Parameters
    ----------
    folder : path
        Where the events go, beside those of other trainings perhaps.

    Raises
    ------
    SettingsError
        If TensorBoard is not installed.
    OutputError
        If the folder cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        optional_package("tensorboard", "to write events for it", "tensorboard", SettingsError)
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(prepare_folder(folder, resume=True)))

    def update(self, progress: Progress) -> None:
        """Write the losses of a step."""
        for name, value in progress.values.items():
            self._writer.add_scalar(f"loss/{name}", value, progress.done)

    def show(self, snapshot: Snapshot) -> None:
        """Write the pictures, and the share of each class."""
        for row in snapshot.rows:
            kinds = {"input": row.input, "reconstruction": row.reconstruction, "classes": row.labels}
            for kind, rgb in kinds.items():
                if rgb is not None:
                    self._writer.add_image(f"{row.name}/{kind}", rgb, snapshot.step, dataformats="HWC")
        for k, share in snapshot.shares.items():
            self._writer.add_scalar(f"share/class_{k}", share, snapshot.step)
        self._writer.flush()

    def finish(self, ending: Ending, message: str = "") -> None:
        """Write what has not been written yet."""
        self._writer.add_text("ending", f"{ending}: {message}" if message else ending)
        self._writer.flush()

    def close(self) -> None:
        """Close the file of events."""
        self._writer.close()


@contextmanager
def watchers(
    *,
    view: bool = False,
    tensorboard: str | Path | None = None,
    name: str = "training",
    browser: bool = True,
    on_address: Callable[[str], None] = lambda _: None,
) -> Iterator[list[Watcher]]:
    """Give the watchers that a command is asked for, and close them in the end.

    Parameters
    ----------
    view : bool
        Whether to serve a `LivePage`.
    tensorboard : path, optional
        Where a `TensorBoardView` writes.
    name : str
        What the page calls the training.
    browser : bool
        Whether the page opens in the user's browser, as of `LivePage`.
    on_address : callable
        Called with the address of the page.

    Yields
    ------
    list of Watcher
        For `watch` of `train` and `run`.
    """
    made: list[Watcher] = []
    try:
        if tensorboard is not None:
            made.append(TensorBoardView(tensorboard))
        if view:
            page = LivePage(name, browser=browser)
            made.append(page)
            on_address(page.url)
        yield made
    finally:
        for watcher in made:
            _close(watcher)

"""Work that goes on beside the window: in a thread of its own, telling how far it is, to be stopped at any step."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from spwnet.errors import Stopped
from spwnet.watching import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from spwnet.previews import Snapshot

T = TypeVar("T")

BEAT_SECONDS = 0.2
"""Between two looks at whether there is news."""
CLOSE_SECONDS = 20.0
"""That a step may take before a window that is closed is not waited for any more."""


class Job(Generic[T]):
    """A piece of work and what it tells, a `Progress` or a `Snapshot` at a time.

    Parameters
    ----------
    work : callable
        Called with this job in a thread of its own.
    """

    def __init__(self, work: Callable[[Job[T]], T]) -> None:
        self._work = work
        self._news: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._kept = threading.Event()
        self._thread: threading.Thread | None = None

    def tell(self, news: Any) -> None:
        """Pass something on to whoever looks on.

        Raises
        ------
        Stopped
            If somebody wants the work to stop.
        """
        self._news.put(news)
        if self._stopped.is_set():
            raise Stopped("stopped; what was there before is as it was")

    def stop(self) -> None:
        """Let the work stop at the next step."""
        self._stopped.set()

    def close(self) -> None:
        """Let the work stop, and wait a while until it has."""
        self.stop()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)

    def keep(self) -> None:
        """Let a training stop at the next step and keep what it has learned."""
        self._kept.set()

    def watcher(self) -> Watcher:
        """Return who passes on the pictures of a training, and that it is to stop and keep."""
        return _Teller(self._news, self._kept)

    def news(self) -> Generator[Any, None, T]:
        """Do the work; yield what it tells, and None while it tells nothing; return what it gives.

        Raises
        ------
        Exception
            Whatever the work raises.
        """
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(self._work(self))
            except BaseException as error:  # passed on to the thread that asks
                errors.append(error)

        thread = self._thread = threading.Thread(target=run, name="spwnet")
        thread.start()
        try:
            while thread.is_alive() or not self._news.empty():
                try:
                    yield self._news.get(timeout=BEAT_SECONDS)
                except queue.Empty:
                    yield None
        finally:
            if thread.is_alive():
                self.stop()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def finish(self) -> T:
        """Do the work, and return what it gives, without looking on."""
        news = self.news()
        while True:
            try:
                next(news)
            except StopIteration as end:
                value: T = end.value
                return value


class _Teller(Watcher):
    def __init__(self, news: queue.SimpleQueue[Any], kept: threading.Event) -> None:
        self._news, self._kept = news, kept

    @property
    def keep(self) -> bool:
        return self._kept.is_set()

    def show(self, snapshot: Snapshot) -> None:
        self._news.put(snapshot)

"""Signals that end a run: the first ends the run after the current round, the second at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl_vitlora.experiment.watching import Watch


@contextlib.contextmanager
def pauses_on_signal(watch: Watch) -> Iterator[None]:
    """Ends the run after the current round at the first signal, and at once at the second.

    Before the first round there is no round to finish, so the first signal ends the run at once.
    Python can set handlers of signals only in the main thread. In another thread this function
    changes nothing.

    Args:
        watch: The callbacks of the run. The first signal sets the event `watch.pause`.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heed(number: int, frame: object) -> None:
        if watch.pause.is_set() or not watch.training.is_set():
            raise KeyboardInterrupt
        watch.pause.set()
        watch.announce("ending after this round; a second signal ends the run at once")

    before = {number: signal.signal(number, heed) for number in heeded_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def heeded_signals() -> Iterator[signal.Signals]:
    """Yields the signals that end a run: SIGINT (Ctrl-C), SIGTERM and SIGHUP.

    SIGHUP is sent when the terminal closes. If the program ignores SIGHUP, for example after
    `nohup`, SIGHUP is not yielded.
    """
    yield from (signal.SIGINT, signal.SIGTERM)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        yield signal.SIGHUP

"""Handles signals such as Ctrl-C, which end a run after its round or, if repeated, at once."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl_vitlora.experiment.watching import Watch

IMPORT_SYSTEM = "<frozen importlib._bootstrap>"  # the file name of Python's code that imports
LATER = 0.01  # seconds until a signal that came inside the import system is sent again


@contextlib.contextmanager
def pauses_on_signal(watch: Watch) -> Iterator[None]:
    """Makes the first signal end the run after its current round, and the second end it at once.

    Before the first round there is no round to finish, so the first signal ends the run at once.
    Python can set handlers of signals only in the main thread. If another thread calls this
    function, signals keep the handlers that they had.

    An exception inside Python's import system would leave one of its locks held, and the next
    import of any other thread would then wait for ever. Therefore a signal that arrives inside the
    import system is handled as soon as other code runs again.

    Args:
        watch: The callbacks of the run. The first signal sets the event `watch.pause`, which asks
            the run to stop after its round.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heed(number: int, frame: FrameType | None) -> None:
        if watch.pause.is_set() or not watch.training.is_set():
            if is_import_system(frame) and hasattr(signal, "setitimer"):
                signal.setitimer(signal.ITIMER_REAL, LATER)  # sends SIGALRM to `heed`
                return
            watch.pause.set()  # in case that code which is running now suppresses the exception
            raise KeyboardInterrupt
        watch.pause.set()
        watch.announce("the run will end after this round; a second signal ends it at once")

    timer = [signal.SIGALRM] if hasattr(signal, "setitimer") else []
    before = {number: signal.signal(number, heed) for number in (*heeded_signals(), *timer)}
    try:
        yield
    finally:
        if timer:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def is_import_system(frame: FrameType | None) -> bool:
    """Returns True if a frame executes Python's own import code, and not a module's code."""
    return frame is not None and frame.f_code.co_filename == IMPORT_SYSTEM


def heeded_signals() -> Iterator[signal.Signals]:
    """Yields the signals that end a run: SIGINT (Ctrl-C), SIGTERM and SIGHUP.

    SIGHUP is sent when the terminal closes. SIGHUP is not yielded if this process ignores it, for
    example because it was started by `nohup`.
    """
    yield from (signal.SIGINT, signal.SIGTERM)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        yield signal.SIGHUP

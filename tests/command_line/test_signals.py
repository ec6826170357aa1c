"""Signals: the first ends a run after its round, the second at once."""

from __future__ import annotations

import importlib
import os
import signal
import threading
import time

import pytest

from fl_vitlora.command_line.signals import IMPORT_SYSTEM, pauses_on_signal
from fl_vitlora.experiment.watching import Watch


def watched() -> Watch:
    """A run whose rounds have begun."""
    watch = Watch()
    watch.training.set()
    return watch


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_lets_the_round_end_and_the_second_does_not(
    number: signal.Signals,
) -> None:
    watch, before = watched(), signal.signal(number, signal.SIG_DFL)
    try:
        with pauses_on_signal(watch):
            os.kill(os.getpid(), number)
            assert watch.pause.is_set()
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_run_in_another_thread_goes_without_handlers_of_signals() -> None:
    before, seen = signal.getsignal(signal.SIGINT), []

    def run() -> None:
        with pauses_on_signal(watched()):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]


def test_before_the_first_round_the_first_signal_ends_a_run() -> None:
    with pauses_on_signal(Watch()), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_inside_the_import_system_waits_until_the_locks_are_free() -> None:
    """An exception there would leave a lock taken, and other threads would wait for ever."""
    scope = {"kill": os.kill, "me": os.getpid(), "sleep": time.sleep, "left": []}
    inside = f"kill(me, {signal.SIGINT:d})\nfor _ in range(5): sleep(0.01)\nleft.append(True)"
    with pauses_on_signal(Watch()), pytest.raises(KeyboardInterrupt):
        exec(compile(inside, IMPORT_SYSTEM, "exec"), scope)
        time.sleep(60)
    assert scope["left"] == [True]
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_the_import_system_has_the_name_that_is_looked_for() -> None:
    code = importlib.import_module.__globals__["_bootstrap"]._find_and_load.__code__
    assert code.co_filename == IMPORT_SYSTEM


def test_a_hangup_that_was_ignored_stays_so() -> None:
    """The program `nohup` ignores this signal for the program that it starts."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        watch = watched()
        with pauses_on_signal(watch):
            os.kill(os.getpid(), signal.SIGHUP)
            assert not watch.pause.is_set()
    finally:
        signal.signal(signal.SIGHUP, before)

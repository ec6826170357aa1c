"""The command that searches settings, and shows the trials on the terminal."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fl_vitlora.command_line.exits import INTERRUPTED, RUN_FAILED, USER_MISTAKE, fail
from fl_vitlora.command_line.signals import pauses_on_signal
from fl_vitlora.command_line.watching import watch_on
from fl_vitlora.config import confirmation
from fl_vitlora.config.search import Search

if TYPE_CHECKING:
    from fl_vitlora.reporting.search_tables import Trial


def search(plan: Search, confirmed: frozenset[str], *, verbose: bool) -> None:
    """Runs a search and prints the table of its trials.

    Args:
        plan: The search.
        confirmed: The names of code and Ray clusters that the user typed on the command line.
        verbose: True to show the messages of Flower and Ray.

    Raises:
        KeyboardInterrupt: If the user interrupts the search within a round.
        SystemExit: If the user ended the search after a round, if a trial failed, or if no trial is
            complete.
        UserError: If the search cannot be run.
    """
    for experiment in (plan.shared, *plan.corners()):
        confirmation.check_confirmed(experiment, confirmed)
    import strategies
    from fl_vitlora.experiment import searching
    from fl_vitlora.experiment.runner import PausedError, silence
    from fl_vitlora.experiment.search_checks import check_search
    from fl_vitlora.reporting.console import ComparisonDisplay
    from fl_vitlora.reporting.search_tables import describe, print_trials

    if not verbose:
        silence()
    load = functools.partial(strategies.load_for, confirmed=confirmed)
    check_search(plan, load)
    folder = Path(plan.out) if plan.out else searching.default_folder()
    again = f"the same command with --out {shlex.quote(str(folder))} continues the search"
    try:
        with searching.prepare_folder(folder, plan), ComparisonDisplay(plan.trials) as display:
            watch = watch_on(display, verbose=verbose)
            stopped = ""
            try:
                with pauses_on_signal(watch):
                    for trial in searching.search(plan, folder, load, watch):
                        display.show_run(describe(plan, trial))
            except searching.SearchStoppedError as error:
                stopped = f"the search was stopped, because {error}; "
            trials = searching.tell(plan, folder, searching.open_study(plan, folder))
    except PausedError as pause:
        fail(f"ended {pause}; {again}", INTERRUPTED)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"; {again}") from None
    print_trials(plan, trials, folder)
    _end(trials, stopped, again)


def _end(trials: Sequence[Trial], stopped: str, again: str) -> None:
    """Ends the program with an error message if a trial failed, or if no trial is complete.

    Args:
        trials: All trials of the search.
        stopped: The reason why the search was stopped before its last trial; "" if it was not.
        again: The words that say how the search is continued.
    """
    complete = any(trial.state == "complete" for trial in trials)
    if any(trial.state == "failed" and trial.again is None for trial in trials):
        told = stopped or "a trial failed, and the table above says why; "
        fail(f"{told}{again}, and repeats failed trials", RUN_FAILED)
    if not complete:
        refused = all(trial.state == "refused" for trial in trials)
        code = USER_MISTAKE if refused else RUN_FAILED
        fail("no trial is complete; the table above says why", code)

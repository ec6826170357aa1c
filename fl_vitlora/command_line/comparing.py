"""The command that runs a comparison of several experiments and shows it on the terminal."""

from __future__ import annotations

import functools
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from fl_vitlora.command_line.exits import INTERRUPTED, RUN_FAILED, USER_MISTAKE, fail
from fl_vitlora.command_line.live_page import watched
from fl_vitlora.command_line.signals import pauses_on_signal
from fl_vitlora.command_line.watching import watch_on
from fl_vitlora.config import confirmation
from fl_vitlora.config.grid import Grid

if TYPE_CHECKING:
    from fl_vitlora.reporting.statistics import Record


def compare(
    grid: Grid, confirmed: frozenset[str], *, verbose: bool, watch_page: bool = False
) -> None:
    """Runs a comparison and prints its tables.

    Args:
        grid: The experiments that are compared.
        confirmed: The names of code and Ray clusters that the user typed on the command line.
        verbose: True to show the messages of Flower and Ray.
        watch_page: True to show a page that follows the comparison in a browser.

    Raises:
        KeyboardInterrupt: If the user interrupts the comparison within a round.
        SystemExit: If the user ended the comparison after a round, if a run failed, or if the
            settings of all experiments were refused.
        UserError: If the user has not confirmed code or a Ray cluster that an experiment names, or
            if the folder of the comparison cannot be used.
    """
    for cell in grid.cells:
        confirmation.check_confirmed(cell.config, confirmed)
    from fl_vitlora.experiment import comparison
    from fl_vitlora.experiment.known_runs import with_seed_of_shards
    from fl_vitlora.experiment.runner import PausedError, silence
    from fl_vitlora.reporting.comparison_tables import print_report

    if not verbose:
        silence()
    grid = with_seed_of_shards(grid)
    folder = Path(grid.out) if grid.out else comparison.default_folder()
    again = f"the same command with --out {shlex.quote(str(folder))} continues the comparison"
    try:
        with watched(folder, wanted=watch_page):
            records = _run_all(grid, folder, confirmed, verbose=verbose)
    except PausedError as pause:
        fail(f"ended {pause}; {again}", INTERRUPTED)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"; {again}") from None
    print_report(comparison.tell(grid, records), str(folder))
    if any(record.failed for record in records):
        fail("a run failed; the table above says which run and why", RUN_FAILED)
    if not any(record.result for record in records):
        fail("nothing ran: no experiment can run; the table above says why", USER_MISTAKE)


def _run_all(grid: Grid, folder: Path, confirmed: frozenset[str], *, verbose: bool) -> list[Record]:
    """Runs all experiments and prints a line about each finished run; returns all run records."""
    import strategies
    from fl_vitlora.experiment import comparison
    from fl_vitlora.reporting.comparison_tables import describe
    from fl_vitlora.reporting.console import ComparisonDisplay

    load = functools.partial(strategies.load_for, confirmed=confirmed)
    records = []
    with comparison.prepare_folder(folder, grid), ComparisonDisplay(len(grid.runs)) as display:
        watch = watch_on(display, verbose=verbose)
        with pauses_on_signal(watch):
            for record in comparison.compare(grid, folder, load, watch):
                display.show_run(describe(record))
                records.append(record)
    return records

"""Connects a run, or the runs of a comparison, with what the terminal shows of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl_vitlora.experiment.watching import Watch
    from fl_vitlora.reporting.console import ComparisonDisplay, RunDisplay


def watch_on(display: RunDisplay | ComparisonDisplay, *, verbose: bool) -> Watch:
    """Returns the callbacks of a run that show it on a display.

    Args:
        display: What shows the run.
        verbose: Whether the messages of Flower and Ray are shown.
    """
    from fl_vitlora.experiment.watching import Watch

    return Watch(
        announce=display.announce,
        note=display.note,
        show_round=display.show_round,
        tap=display.show_message,
        verbose=verbose,
    )

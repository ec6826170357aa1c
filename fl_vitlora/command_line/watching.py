"""Connects a run with the progress display on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fl_vitlora.experiment.watching import Watch
    from fl_vitlora.reporting.console import ComparisonDisplay, RunDisplay


def watch_on(display: RunDisplay | ComparisonDisplay, *, verbose: bool) -> Watch:
    """Returns the callbacks through which a run shows its progress on a display.

    Args:
        display: The progress display.
        verbose: True to show the messages of Flower and Ray.
    """
    from fl_vitlora.experiment.watching import Watch

    return Watch(
        announce=display.announce,
        note=display.note,
        show_round=display.show_round,
        tap=display.show_message,
        verbose=verbose,
    )

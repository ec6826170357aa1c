"""Shows a bar on a terminal: how many images are done."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fl_vitlora.reporting.shown_bar import ShownBar


class CountDisplay(ShownBar):
    """A bar that is visible inside a `with` block. Nothing is shown without a terminal.

    Args:
        console: The console that shows the bar; None for standard error.
    """

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True)
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        super().__init__(bar)
        self._line = bar.add_task("reading the list of images", total=None)

    def begin(self, name: str, images: int) -> None:
        """Starts a new count at zero.

        Args:
            name: The name of the present work, for example the name of a file.
            images: The number of its images.
        """
        self._bar.reset(self._line, total=images, description=name)

    def advance(self, images: int) -> None:
        """Counts further images."""
        self._bar.advance(self._line, images)

    def note(self, sentence: str) -> None:
        """Prints a sentence on standard error, above the bar; the sentence stays there."""
        self._bar.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

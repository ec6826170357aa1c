"""Shows the progress of a run or of a comparison on the screen.

On a terminal the progress is a bar. If the output is not a terminal, a line is printed for each
round or run.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from fl_vitlora.config.units import readable_bytes
from fl_vitlora.reporting.table_layout import screen

SECONDS_OF_SILENCE = 15.0  # without a terminal, a line is printed at least after this time


class Live:
    """A progress bar that is visible inside a `with` block.

    Args:
        progress: The progress bar, from the library rich.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def note(self, sentence: str) -> None:
        """Prints a sentence above the bar; the sentence stays on the screen."""
        self._progress.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()


class Replies:
    """Counts the clients that were asked to train in a round, and the clients that have answered.

    Attributes:
        asked: The number of clients that were asked.
        answered: The number of clients that have answered.
    """

    def __init__(self) -> None:
        self.asked = self.answered = 0

    def note(self, message: Any) -> bool:
        """Counts a Flower message if it belongs to training; returns True if it was counted."""
        if message.metadata.message_type.partition(".")[0] != "train":
            return False
        if message.metadata.reply_to_message_id:
            self.answered += 1
        elif self.answered:  # the first request of the next round
            self.asked, self.answered = 1, 0
        else:
            self.asked += 1
        return True

    @property
    def share(self) -> float:
        """Returns the share of the asked clients that have answered, in [0, 1]."""
        return min(1.0, self.answered / self.asked) if self.asked else 0.0

    def __str__(self) -> str:
        return f"{self.answered} of {self.asked} clients"


class RunDisplay(Live):
    """Shows the progress of a run. If there is no terminal, a line is printed for each round.

    Args:
        rounds: The number of rounds of the run.
        console: The console that prints; None for the screen.
    """

    def __init__(self, rounds: int, console: Console | None = None) -> None:
        self._rounds = rounds
        self._console = console or screen()
        self._sent = 0
        self._done = 0.0  # finished rounds, plus the finished share of the current round
        self._replies = Replies()
        self._printed = time.monotonic()  # time of the last printed line
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TextColumn("{task.fields[count]}"),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_interactive,
        )
        super().__init__(progress)
        # Without a total the bar moves left and right, because the duration is still unknown.
        self._task: TaskID = progress.add_task("preparing", total=None, state="", count="")

    def announce(self, phase: str) -> None:
        """Shows the name of a phase that comes before the first round."""
        self._progress.update(self._task, description=phase)
        self._print(phase)

    def _print(self, line: str) -> None:
        """Prints a line if there is no terminal that could show a bar."""
        if not self._console.is_interactive:
            self._console.print(line, markup=False, soft_wrap=True)
            self._printed = time.monotonic()

    def show_message(self, message: Any) -> None:
        """Counts a message, and moves the bar by the share of clients that have answered.

        Args:
            message: A request or a reply of Flower.
        """
        if not self._replies.note(message):
            return
        begun = min(int(self._done) + 1, self._rounds)
        if time.monotonic() - self._printed > SECONDS_OF_SILENCE:
            self._print(f"round {begun}/{self._rounds}  {self._replies} have answered")
        self._move(int(self._done) + self._replies.share)

    def _move(self, done: float) -> None:
        """Moves the bar forwards, never back: a round may end after the next round has begun.

        Args:
            done: The number of finished rounds, plus the finished share of the current round.
        """
        self._done = max(self._done, min(done, self._rounds))
        self._progress.update(
            self._task,
            description="training",
            total=self._rounds,
            completed=self._done,
            count=f"{int(self._done)}/{self._rounds}",
        )

    def show_round(self, line: Mapping[str, Any]) -> None:
        """Shows the result of a round. The argument is the round's line in `rounds.jsonl`."""
        self._sent += line["uplink_bytes"] + line["downlink_bytes"]
        for warning in line.get("warnings", ()):
            self.note(f"warning: {warning}")
        state = f"{accuracy_in(line)}  {readable_bytes(self._sent)} sent"
        if line["failures"]:
            state += f"  {len(line['failures'])} failed"
        if not line["moved"]:
            state += "  model unchanged"
        self._progress.update(self._task, state=state)
        self._move(line["round"])
        self._print(f"round {line['round']}/{self._rounds}  {state}  {line['seconds']:.1f} s")


def accuracy_in(line: Mapping[str, Any], *, with_loss: bool = True) -> str:
    """Returns a text with the accuracy of a round, which also names validation images.

    Args:
        line: The round's line in `rounds.jsonl`.
        with_loss: True to add the loss.

    Example:
        >>> accuracy_in({"accuracy": 0.5, "loss": 1.25, "measured_on": "validation"})
        'validation accuracy 50.0 %  loss 1.250'
        >>> accuracy_in({"accuracy": None, "loss": None})
        'not evaluated'
    """
    if line["accuracy"] is None:
        return "not evaluated"
    images = "validation " if line.get("measured_on") == "validation" else ""
    loss = f"  loss {line['loss']:.3f}" if with_loss else ""
    return f"{images}accuracy {100 * line['accuracy']:.1f} %{loss}"


class ComparisonDisplay(Live):
    """Shows the progress of a comparison: a line for each finished run, and a bar below.

    Args:
        runs: The number of runs of the comparison.
        console: The console that prints; None for the screen.
    """

    def __init__(self, runs: int, console: Console | None = None) -> None:
        self._runs = runs
        self._replies = Replies()
        self._round = ""
        self._console = console or screen()
        self._shown = 0
        self._notes: set[str] = set()
        progress = Progress(
            TextColumn("run"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_interactive,
            transient=True,
        )
        super().__init__(progress)
        self._task: TaskID = progress.add_task("", total=runs)

    def announce(self, phase: str) -> None:
        """Shows the name of the current phase of a run, for example of its preparation."""
        self._progress.update(self._task, description=phase)

    def note(self, sentence: str) -> None:
        """Shows a sentence above the bar, unless another run of the comparison has shown it."""
        if sentence not in self._notes:
            self._notes.add(sentence)
            super().note(sentence)

    def show_round(self, line: Mapping[str, Any]) -> None:
        """Shows the result of a round. The argument is the round's line in `rounds.jsonl`."""
        for warning in line.get("warnings", ()):
            self.note(f"warning: {warning}")
        self._round = f"round {line['round']}  {accuracy_in(line, with_loss=False)}"
        self.announce(self._round)

    def show_message(self, message: Any) -> None:
        """Counts a message, and shows how many clients have answered in the current round."""
        if self._replies.note(message):
            self.announce(f"{self._round}  next round: {self._replies}".strip())

    def show_run(self, line: str) -> None:
        """Shows a line about a run that has just finished."""
        self._shown += 1
        self._round = ""
        self._progress.update(self._task, advance=1)
        self._console.print(f"{self._shown}/{self._runs}  {line}", markup=False, soft_wrap=True)

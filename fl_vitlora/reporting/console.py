"""What a person sees: a bar over the rounds or the runs, and a table at the end."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from fl_vitlora.config.units import readable_bytes
from fl_vitlora.reporting.table_layout import print_named, screen

SECONDS_OF_SILENCE = 15.0  # after which a round that is under way is told, without a terminal
MOST_NAMED = 3  # clients that failed
# where a finding is made more than once, this is all that differs
CIRCUMSTANCES = re.compile(
    r"round \d+: | with \d of \d clients| \((all in|clients of ranks) [^)]*\)"
)


def readable_seconds(seconds: float) -> str:
    """Writes a time in the unit that suits it.

    Example:
        >>> readable_seconds(7.25), readable_seconds(303), readable_seconds(7322)
        ('7.2 s', '5 min 3 s', '2 h 2 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes_left} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


class Live:
    """A bar that is on the screen as long as its block runs.

    Args:
        progress: Of rich.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def note(self, sentence: str) -> None:
        """Prints a sentence that stays on the screen, above the bar."""
        self._progress.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()


class Replies:
    """Counts how many of the clients that were asked to train have answered."""

    def __init__(self) -> None:
        self.asked = self.answered = 0

    def note(self, message: Any) -> bool:
        """Counts a Flower message that passes, either way; tells whether it was one to train."""
        if message.metadata.message_type.partition(".")[0] != "train":
            return False
        if message.metadata.reply_to_message_id:
            self.answered += 1
        elif self.answered:  # the first of the next round
            self.asked, self.answered = 1, 0
        else:
            self.asked += 1
        return True

    @property
    def share(self) -> float:
        """Returns the part of those asked that has answered."""
        return min(1.0, self.answered / self.asked) if self.asked else 0.0

    def __str__(self) -> str:
        return f"{self.answered} of {self.asked} clients"


class RunDisplay(Live):
    """Shows a run while it goes; a line for each round where the output is not a terminal.

    Args:
        rounds: How many there will be.
        console: Where to.
    """

    def __init__(self, rounds: int, console: Console | None = None) -> None:
        self._rounds = rounds
        self._console = console or screen()
        self._sent = 0
        self._done = 0.0  # rounds, and the part of the one that is under way
        self._replies = Replies()
        self._told = time.monotonic()
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
        # Without a total the bar moves to and fro, as long as nobody knows how long it will be.
        self._task: TaskID = progress.add_task("preparing", total=None, state="", count="")

    def announce(self, phase: str) -> None:
        """Names what is being done before the first round."""
        self._progress.update(self._task, description=phase)
        self._print(phase)

    def _print(self, line: str) -> None:
        """Prints a line where there is no terminal to show a bar."""
        if not self._console.is_interactive:
            self._console.print(line, markup=False, soft_wrap=True)
            self._told = time.monotonic()

    def show_message(self, message: Any) -> None:
        """Moves the bar within a round: by each client that has answered."""
        if not self._replies.note(message):
            return
        begun = min(int(self._done) + 1, self._rounds)
        if time.monotonic() - self._told > SECONDS_OF_SILENCE:
            self._print(f"round {begun}/{self._rounds}  {self._replies} have answered")
        self._move(int(self._done) + self._replies.share)

    def _move(self, done: float) -> None:
        """Moves the bar, never back: a round may end when the next has begun."""
        self._done = max(self._done, min(done, self._rounds))
        self._progress.update(
            self._task,
            description="training",
            total=self._rounds,
            completed=self._done,
            count=f"{int(self._done)}/{self._rounds}",
        )

    def show_round(self, line: Mapping[str, Any]) -> None:
        """Shows a round that ended; ``line`` is as in `rounds.jsonl`."""
        self._sent += line["uplink_bytes"] + line["downlink_bytes"]
        for told in line.get("warnings", ()):
            self.note(f"warning: {told}")
        state = (
            f"accuracy {100 * line['accuracy']:.1f} %  loss {line['loss']:.3f}  "
            f"{readable_bytes(self._sent)} sent"
        )
        if line["failures"]:
            state += f"  {len(line['failures'])} failed"
        if not line["moved"]:
            state += "  model unchanged"
        self._progress.update(self._task, state=state)
        self._move(line["round"])
        self._print(f"round {line['round']}/{self._rounds}  {state}  {line['seconds']:.1f} s")


class ComparisonDisplay(Live):
    """Shows a comparison while it goes: a line for each run that ended, and what goes on below.

    Args:
        runs: How many there will be.
        console: Where to.
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
        """Names what is being done."""
        self._progress.update(self._task, description=phase)

    def note(self, sentence: str) -> None:
        """Shows a line that stays on the screen; the runs of a comparison say it once together."""
        if sentence not in self._notes:
            self._notes.add(sentence)
            super().note(sentence)

    def show_round(self, line: Mapping[str, Any]) -> None:
        """Shows a round that ended; ``line`` is as in `rounds.jsonl`."""
        for told in line.get("warnings", ()):
            self.note(f"warning: {told}")
        self._round = f"round {line['round']}  accuracy {100 * line['accuracy']:.1f} %"
        self.announce(self._round)

    def show_message(self, message: Any) -> None:
        """Shows how far a round is: by each client that has answered."""
        if self._replies.note(message):
            self.announce(f"{self._round}  next round: {self._replies}".strip())

    def show_run(self, line: str) -> None:
        """Shows a run that ended."""
        self._shown += 1
        self._round = ""
        self._progress.update(self._task, advance=1)
        self._console.print(f"{self._shown}/{self._runs}  {line}", markup=False, soft_wrap=True)


def _key(encryption: Mapping[str, Any]) -> str:
    """Names the key, and says how it is used."""
    if not encryption["key_id"]:
        return "none"
    adapted = ", model adapted" if encryption["adapted"] else ""
    return (
        f"{encryption['key_id']}, scope {encryption['scope']}{adapted}, "
        f"patch embedding {encryption['patch_embedding']}"
    )


def _withstands(encryption: Mapping[str, Any]) -> dict[str, str]:
    """Tells from how many ciphertexts the key has been recovered; nothing of plain images."""
    found = encryption.get("falls_to_ciphertexts")
    if found is None:
        return {}
    told = found if isinstance(found, str) else f"{found} ciphertexts"
    return {"key falls to": f"{told} (docs/trust.md)"}


def _other_views(accuracy: Mapping[str, float]) -> dict[str, str]:
    """Tells what the model makes of test images without the right key, where that was measured."""
    names = {"wrong_key": "  under a wrong key", "no_key": "  on plain images"}
    return {
        name: f"{100 * accuracy[view]:.2f} %" for view, name in names.items() if view in accuracy
    }


def _remarks(result: Mapping[str, Any]) -> dict[str, str]:
    """Tells what only some runs have to tell."""
    remarks = {}
    if spent := result["privacy"]:
        remarks["privacy"] = (
            f"epsilon {spent['epsilon']:.3g} at delta {spent['delta']:g} for a client's updates, "
            f"{spent['releases']} releases ({spent['accountant']})"
        )
        if source := spent.get("noise_from"):
            remarks["noise from"] = source
    if sums := result["secure_aggregation"]:
        clipped = sums["clipped_scalars"]
        loss = f"; {clipped} scalars were beyond {sums['range']:g}" if clipped else ""
        remarks["updates"] = f"the server saw their sums alone{loss}"
    if target := result["target"]:
        remarks[f"{100 * target['accuracy']:g} % accuracy"] = (
            f"in round {target['round']}, after {readable_bytes(target['bytes'])}"
            if target["reached"]
            else "not reached"
        )
    if result["stopped"]:
        remarks["stopped"] = (
            f"the budget allows {result['rounds']} of {result['rounds_planned']} rounds"
        )
    for one in result["changes"]:
        told = ", ".join(f"{name} {was} -> {now}" for name, (was, now) in one["changed"].items())
        remarks[f"after round {one['after_round']}"] = f"went on with {told}"
    for told in result.get("warnings", ()):
        remarks["warning"] = escape(told)
    if idle := result["idle_rounds"]:
        remarks["idle rounds"] = f"{idle} of {result['rounds']}: the model stayed as it was"
    return remarks


def _with_flower(wire: Mapping[str, Any]) -> str:
    """Tells the saving with Flower's own traffic; results of older versions do not know it."""
    saving = wire.get("saving_with_flower")
    return "" if saving is None else f"; {saving:.1f}x with Flower's own traffic"


def _failures(failures: Mapping[str, Any], folder: str) -> str:
    """Names the clients that failed most often, with the reason of each one's first failure."""
    times: Mapping[str, int] = failures["clients"]
    order = sorted(times, key=lambda client: -times[client])
    told = [
        f"client {client}, {_times(times[client])}: {failures['reasons'][client]}"
        for client in order[:MOST_NAMED]
    ]
    if more := len(order) - len(told):
        told.append(f"and {more} more; see {folder}/failures")
    return "\n".join(told)


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def print_result(result: Mapping[str, Any], folder: str, console: Console | None = None) -> None:
    """Prints the table that ends a run; ``result`` is as in `result.json`."""
    wire, seconds, failures = (result[key] for key in ("communication", "seconds", "failures"))
    share = result["trainable_parameters"] / result["total_parameters"]
    rows = {
        "test accuracy": f"[bold]{100 * result['accuracy']:.2f} %[/bold]",
        **_other_views(result["accuracy_by_view"]),
        "encryption": ", ".join(result["encryption"]["steps"]) or "none: plain images",
        "key": _key(result["encryption"]),
        **_withstands(result["encryption"]),
        "method": f"{result['method']}, {result['strategy']}, {result['clients']} clients, "
        f"{result['rounds']} rounds",
        "trained": f"{result['trainable_parameters']:,} of {result['total_parameters']:,} "
        f"parameters ({100 * share:.2f} %)",
        "uplink": readable_bytes(wire["uplink_bytes"]),
        "downlink": readable_bytes(wire["downlink_bytes"]),
        "full fine-tuning": readable_bytes(wire["full_fine_tuning_bytes"]),
        "saving": f"[bold]{wire['saving']:.1f}x[/bold] fewer bytes{_with_flower(wire)}",
        "time on the wire": f"{readable_seconds(wire['transfer_seconds'])}; full fine-tuning "
        f"{readable_seconds(wire['full_fine_tuning_transfer_seconds'])}",
        **_remarks(result),
        **({"failures": escape(_failures(failures, folder))} if failures["updates"] else {}),
        "time": f"{seconds['total']:.1f} s (set-up {seconds['setup']:.1f} s, "
        f"training {seconds['training']:.1f} s)",
        "run folder": escape(folder),
    }
    named = {name: Text.from_markup(value) for name, value in rows.items()}
    print_named(console or screen(), named)


def print_findings(
    strategy: Sequence[str],
    findings: Sequence[tuple[str, str | None]],
    untried: int = 0,
    console: Console | None = None,
) -> None:
    """Prints what became of every rule that a strategy was held to.

    Args:
        strategy: What was understood of it, in lines.
        findings: Of each rule what it says, and the problem, if there is one.
        untried: How many rules were left.
        console: Where to.
    """
    screen = console or Console(highlight=False, soft_wrap=True)
    for line in strategy:
        screen.print(line, markup=False)
    told: set[str] = set()
    for rule, problem in findings:
        cause = CIRCUMSTANCES.sub("", problem or "")
        again = " (as above)" if cause in told else ""
        screen.print(
            f"{'[red]failed[/red]' if problem else '[green]passed[/green]'}  {rule}{again}"
        )
        if problem and not again:
            screen.print(f"        {problem}", markup=False)
            told.add(cause)
    failed = sum(problem is not None for _, problem in findings)
    left = f"; the other {untried} rules were not tried" if untried else ""
    screen.print(f"{len(findings)} rules, {failed} failed{left}")

"""The tables of a search: all trials as CSV and Markdown, and on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from fl_vitlora.config.search import Search
from fl_vitlora.config.units import readable_bytes
from fl_vitlora.reporting.comparison_rows import to_csv
from fl_vitlora.reporting.comparison_tables import markdown_table
from fl_vitlora.reporting.result_table import readable_seconds
from fl_vitlora.reporting.table_layout import print_table, print_wrapped, screen
from fl_vitlora.storage.files import write_atomically

TRIALS, SEARCH = "trials", "search.yaml"  # files in the folder of a search
ORDER = ("complete", "pruned")  # then the trials without a result


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial of a search.

    Attributes:
        number: The number of the trial, from 0.
        state: How the trial ended: "complete", "pruned", "refused", "diverged", "failed", or
            "interrupted"; "waiting" if it has not begun.
        value: The measure on the validation images after the last round; None if the trial is not
            complete.
        values: The number or the label that was tried, for each dimension.
        rounds: The number of rounds; None without a result.
        sent_bytes: The bytes of all messages; None without a result.
        seconds: The duration of the run; None without a result.
        folder: The name of the run folder in the folder of the search.
        problem: The reason why the trial has no result; empty if there is none.
        again: The number of the trial that repeats this failed trial; None if no trial does.
    """

    number: int
    state: str
    value: float | None
    values: Mapping[str, Any]
    rounds: int | None = None
    sent_bytes: int | None = None
    seconds: float | None = None
    folder: str = ""
    problem: str = ""
    again: int | None = None


def best_of(plan: Search, trials: Sequence[Trial]) -> Trial | None:
    """Returns the complete trial with the best value; None if no trial is complete.

    If several trials have the best value, the earliest of them is returned.
    """
    known = [(trial.value, trial) for trial in trials if trial.value is not None]
    sign = 1 if plan.goal == "accuracy" else -1
    return max(known, key=lambda pair: (sign * pair[0], -pair[1].number), default=(0, None))[1]


def write_trials(folder: Path, plan: Search, trials: Sequence[Trial]) -> Trial | None:
    """Writes the tables of all trials, and returns the best trial."""
    columns = ["trial", "state", f"validation_{plan.goal}", *plan.dimensions]
    columns += ["rounds", "sent_bytes", "seconds", "folder", "problem"]
    rows = (
        {
            "trial": trial.number,
            "state": trial.state,
            f"validation_{plan.goal}": trial.value,
            **trial.values,
            "rounds": trial.rounds,
            "sent_bytes": trial.sent_bytes,
            "seconds": trial.seconds,
            "folder": trial.folder,
            "problem": trial.problem,
        }
        for trial in trials
    )
    write_atomically(folder / f"{TRIALS}.csv", to_csv(columns, rows))
    write_atomically(folder / f"{TRIALS}.md", to_markdown(plan, trials))
    return best_of(plan, trials)


def to_markdown(plan: Search, trials: Sequence[Trial]) -> str:
    """Returns the table of all trials, the best first, and the problems, as Markdown."""
    parts = [f"# {plan.title}"] if plan.title else []
    parts.append(markdown_table(readable_rows(plan, trials), texts=2))
    parts.append(
        f"The {plan.goal} is that of the last round's model on the validation images. Pruned "
        "trials were worse than the median of the earlier trials, and ended early."
    )
    parts.extend(f"* {text}" for text in problems(trials))
    return "\n\n".join(parts) + "\n"


def readable_rows(plan: Search, trials: Sequence[Trial]) -> list[list[str]]:
    """Returns the rows of a table for people: a header, and the trials, the best first."""
    head = ["trial", "state", f"validation {plan.goal}", *plan.dimensions, "rounds", "sent", "time"]
    sign = -1 if plan.goal == "accuracy" else 1

    def place(trial: Trial) -> tuple[int, float, int]:
        known = ORDER.index(trial.state) if trial.state in ORDER else len(ORDER)
        return known, sign * (trial.value or 0), trial.number

    rows = [
        [
            str(trial.number),
            trial.state,
            shown_value(plan.goal, trial.value),
            *(shown_setting(trial.values.get(name)) for name in plan.dimensions),
            "–" if trial.rounds is None else str(trial.rounds),
            "–" if trial.sent_bytes is None else readable_bytes(trial.sent_bytes),
            "–" if trial.seconds is None else readable_seconds(trial.seconds),
        ]
        for trial in sorted(trials, key=place)
    ]
    return [head, *rows]


def shown_value(goal: str, value: float | None) -> str:
    """Returns the measure of a trial as a text, or a dash for None.

    Example:
        >>> shown_value("accuracy", 0.95), shown_value("loss", 0.123456), shown_value("loss", None)
        ('95.00 %', '0.1235', '–')
    """
    if value is None:
        return "–"
    return f"{100 * value:.2f} %" if goal == "accuracy" else f"{value:.4f}"


def shown_setting(value: Any) -> str:
    """Returns a value that was tried as a text: a number with four digits, or a label."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def problems(trials: Sequence[Trial]) -> list[str]:
    """Returns a sentence for each trial that has no result, with the reason."""
    return [
        f"trial {trial.number} {'was ' if trial.state == 'refused' else ''}{trial.problem}"
        + ("" if trial.again is None else f"; trial {trial.again} repeats it")
        for trial in trials
        if trial.problem
    ]


def describe(plan: Search, trial: Trial) -> str:
    """Returns one line about a trial that has just ended."""
    tried = ", ".join(f"{name}={shown_setting(value)}" for name, value in trial.values.items())
    outcome = trial.problem or f"{trial.state} {shown_value(plan.goal, trial.value)}".strip(" –")
    return f"trial {trial.number}: {outcome}, {tried}"


def print_trials(
    plan: Search, trials: Sequence[Trial], folder: Path, console: Console | None = None
) -> None:
    """Prints the table of all trials, their problems, and where the best settings are."""
    console = console or screen()
    print_table(console, readable_rows(plan, trials), 2, plan.title)
    for text in problems(trials):
        print_wrapped(console, Text(text))
    best = best_of(plan, trials)
    if best is not None:
        console.print(f"best settings  {folder}/best.yaml (trial {best.number})", markup=False)
    console.print(f"search folder  {folder}", markup=False, soft_wrap=True)

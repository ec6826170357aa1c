"""Makes the content of the live page: texts, tables and charts, as JSON for the page's script."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fl_vitlora.config.units import readable_bytes
from fl_vitlora.errors import UserError
from fl_vitlora.reporting.grid_folder import GRID
from fl_vitlora.reporting.live.grid_state import AT_WORK, GridState, read_grid_state
from fl_vitlora.reporting.live.run_state import MEANING, Files, RunState, read_state
from fl_vitlora.reporting.report import charts
from fl_vitlora.reporting.report.charts import Chart
from fl_vitlora.reporting.report.live_charts import runs_chart, sent_chart
from fl_vitlora.reporting.report.page import Table, data_of
from fl_vitlora.reporting.report.run_page import percent, rounds_table
from fl_vitlora.reporting.result_table import readable_seconds
from fl_vitlora.reporting.run_folder import CONFIG
from fl_vitlora.reporting.search_tables import SEARCH

Content = dict[str, Any]

LAST_ROUNDS, LAST_FAILURES, MOST_RUNS = 50, 50, 20  # rows of tables, and lines of a chart
NOT_BEGUN = "There is no folder yet: the program checks the settings and prepares the images."


def has_content(folder: Path) -> bool:
    """Returns True if a folder is that of a run or of a comparison."""
    return (folder / GRID).is_file() or (folder / CONFIG).is_file()


def missing(folder: Path) -> str:
    """Returns a sentence that says what a folder should have.

    The folder of a search has no page, but each of its trials is a run.
    """
    if (folder / SEARCH).is_file():
        trials = sorted(folder.glob(f"trial-*/{CONFIG}"), key=lambda path: path.stat().st_mtime)
        newest = f"the newest is {trials[-1].parent}" if trials else "none has begun"
        return f"{folder} is the folder of a search; expected one of its trials, and {newest}"
    return (
        f"{folder} contains no run and no comparison; expected a folder with a {CONFIG} or a {GRID}"
    )


def content_of(folder: Path, files: Files, *, expected: bool = False) -> Content:
    """Returns what the page shows of a folder at this moment.

    Args:
        folder: The folder of a run or of a comparison.
        files: The object that remembers files that have not changed.
        expected: True if the folder may still be missing, because its run has just been started.

    Returns:
        Plain values for JSON. If a file cannot be read, the entry `error` says why.
    """
    name = folder.resolve().name
    if not has_content(folder):
        if expected:
            return _page(name, "preparing", NOT_BEGUN)
        return _page(name, "unknown", "", error=missing(folder))
    try:
        if (folder / GRID).is_file():
            return grid_content(read_grid_state(folder, files))
        return run_content(read_state(folder, files))
    except UserError as error:
        return _page(name, "unknown", "", error=str(error))
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        told = f"its files do not have the form that this version reads ({error!r})"
        return _page(name, "unknown", "", error=f"{folder}: {told}")


def run_content(run: RunState) -> Content:
    """Returns what the page shows of a run."""
    lines = run.lines
    return _page(
        run.folder.resolve().name,
        run.state,
        MEANING[run.state],
        figures=list(run_figures(run)),
        remarks=[text for line in lines for text in line.get("warnings", ())],
        shown=[
            charts.accuracy_chart(lines),
            charts.loss_chart(lines),
            sent_chart(lines),
            charts.time_chart(lines),
        ],
        tables=[
            _last(rounds_table(lines[-LAST_ROUNDS:]), len(lines), LAST_ROUNDS, "rounds"),
            failures_table(run),
        ],
    )


def run_figures(run: RunState) -> Iterator[tuple[str, str]]:
    """Yields the name and the text of each figure at the top of the page of a run."""
    lines, known = run.lines, [line for line in run.lines if line["accuracy"] is not None]
    images = known[-1].get("measured_on", "test") if known else "test"
    yield "rounds", f"{len(lines)} of {run.config.rounds}"
    yield f"{images} accuracy", percent(known[-1]["accuracy"] if known else None)
    best = max(known, key=lambda line: float(line["accuracy"]), default=None)
    if best is not None:
        yield "best round", f"{best['round']} ({percent(best['accuracy'])})"
    if run.result is not None:
        yield "final test accuracy", percent(run.result["accuracy"])
    yield "sent", readable_bytes(run.sent)
    if run.seconds_a_round is not None:
        yield "a round takes", readable_seconds(run.seconds_a_round)
    if run.seconds_left is not None:
        yield "time left, about", readable_seconds(run.seconds_left)
    yield "clients", f"{run.config.clients:,}"
    if lines:
        yield "in the last round", f"{len(lines[-1]['participants']):,}"
    workers = run.environment.get("workers")
    yield (
        "workers",
        "not started" if workers is None else f"{workers} ({run.environment['device']})",
    )
    yield "failed updates", f"{len(run.failures):,}"


def failures_table(run: RunState) -> Table:
    """Returns the newest updates that failed, with their reasons."""
    found = run.failures
    rows = [
        [str(number), str(client), reason]
        for number, client, reason in reversed(found[-LAST_FAILURES:])
    ]
    table = Table(title="Failed updates", head=["round", "client", "reason"], rows=rows, texts=3)
    return _last(table, len(found), LAST_FAILURES, "failed updates")


def grid_content(grid: GridState) -> Content:
    """Returns what the page shows of a comparison."""
    told = {
        "running": "The comparison is running.",
        "ended": "All runs of the comparison have ended.",
        "unfinished": "Some runs have no result. The file system has no locks, so it is unknown "
        "whether a program works on the comparison.",
    }
    begun = {
        f"{run.name}, seed {run.seed}": run.run.lines
        for run in grid.runs
        if run.run is not None and run.run.lines
    }
    newest = dict(list(begun.items())[-MOST_RUNS:])
    return _page(
        grid.grid.title or grid.folder.resolve().name,
        grid.state,
        told.get(grid.state, "No program works on this comparison: it was interrupted."),
        figures=list(grid_figures(grid)),
        remarks=[f"{run.name}, seed {run.seed}: {run.problem}" for run in grid.runs if run.problem],
        shown=[runs_chart(newest)],
        tables=[runs_table(grid)],
    )


def grid_figures(grid: GridState) -> Iterator[tuple[str, str]]:
    """Yields the name and the text of each figure at the top of the page of a comparison."""
    total = len(grid.runs)
    yield "runs with a result", f"{grid.count('ended')} of {total}"
    yield "without a result", str(grid.count("without result"))
    yield "at work", str(grid.count(*AT_WORK))
    yield "waiting", str(grid.count("waiting"))
    yield "sent", readable_bytes(sum(run.run.sent for run in grid.runs if run.run is not None))
    failed = sum(len(run.run.failures) for run in grid.runs if run.run is not None)
    yield "failed updates", f"{failed:,}"


def runs_table(grid: GridState) -> Table:
    """Returns a row for each run of a comparison, with its state."""
    rows = []
    for run in grid.runs:
        figures = ["–", "–", "–", "–"]
        if run.run is not None:
            lines = run.run.lines
            accuracies = [line["accuracy"] for line in lines if line["accuracy"] is not None]
            figures = [
                f"{len(lines)} of {run.run.config.rounds}",
                percent(accuracies[-1] if accuracies else None),
                readable_bytes(run.run.sent),
                str(len(run.run.failures)),
            ]
        rows.append([run.name, run.state, str(run.seed), *figures])
    head = ["cell", "state", "seed", "rounds", "accuracy", "sent", "failed updates"]
    return Table(title="Runs", head=head, rows=rows, texts=2)


def to_bytes(content: Content) -> bytes:
    """Returns the content as JSON, in which no number is infinite or undefined."""
    return json.dumps(content, allow_nan=False).encode("utf-8")


def _page(
    title: str,
    state: str,
    told: str,
    *,
    figures: Sequence[tuple[str, str]] = (),
    remarks: Sequence[str] = (),
    shown: Sequence[Chart] = (),
    tables: Sequence[Table] = (),
    error: str = "",
) -> Content:
    return {
        "title": title,
        "state": state,
        "told": told,
        "error": error,
        "figures": [list(pair) for pair in figures],
        "remarks": list(remarks),
        "charts": [
            {
                "name": chart.name,
                "title": chart.title,
                "told": chart.told,
                "figure": json.loads(data_of(chart)),
            }
            for chart in shown
        ],
        "tables": [
            {"title": t.title, "head": list(t.head), "rows": [*map(list, t.rows)], "texts": t.texts}
            for t in tables
        ],
    }


def _last(table: Table, total: int, most: int, what: str) -> Table:
    """Returns a table whose title says if it has only the last of several rows."""
    title = f"The last {most} of {total:,} {what}" if total > most else f"All {what}"
    return Table(title=title, head=table.head, rows=table.rows, texts=table.texts)

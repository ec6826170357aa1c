"""The charts, texts and tables of a comparison's report."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from fl_vitlora.config.grid_labels import name_of
from fl_vitlora.reporting.comparison_tables import (
    MEANING,
    MEANING_OF_CLASSES,
    Report,
    has_details,
    heading_of_differences,
    readable_cells,
    readable_differences,
    readable_problems,
    to_markdown,
)
from fl_vitlora.reporting.grid_folder import GRID, read_comparison
from fl_vitlora.reporting.latex_tables import to_latex
from fl_vitlora.reporting.report.charts import MEGABYTE, Chart, figure_of, plain, rounds_figure
from fl_vitlora.reporting.report.page import Table
from fl_vitlora.reporting.report.run_files import read_lines
from fl_vitlora.reporting.report.run_page import percent
from fl_vitlora.reporting.statistics import Record, Summary, sent_bytes

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star", "cross", "hexagon", "x")
COLOURED = 8  # colours of the charts
LEGEND_BELOW = {"orientation": "h", "y": -0.25, "yanchor": "top", "x": 0}
ROW = 22  # pixels that a line of the legend takes


def context_of(folder: Path) -> dict[str, Any]:
    """Returns what the template of a comparison's page shows, by name."""
    comparison = read_comparison(folder)
    head, *rows = readable_cells(comparison)
    found = [cell for cell in comparison.summaries if cell.accuracy is not None]
    runs = sum(1 for record in comparison.records if record.result)
    return {
        "title": comparison.title or folder.resolve().name,
        "summary": f"This comparison has {count_of(len(comparison.summaries), 'cell')} and "
        f"{count_of(runs, 'finished run')}. A cell is one combination of the settings that differ: "
        f"{', '.join(comparison.axes)}.",
        "cells": Table(
            title="Test accuracy, bytes and time", head=head, rows=rows, texts=len(comparison.axes)
        ),
        "meaning": f"{MEANING} {MEANING_OF_CLASSES}" if has_details(comparison) else MEANING,
        "problems": readable_problems(comparison),
        "charts": [bytes_chart(found), rounds_chart(comparison)] if found else [],
        "differences": differences_table(comparison),
        "runs": runs_table(comparison),
        "latex": to_latex(comparison),
        "markdown": to_markdown(comparison),
        "settings": (folder / GRID).read_text(encoding="utf-8"),
    }


def count_of(number: int, what: str) -> str:
    """Returns a number with the name of what is counted.

    Example:
        >>> count_of(1, "cell"), count_of(2, "cell")
        ('1 cell', '2 cells')
    """
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def bytes_chart(cells: Sequence[Summary]) -> Chart:
    """Returns the accuracy of each cell over the bytes that its runs sent."""
    traces = [
        go.Scatter(
            x=[cell.sent / MEGABYTE],
            y=[cell.accuracy.mean],
            error_y={"type": "data", "array": [cell.accuracy.spread or 0.0]},
            name=plain(name_of(cell.labels)),
            mode="markers",
            marker={"size": 11, "symbol": SYMBOLS[place // COLOURED % len(SYMBOLS)]},
            hovertemplate="%{y:.2f} %, %{x:.4g} MB<extra>%{fullData.name}</extra>",
        )
        for place, cell in enumerate(cells)
        if cell.accuracy is not None
    ]
    return Chart(
        name="bytes",
        title="Test accuracy over the megabytes sent in a run",
        told="A point for each setting, with the standard deviation over its seeds, on a "
        "logarithmic axis. The table above has the numbers.",
        figure=_below(
            figure_of(traces, "megabytes", "test accuracy (%)", xaxis_type="log"), len(traces)
        ),
    )


def rounds_chart(comparison: Report) -> Chart:
    """Returns the accuracy over the rounds, as the mean over the seeds of each cell."""
    traces = []
    for place, cell in enumerate(comparison.summaries):
        known = [run for run in comparison.records if run.labels == cell.labels and run.folder]
        means = dict(_means(known))
        traces.append(
            go.Scatter(
                x=list(means),
                y=list(means.values()),
                name=plain(name_of(cell.labels)),
                mode="lines+markers",
                marker={"symbol": SYMBOLS[place // COLOURED % len(SYMBOLS)]},
                hovertemplate="round %{x}: %{y:.2f} %<extra>%{fullData.name}</extra>",
            )
        )
    longest = max((max(trace.x) for trace in traces if trace.x), default=0)
    return Chart(
        name="rounds",
        title="Accuracy after each round, mean over the seeds",
        told="A line for each setting; only rounds that all its runs have evaluated.",
        figure=_below(rounds_figure(traces, longest, "accuracy (%)"), len(traces)),
    )


def _means(runs: Sequence[Record]) -> Iterator[tuple[int, float]]:
    """Yields each round that all runs have evaluated, with the mean accuracy in percent."""
    found = [
        {line["round"]: line["accuracy"] for line in read_lines(run.folder)}
        for run in runs
        if run.folder is not None
    ]
    for number in found[0] if found else ():
        values = [accuracies.get(number) for accuracies in found]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            yield number, 100 * statistics.mean(known)


def _below(figure: go.Figure, entries: int) -> go.Figure:
    """Puts the legend below the chart, where it has room for long names."""
    margin = 90 + ROW * entries
    figure.update_layout(
        legend=LEGEND_BELOW, height=280 + margin, margin={"b": margin}, showlegend=True
    )
    return figure


def differences_table(comparison: Report) -> Table | None:
    """Returns the paired differences; None if there are none."""
    if not comparison.differences:
        return None
    head, *rows = readable_differences(comparison)
    return Table(title=heading_of_differences(comparison), head=head, rows=rows, texts=2)


def runs_table(comparison: Report) -> Table:
    """Returns a row for each run, with its folder or its problem."""
    rows = []
    for run in comparison.records:
        accuracy = percent(run.result["accuracy"]) if run.result else ""
        sent = f"{sent_bytes(run.result) / MEGABYTE:.2f}" if run.result else ""
        place = run.folder.name if run.folder else run.problem
        rows.append([name_of(run.labels), place, str(run.seed), accuracy, sent])
    return Table(
        title="Runs", head=["setting", "folder", "seed", "accuracy", "MB sent"], rows=rows, texts=2
    )

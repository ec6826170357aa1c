"""Charts that only the page that follows a run or a comparison has, and no report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import plotly.graph_objects as go

from fl_vitlora.reporting.report.charts import MEGABYTE, Chart, plain, rounds_figure

Line = Mapping[str, Any]


def sent_chart(lines: Sequence[Line]) -> Chart:
    """Returns the megabytes that the clients and the server have sent up to each round."""
    kinds = {"from clients": "uplink_bytes", "to clients": "downlink_bytes"}
    traces = [
        go.Scatter(
            x=[line["round"] for line in lines],
            y=[total / MEGABYTE for total in accumulate(line[key] for line in lines)],
            name=name,
            mode="lines+markers",
            hovertemplate="round %{x}: %{y:.4g} MB<extra>" + name + "</extra>",
        )
        for name, key in kinds.items()
    ]
    return Chart(
        name="sent",
        title="Megabytes sent up to the end of each round",
        told="The bytes that all clients have sent, and the bytes that were sent to them.",
        figure=rounds_figure(traces, len(lines), "megabytes"),
    )


def runs_chart(runs: Mapping[str, Sequence[Line]]) -> Chart:
    """Returns the accuracy of several runs over the rounds.

    Args:
        runs: The lines of `rounds.jsonl` of each run, by the name of the run.
    """
    traces = []
    for name, lines in runs.items():
        known = [line for line in lines if line["accuracy"] is not None]
        traces.append(
            go.Scatter(
                x=[line["round"] for line in known],
                y=[100 * line["accuracy"] for line in known],
                name=plain(name),
                mode="lines+markers",
                hovertemplate="round %{x}: %{y:.2f} %<extra>%{fullData.name}</extra>",
            )
        )
    longest = max((len(lines) for lines in runs.values()), default=0)
    return Chart(
        name="runs",
        title="Accuracy after each round",
        told="A line for each run that has ended a round, the newest runs if there are many.",
        figure=rounds_figure(traces, longest, "accuracy (%)", showlegend=True),
    )

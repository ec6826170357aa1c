"""The interactive charts of a run.

Letters in shapes: K clients, L classes, T rounds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import plotly.graph_objects as go

from fl_vitlora.data.sources import Indices

Line = Mapping[str, Any]

MEGABYTE = 1e6
# Colours that people with colour blindness can tell apart (Okabe and Ito), on white and on black.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8F7700", "#7F7F7F")
REFERENCE = {"dash": "dash", "color": "#7F7F7F"}
HEIGHT = 340  # pixels
LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}
WIDE = 100  # a wider logarithmic axis has marks at powers of ten only
MOST_MARKED = 15  # the largest number of rounds that all have a mark on the axis
MOST_NUMBERS = 20  # the largest number of classes for which a heat map shows its numbers


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart with the texts that belong to it.

    Attributes:
        name: The name of the chart, which is unique on its page.
        title: The caption.
        told: A sentence that says what the chart shows, for people who cannot see the chart.
        figure: The chart.
    """

    name: str
    title: str
    told: str
    figure: go.Figure


def figure_of(traces: Sequence[Any], x: str, y: str, **layout: Any) -> go.Figure:
    """Returns a figure with labelled axes; the page chooses colours of text and background.

    Args:
        traces: The lines, bars or areas.
        x: The label of the horizontal axis.
        y: The label of the vertical axis.
        layout: Further settings of plotly's layout.
    """
    figure = go.Figure(list(traces))
    figure.update_layout(
        template="none",
        height=HEIGHT,
        margin={"l": 60, "r": 15, "t": 30, "b": 50},
        colorway=COLOURS,
        legend=LEGEND,
        hovermode="closest",
    )
    figure.update_xaxes(title=x, automargin=True)
    figure.update_yaxes(title=y, automargin=True)
    figure.update_layout(**layout)
    return figure


def rounds_figure(traces: Sequence[Any], rounds: int, y: str, **layout: Any) -> go.Figure:
    """Returns a figure over the rounds, with a mark at each round if there are few."""
    figure = figure_of(traces, "round", y, **layout)
    if rounds <= MOST_MARKED:
        figure.update_xaxes(dtick=1)
    return figure


def accuracy_chart(lines: Sequence[Line]) -> Chart:
    """Returns the accuracy over the rounds; a round without evaluation has no point."""
    known = [line for line in lines if line["accuracy"] is not None]
    told, images = "No round has measured the accuracy.", "test"
    if known:
        images, last = known[-1].get("measured_on", "test"), 100 * known[-1]["accuracy"]
        told = f"The {images} accuracy over {len(lines)} rounds; it ends at {last:.2f} %."
    trace = go.Scatter(
        x=[line["round"] for line in known],
        y=[100 * line["accuracy"] for line in known],
        mode="lines+markers",
        hovertemplate="round %{x}: %{y:.2f} %<extra></extra>",
    )
    return Chart(
        name="accuracy",
        title="Accuracy after each round",
        told=told,
        figure=rounds_figure([trace], len(lines), f"{images} accuracy (%)"),
    )


def loss_chart(lines: Sequence[Line]) -> Chart:
    """Returns the training loss and the loss of the evaluation over the rounds."""
    kinds = {"training": "train_loss", "evaluation": "loss"}
    traces = [
        go.Scatter(
            x=[line["round"] for line in lines if line[key] is not None],
            y=[line[key] for line in lines if line[key] is not None],
            name=name,
            mode="lines+markers",
            hovertemplate="round %{x}: %{y:.4g}<extra>" + name + "</extra>",
        )
        for name, key in kinds.items()
    ]
    return Chart(
        name="loss",
        title="Mean cross-entropy in each round",
        told="The training loss of the clients and the loss of the evaluation over the rounds.",
        figure=rounds_figure(traces, len(lines), "loss"),
    )


def bytes_chart(lines: Sequence[Line], wire: Line) -> Chart:
    """Returns the bytes sent up to each round, and the bytes of full fine-tuning."""
    sent = list(
        accumulate(
            (line["uplink_bytes"] + line["downlink_bytes"] for line in lines),
            initial=wire["greeting_bytes"],
        )
    )
    full = reference_sums(len(lines), wire)
    positive = [value for value in (*sent, *full) if value > 0]
    wide = max(positive) > WIDE * min(positive)
    traces = [
        go.Scatter(
            x=list(range(len(values))),
            y=[value / MEGABYTE or None for value in values],  # a logarithmic axis has no zero
            name=name,
            mode="lines+markers",
            line=line,
            hovertemplate="round %{x}: %{y:.4g} MB<extra>" + name + "</extra>",
        )
        for name, values, line in (("this run", sent, {}), ("full fine-tuning", full, REFERENCE))
    ]
    return Chart(
        name="bytes",
        title="Megabytes sent up to the end of each round",
        told="The bytes sent in both directions, and those of full fine-tuning by the same "
        f"clients, on a logarithmic axis. The run sends {wire['saving']:.1f} times fewer bytes.",
        figure=rounds_figure(
            traces, len(lines), "megabytes", yaxis_type="log", yaxis_dtick=1 if wide else None
        ),
    )


def reference_sums(rounds: int, wire: Line) -> list[float]:
    """Returns the bytes that full fine-tuning has sent up to the end of each round, from round 0.

    Results of older versions have only the sum, which is then divided equally.

    Example:
        >>> reference_sums(2, {"full_fine_tuning_by_round": [1, 20, 30]})
        [1, 21, 51]
        >>> reference_sums(2, {"full_fine_tuning_bytes": 51})
        [0.0, 25.5, 51.0]
    """
    known = wire.get("full_fine_tuning_by_round")
    if known is not None:
        return list(accumulate(known))
    return [
        wire["full_fine_tuning_bytes"] * number / max(rounds, 1) for number in range(rounds + 1)
    ]


def time_chart(lines: Sequence[Line]) -> Chart:
    """Returns how long each round took."""
    trace = go.Bar(
        x=[line["round"] for line in lines],
        y=[line["seconds"] for line in lines],
        hovertemplate="round %{x}: %{y:.3g} s<extra></extra>",
    )
    return Chart(
        name="time",
        title="Duration of each round",
        told=f"The {len(lines)} rounds took {sum(line['seconds'] for line in lines):.1f} seconds.",
        figure=rounds_figure([trace], len(lines), "seconds"),
    )


def partition_chart(counts: Indices, class_names: Sequence[str]) -> Chart:
    """Returns a heat map: how many training images of each class each client has."""
    trace = go.Heatmap(
        z=counts.tolist(),
        x=_positions(class_names),
        y=list(range(len(counts))),
        colorscale="Blues",
        customdata=[[plain(name) for name in class_names]] * len(counts),
        colorbar={"title": "images", "thickness": 12},
        hovertemplate="client %{y}, %{customdata}: %{z} images<extra></extra>",
    )
    figure = figure_of([trace], "class", "client")
    figure.update_yaxes(autorange="reversed")
    _name_classes(figure.update_xaxes, class_names)
    return Chart(
        name="partition",
        title="Training images of each client and class",
        told=f"{len(counts)} clients have between {counts.sum(axis=1).min():,} and "
        f"{counts.sum(axis=1).max():,} images of {len(class_names)} classes.",
        figure=figure,
    )


def confusion_chart(matrix: Sequence[Sequence[int]], class_names: Sequence[str]) -> Chart:
    """Returns the confusion matrix as a heat map of the shares of each class."""
    counts = np.array(matrix)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    few, names = len(class_names) <= MOST_NUMBERS, list(class_names)
    trace = go.Heatmap(
        z=shares.tolist(),
        x=_positions(class_names),
        y=_positions(class_names),
        text=[[str(images or "") for images in row] for row in counts.tolist()] if few else None,
        texttemplate="%{text}" if few else None,
        customdata=[
            [[plain(true), plain(taken), images] for taken, images in zip(names, row, strict=True)]
            for true, row in zip(names, counts.tolist(), strict=True)
        ],
        colorscale="Blues",
        zmin=0,
        zmax=100,
        colorbar={"title": "%", "thickness": 12},
        showscale=not few,
        hovertemplate="%{customdata[0]} taken for %{customdata[1]}: %{customdata[2]} images, "
        "%{z:.1f} % of the class<extra></extra>",
    )
    figure = figure_of(
        [trace], "predicted class", "true class", height=HEIGHT + 12 * min(len(counts), 30)
    )
    figure.update_yaxes(autorange="reversed")
    _name_classes(figure.update_xaxes, class_names)
    _name_classes(figure.update_yaxes, class_names)
    return Chart(
        name="confusion",
        title="Confusion matrix of the final model",
        told=f"Of {counts.sum():,} test images, {counts.trace():,} are on the diagonal: they are "
        "classified correctly. The table of classes has the figures.",
        figure=figure,
    )


def calibration_chart(calibration: Line) -> Chart:
    """Returns the accuracy over the confidence, in bins, and the line on which both are equal."""
    bins = len(calibration["images"])
    centres = [100 * (number + 0.5) / bins for number in range(bins)]
    shown = [None if share is None else 100 * share for share in calibration["accuracy"]]
    traces = [
        go.Bar(
            x=centres,
            y=shown,
            width=90 / bins,
            name="accuracy",
            customdata=calibration["images"],
            hovertemplate="confidence near %{x:.0f} %: accuracy %{y:.1f} % of %{customdata} images"
            "<extra></extra>",
        ),
        go.Scatter(
            x=[0, 100], y=[0, 100], mode="lines", name="exact", line=REFERENCE, hoverinfo="skip"
        ),
    ]
    figure = figure_of(traces, "confidence (%)", "accuracy (%)")
    figure.update_xaxes(range=[0, 100])
    figure.update_yaxes(range=[0, 100])
    return Chart(
        name="calibration",
        title="Accuracy of the images in each bin of confidence",
        told="The expected calibration error is "
        f"{100 * calibration['expected_error']:.2f} percentage points ({bins} bins).",
        figure=figure,
    )


def clients_chart(told: Line) -> Chart:
    """Returns the accuracy of each client, from the worst to the best."""
    order = sorted(range(len(told["client"])), key=lambda k: told["accuracy"][k])
    trace = go.Bar(
        x=list(range(1, len(order) + 1)),
        y=[100 * told["accuracy"][k] for k in order],
        customdata=[[told["client"][k], told["images"][k]] for k in order],
        hovertemplate="client %{customdata[0]}: %{y:.2f} % of %{customdata[1]} images"
        "<extra></extra>",
    )
    return Chart(
        name="clients",
        title="Accuracy of the final model at each client, the worst first",
        told=f"The accuracies of {len(order)} clients have the mean {100 * told['mean']:.2f} % and "
        f"the standard deviation {100 * told['standard_deviation']:.2f} percentage points.",
        figure=figure_of([trace], "clients, ordered by accuracy", "accuracy (%)"),
    )


def failures_chart(lines: Sequence[Line]) -> Chart:
    """Returns how many updates failed in each round."""
    most = max(len(line["failures"]) for line in lines)
    trace = go.Bar(
        x=[line["round"] for line in lines],
        y=[len(line["failures"]) for line in lines],
        hovertemplate="round %{x}: %{y} failed<extra></extra>",
        marker={"color": COLOURS[4]},
    )
    return Chart(
        name="failures",
        title="Updates that failed in each round",
        told="How many updates did not arrive or were refused in each round.",
        figure=rounds_figure(
            [trace], len(lines), "failed updates", yaxis_dtick=1 if most <= MOST_MARKED else None
        ),
    )


def _positions(class_names: Sequence[str]) -> list[int]:
    return list(range(len(class_names)))


def _name_classes(update_axis: Any, class_names: Sequence[str]) -> None:
    """Writes the names of the classes on an axis, if there are few."""
    if len(class_names) <= MOST_NUMBERS:
        names = [plain(name if len(name) <= 16 else f"{name[:15]}…") for name in class_names]
        update_axis(tickmode="array", tickvals=_positions(class_names), ticktext=names)


def plain(text: str) -> str:
    """Returns a text that plotly shows as it is: plotly reads some HTML in texts.

    Example:
        >>> plain("<b>cats & dogs</b>")
        '&lt;b&gt;cats &amp; dogs&lt;/b&gt;'
    """
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

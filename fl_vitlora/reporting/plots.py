"""The plots of a run and of a comparison.

The plots of a run show the accuracy over the rounds, over the megabytes sent and over the transfer
time. Other plots of a run show the megabytes sent over the rounds, the labels of each client's
images, and the confusion matrix. The plots of a comparison show the accuracy over the megabytes
sent, and over the share of trained parameters. Each cell of the comparison is a point in these
plots.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from fl_vitlora.config.grid_labels import axes_of
from fl_vitlora.data.sources import Indices
from fl_vitlora.reporting.statistics import Summary
from fl_vitlora.storage.files import write_atomically

MEGABYTE = 1e6
MOST_NAMED_CLASSES = 20
LONGEST_CLASS_NAME = 16  # characters
LABELS = "label_distribution.csv"
MOST_BARS = 100  # the largest number of bars that can be seen separately
MARKERS = "osD^vP*X<>"
COLOURS = 10  # the number of colours in matplotlib's default cycle
LONGEST_LEGEND = 22  # the largest number of labels in one column of a legend

Form = Literal["png", "pdf", "svg"]
Look = tuple[str, str]
Style = dict[str, Any]
WIDE = 10.0  # an axis is logarithmic if the ratio of largest to smallest value exceeds this


def plot_accuracy(
    folder: Path,
    accuracy: Sequence[float | None],
    cumulative: Sequence[int],
    seconds: Sequence[float],
    *,
    images: str = "test",
    form: Form = "png",
) -> list[Path]:
    """Draws three plots: the accuracy over the rounds, the megabytes sent, and the transfer time.

    Args:
        folder: The folder for the plots.
        accuracy: The accuracy after each round, in [0, 1]; None for a round without evaluation,
            which has no point.
        cumulative: The bytes sent up to the end of each round, both directions together.
        seconds: The transfer time of the bytes in `cumulative`, in seconds.
        images: The images on which the accuracy was measured, "test" or "validation".
        form: The format of the files.

    Returns:
        The files.
    """
    files = []
    rounds = range(1, len(accuracy) + 1)
    megabytes = [total / MEGABYTE for total in cumulative]
    for name, x, label in (
        ("accuracy_over_rounds", rounds, "round"),
        ("accuracy_over_megabytes", megabytes, "megabytes sent, both directions"),
        ("accuracy_over_transfer", seconds, "seconds on the wire, training not included"),
    ):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        points = [(at, 100 * y) for at, y in zip(x, accuracy, strict=True) if y is not None]
        axes.plot([at for at, _ in points], [y for _, y in points], marker=".")
        axes.set(xlabel=label, ylabel=f"{images} accuracy (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=label == "round"))
        axes.grid(alpha=0.3)
        files.append(_write(figure, folder, name, form))
    return files


def plot_traffic(folder: Path, lines: Sequence[Mapping[str, Any]], form: Form = "png") -> Path:
    """Draws the bytes sent up to the end of each round, by direction and by group of tensors.

    Args:
        folder: The folder for the plot.
        lines: The lines of `rounds.jsonl`, one for each round.
        form: The format of the file.

    Returns:
        The file.
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    ways = {way: [line[f"{way}_bytes"] for line in lines] for way in ("uplink", "downlink")}
    for axes, kinds in zip(panels, (ways, traffic(lines)), strict=True):
        sums = [np.cumsum(sizes) / MEGABYTE for sizes in kinds.values()]
        axes.stackplot(range(1, len(lines) + 1), sums, labels=list(kinds))
        axes.set(xlabel="round", ylabel="megabytes sent")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper left", fontsize="small")
        axes.grid(alpha=0.3)
    return _write(figure, folder, "megabytes_over_rounds", form)


def traffic(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Returns the number of bytes sent in each round, by group of tensors.

    A group is, for example, the head. The entry ``overhead`` has all bytes that carry no tensor.

    Example:
        >>> traffic([{"uplink_bytes": 9, "downlink_bytes": 1, "payload_by_group": {"head": 4}}])
        {'head': [4], 'overhead': [6]}
    """
    groups = dict.fromkeys(group for line in lines for group in line["payload_by_group"])
    sizes = {g: [line["payload_by_group"].get(g, 0) for line in lines] for g in groups}
    rest = [
        line["uplink_bytes"] + line["downlink_bytes"] - sum(line["payload_by_group"].values())
        for line in lines
    ]
    return sizes | {"overhead": rest}


def plot_labels(
    folder: Path, counts: Indices, class_names: Sequence[str], form: Form = "png"
) -> Path:
    """Draws how many images of each class each client holds.

    Args:
        folder: The folder for the plot.
        counts: The numbers of images, int64 (clients, classes).
        class_names: The name of each class, in the order of the columns.
        form: The format of the file.

    Returns:
        The file.
    """
    figure = Figure(figsize=(7, max(3.0, min(12.0, 0.25 * len(counts)))), layout="constrained")
    axes = figure.subplots()
    clients, left = np.arange(len(counts)), np.zeros(len(counts), dtype=np.int64)
    for column, name in zip(counts.T, map(literal, class_names), strict=True):
        if len(counts) <= MOST_BARS:
            axes.barh(clients, column, left=left, label=name)
        else:  # many bars are drawn as one area, without gaps
            axes.fill_betweenx(clients, left, left + column, step="mid", label=name)
        left = left + column
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.invert_yaxis()
    axes.set(xlabel="training images", ylabel="client")
    if len(class_names) <= MOST_NAMED_CLASSES:
        axes.legend(title="label", loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    return _write(figure, folder, "label_distribution", form)


def write_labels(folder: Path, counts: Indices, class_names: Sequence[str]) -> None:
    """Writes the numbers that `plot_labels` draws, as a table in the same folder.

    The table `label_distribution.csv` has a line for each client and class with an image.

    Args:
        folder: The folder for the table.
        counts: The numbers of images, int64 (clients, classes).
        class_names: The name of each class, in the order of the columns.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["client", "class", "images"])
    for client, label in zip(*counts.nonzero(), strict=True):
        table.writerow([client, class_names[label], counts[client, label]])
    write_atomically(folder / LABELS, text.getvalue())


def plot_confusion(
    folder: Path, matrix: Indices, class_names: Sequence[str], form: Form = "png"
) -> Path:
    """Draws the confusion matrix: how many images of each class are taken for which class.

    Args:
        folder: The folder for the plot.
        matrix: The numbers of images, int64 (classes, classes). A row has the images of one class.
        class_names: The name of each class.
        form: The format of the file.

    Returns:
        The file.
    """
    few = len(class_names) <= MOST_NAMED_CLASSES
    side = 2.5 + 0.35 * len(class_names) if few else 9.0
    figure = Figure(figsize=(side + 1.0, side), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="share of the images of the class")
    axes.set(xlabel="predicted class", ylabel="true class")
    if few:
        names = [literal(shorten(name, LONGEST_CLASS_NAME)) for name in class_names]
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        for (row, column), images in np.ndenumerate(matrix):
            if images:
                colour = "white" if shares[row, column] > 0.5 else "black"
                style: Style = {"ha": "center", "va": "center", "fontsize": "x-small"}
                axes.text(column, row, str(images), color=colour, **style)
    return _write(figure, folder, "confusion_matrix", form)


def literal(name: str) -> str:
    r"""Returns a name that matplotlib shows as it is: between dollar signs it reads formulas.

    Example:
        >>> print(literal("$5 or $10"))
        \$5 or \$10
    """
    return name.replace("$", r"\$")


def shorten(name: str, most: int) -> str:
    """Returns a name that has at most `most` characters; the end of a longer name is cut off.

    Example:
        >>> shorten("lark", 4), shorten("starling", 4)
        ('lark', 'sta…')
    """
    return name if len(name) <= most else f"{name[: most - 1]}…"


def plot_comparison(
    folder: Path, cells: Sequence[Summary], title: str, form: Form = "png"
) -> list[Path]:
    """Draws the accuracy over the megabytes sent and over the share of trained parameters.

    A point shows one cell of the comparison: one combination of settings. The colour of a point
    shows the value of the setting that has the most values in the comparison. The marker of a point
    shows the values of all other settings.

    Args:
        folder: The folder for the plots.
        cells: The cells that have a result. The error bars show the standard deviations of the
            cells.
        title: The title of the plots. If `title` is empty, the plots have no title.
        form: The format of the files.

    Returns:
        The files.
    """
    files = []
    megabytes = [cell.sent / MEGABYTE for cell in cells]
    shares = [100 * cell.trainable / cell.total for cell in cells]
    for name, x, label in (
        ("accuracy_over_megabytes", megabytes, "megabytes sent in a run, both directions"),
        ("accuracy_over_trained_share", shares, "share of the parameters that is trained (%)"),
    ):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        _draw_cells(axes, x, cells)
        axes.set(xlabel=label, ylabel="test accuracy (%)", title=literal(title))
        if max(x) > WIDE * min(x) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3)
        files.append(_write(figure, folder, name, form))
    return files


def _write(figure: Figure, folder: Path, name: str, form: Form) -> Path:
    """Writes a plot to a file, completely or not at all, and returns the file."""
    picture, path = io.BytesIO(), folder / f"{name}.{form}"
    figure.savefig(picture, format=form, dpi=150)
    write_atomically(path, picture.getvalue())
    return path


def _draw_cells(axes: Axes, x: Sequence[float], cells: Sequence[Summary]) -> None:
    """Draws a point with its error bar for each cell, and a legend of colours and markers."""
    names = axes_of(cell.labels for cell in cells)
    coloured = max(names, key=lambda axis: len(names[axis]), default="")
    looks = [
        (
            cell.labels.get(coloured, ""),
            ", ".join(label for axis, label in cell.labels.items() if axis != coloured),
        )
        for cell in cells
    ]
    styles = styles_of(looks)
    for place, cell, look in zip(x, cells, looks, strict=True):
        if cell.accuracy is not None:
            axes.errorbar(
                place, cell.accuracy.mean, yerr=cell.accuracy.spread, capsize=3, **styles[look]
            )
    handles = [
        Line2D([], [], ls="", label=literal(label), **look) for label, look in legend_of(styles)
    ]
    if handles:
        columns = 1 + (len(handles) - 1) // LONGEST_LEGEND
        axes.legend(
            handles=handles,
            loc="center left",
            bbox_to_anchor=(1, 0.5),
            fontsize="small",
            ncols=columns,
        )


def styles_of(looks: Iterable[Look]) -> dict[Look, Style]:
    """Returns a colour and a marker for each look; two looks differ in the colour or the marker.

    Args:
        looks: For each point, the value that its colour shows, and the value that its marker shows.

    Example:
        >>> styles = styles_of([("lora", "plain"), ("head", "plain"), ("lora", "encrypted")])
        >>> styles[("head", "plain")]
        {'color': 'C1', 'marker': 'o'}
    """
    hues, shapes = (list(dict.fromkeys(values)) for values in zip(*looks, strict=True))
    if len(shapes) == 1:  # the marker distinguishes labels of the same colour
        return {
            (hue, shapes[0]): {
                "color": f"C{i % COLOURS}",
                "marker": MARKERS[i // COLOURS % len(MARKERS)],
            }
            for i, hue in enumerate(hues)
        }
    few = len(hues) <= COLOURS
    rainbow = colormaps["turbo"].resampled(len(hues))
    return {
        (hue, shape): {
            "color": f"C{i}" if few else rainbow(i),
            "marker": MARKERS[j % len(MARKERS)],
        }
        for i, hue in enumerate(hues)
        for j, shape in enumerate(shapes)
    }


def legend_of(styles: Mapping[Look, Style]) -> list[tuple[str, Style]]:
    """Returns the lines of a legend: labels with styles, first for colours, then for markers."""
    if len({shape for _, shape in styles}) == 1:
        return [(hue, style) for (hue, _), style in styles.items() if hue]
    colours = {hue: {"color": s["color"], "marker": "o"} for (hue, _), s in styles.items()}
    markers = {shape: {"color": "grey", "marker": s["marker"]} for (_, shape), s in styles.items()}
    return [(label, style) for label, style in [*colours.items(), *markers.items()] if label]

"""The plots of a run.

Three plots show the accuracy: over the rounds, over the megabytes sent, and over the transfer time.
Other plots show the megabytes sent over the rounds, the labels of each client's images, and the
confusion matrix.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fl_vitlora.data.sources import Indices
from fl_vitlora.storage.files import PUBLIC, write_atomically

MEGABYTE = 1e6
MOST_NAMED_CLASSES = 20
LONGEST_CLASS_NAME = 16  # characters
LABELS = "label_distribution.csv"
MOST_BARS = 100  # the largest number of bars that can be seen separately

Form = Literal["png", "pdf", "svg"]
Style = dict[str, Any]


def plot_accuracy(
    folder: Path,
    accuracy: Sequence[float | None],
    cumulative: Sequence[int],
    seconds: Sequence[float],
    images: str = "test",
    *,
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
        files.append(write_plot(figure, folder, name, form))
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
    return write_plot(figure, folder, "megabytes_over_rounds", form)


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
    return write_plot(figure, folder, "label_distribution", form)


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
    return write_plot(figure, folder, "confusion_matrix", form)


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


def write_plot(figure: Figure, folder: Path, name: str, form: Form, mode: int = PUBLIC) -> Path:
    """Writes a plot to a file, completely or not at all, and returns the file."""
    picture, path = io.BytesIO(), folder / f"{name}.{form}"
    figure.savefig(picture, format=form, dpi=150)
    write_atomically(path, picture.getvalue(), mode=mode)
    return path

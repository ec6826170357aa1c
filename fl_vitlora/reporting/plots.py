"""The pictures of a run: accuracy over rounds, accuracy over megabytes, labels of each client."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fl_vitlora.data.sources import Indices

MEGABYTE = 1e6
MOST_NAMED_CLASSES = 20


def plot_accuracy(folder: Path, accuracy: Sequence[float], cumulative: Sequence[int]) -> None:
    """Draws accuracy over rounds and over the bytes sent so far, in both directions.

    Args:
        folder: Where to.
        accuracy: After each round, in [0, 1].
        cumulative: Bytes up to the end of each round.
    """
    rounds = range(1, len(accuracy) + 1)
    megabytes = [total / MEGABYTE for total in cumulative]
    for name, x, label in (
        ("accuracy_over_rounds", rounds, "round"),
        ("accuracy_over_megabytes", megabytes, "megabytes sent, both directions"),
    ):
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(list(x), [100 * value for value in accuracy], marker=".")
        axes.set(xlabel=label, ylabel="test accuracy (%)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=label == "round"))
        axes.grid(alpha=0.3)
        figure.savefig(folder / f"{name}.png", dpi=150)


def plot_labels(folder: Path, counts: Indices, class_names: Sequence[str]) -> None:
    """Draws how many images of each class each client holds.

    Args:
        folder: Where to.
        counts: int64 (K, classes).
        class_names: One for each column.
    """
    figure = Figure(figsize=(7, max(3.0, min(12.0, 0.25 * len(counts)))), layout="constrained")
    axes = figure.subplots()
    left = np.zeros(len(counts), dtype=np.int64)
    for column, name in zip(counts.T, class_names, strict=True):
        axes.barh(np.arange(len(counts)), column, left=left, label=name)
        left += column
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.invert_yaxis()
    axes.set(xlabel="training images", ylabel="client")
    if len(class_names) <= MOST_NAMED_CLASSES:
        axes.legend(title="label", loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    figure.savefig(folder / "label_distribution.png", dpi=150)

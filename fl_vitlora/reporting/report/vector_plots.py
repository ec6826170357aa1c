"""Draws the plots of a run or a comparison again, as vector pictures, from their folder alone."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np

from fl_vitlora.reporting.comparison_plots import plot_comparison
from fl_vitlora.reporting.grid_folder import GRID, read_comparison
from fl_vitlora.reporting.plots import (
    Form,
    plot_accuracy,
    plot_confusion,
    plot_labels,
    plot_traffic,
)
from fl_vitlora.reporting.report.run_files import read_run
from fl_vitlora.reporting.run_folder import PLOTS
from fl_vitlora.storage.files import make_folder


def write_vector_plots(folder: Path, form: Form) -> list[Path]:
    """Writes the plots of a folder in another format, beside the plots that are there.

    Args:
        folder: The folder of a finished run or of a comparison.
        form: The format, "pdf" or "svg".

    Returns:
        The files.

    Raises:
        UserError: If a file in the folder cannot be read.
    """
    make_folder(folder / PLOTS)
    if (folder / GRID).is_file():
        return list(_of_comparison(folder, form))
    return list(_of_run(folder, form))


def _of_comparison(folder: Path, form: Form) -> Iterator[Path]:
    comparison = read_comparison(folder)
    cells = [summary for summary in comparison.summaries if summary.accuracy]
    if cells:
        yield from plot_comparison(folder / PLOTS, cells, comparison.title, form)


def _of_run(folder: Path, form: Form) -> Iterator[Path]:
    files, plots = read_run(folder), folder / PLOTS
    lines, classes = files.lines, files.result.get("classification")
    yield from plot_accuracy(
        plots,
        [line["accuracy"] for line in lines],
        list(accumulate(line["uplink_bytes"] + line["downlink_bytes"] for line in lines)),
        list(accumulate(line["transfer_seconds"] for line in lines)),
        images=next((line["measured_on"] for line in lines if line.get("measured_on")), "test"),
        form=form,
    )
    yield plot_traffic(plots, lines, form)
    if files.counts is not None:
        yield plot_labels(plots, files.counts, files.class_names, form)
    if classes and classes["confusion_matrix"] is not None:
        matrix = np.array(classes["confusion_matrix"])
        yield plot_confusion(plots, matrix, files.class_names, form)

"""Writes the files of a run that has ended: plots, traffic, model and result."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from fl_vitlora.data.views import part_of
from fl_vitlora.experiment.classification import confusion
from fl_vitlora.experiment.record import Record
from fl_vitlora.experiment.watching import Line
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.reporting.run_folder import RESULT, RunFolder


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of the server loop.

    Attributes:
        model: The final model.
        begin: The value of `time.perf_counter()` before the first round.
        end: The value of `time.perf_counter()` after the last round.
    """

    model: GlobalModel
    begin: float
    end: float


def write_files(
    folder: RunFolder,
    record: Record,
    outcome: Outcome,
    *,
    class_names: Sequence[str],
    result: Line,
    started: float,
) -> None:
    """Writes the files of a run that has ended.

    The file `result.json` is written last, because this file marks a run as finished.

    Args:
        folder: The run folder.
        record: The record of the run.
        outcome: The result of the server loop.
        class_names: The names of the classes, in the order of the head's outputs.
        result: The content of `result.json`; this function adds the times.
        started: The value of `time.perf_counter()` when the program began.
    """
    _plot(folder, record, class_names)
    folder.write("communication.csv", record.ledger.to_csv())
    folder.write_model(outcome.model.stored(), class_names=class_names)
    result["seconds"] = {
        "setup": round(outcome.begin - started, 3),
        "training": round(outcome.end - outcome.begin, 3),
        "total": round(time.perf_counter() - started, 3),
    }
    folder.write_json(RESULT, result)


def _plot(folder: RunFolder, record: Record, class_names: Sequence[str]) -> None:
    """Plots the accuracy and the traffic of all rounds, and the confusion matrix."""
    from fl_vitlora.reporting.plots import (  # imports matplotlib
        plot_accuracy,
        plot_confusion,
        plot_traffic,
    )

    decisions = record.details.decisions
    if decisions is not None:
        plot_confusion(folder.plots, confusion(decisions, len(class_names)), class_names)
    lines = record.lines
    plot_accuracy(
        folder.plots,
        [line["accuracy"] for line in lines],
        list(accumulate(line["uplink_bytes"] + line["downlink_bytes"] for line in lines)),
        list(accumulate(line["transfer_seconds"] for line in lines)),
        images=part_of(record.view),
    )
    plot_traffic(folder.plots, lines)

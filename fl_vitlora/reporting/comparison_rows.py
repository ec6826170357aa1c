"""The rows of a comparison's CSV tables: runs, cells, and differences between cells."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from fl_vitlora.reporting.statistics import Difference, Record, Summary

Row = Mapping[str, object]

WIRE = (
    "uplink_bytes",
    "downlink_bytes",
    "full_fine_tuning_bytes",
    "saving",
    "saving_with_flower",
)
VALIDATED = ("validation_accuracy", "validation_images", "best_round", "best_test_accuracy")
# For each column, the part of a result and the name in this part that have its value.
DETAILED = {
    "macro_f1": ("classification", "macro_f1"),
    "worst_tenth": ("client_accuracy", "worst_tenth"),
    "client_deviation": ("client_accuracy", "standard_deviation"),
}
DETAILS = (*DETAILED, "calibration_error")
RUN = (
    "seed",
    "accuracy",
    "loss",
    "test_images",
    *VALIDATED,
    *DETAILS,
    "aggregation_error",
    *WIRE,
    "trainable_parameters",
    "total_parameters",
    "seconds",
    "folder",
    "problem",
)
CELL = (
    "seeds",
    "accuracy_percent",
    "standard_deviation",
    "validation_percent",
    "validation_deviation",
    "macro_f1_percent",
    "macro_f1_deviation",
    "worst_tenth_percent",
    "worst_tenth_deviation",
    "trainable_parameters",
    "total_parameters",
    "sent_bytes",
    "saving",
    "saving_with_flower",
    "median_seconds",
    "aggregation_error_percent",
    "aggregation_error_deviation",
    "bytes_to_target",
    "bytes_to_target_deviation",
    "reached_target",
    "problem",
)
DIFFERENCE = (
    "compared_axis",
    "baseline",
    "difference_points",
    "standard_error",
    "validation_points",
    "validation_error",
    "pairs",
)


def run_rows(records: Sequence[Record], root: Path) -> Iterator[Row]:
    """Yields the row of `runs.csv` for each run. Paths of folders are relative to ``root``."""
    for run in records:
        row: dict[str, object] = {**run.labels, "seed": run.seed, "problem": run.problem}
        if run.result is not None and run.folder is not None:
            row |= {name: run.result[name] for name in RUN if name in run.result}
            row |= _validated(run.result)
            row |= _detailed(run.result)
            row |= {name: run.result["communication"][name] for name in WIRE}
            row |= {"seconds": run.result["seconds"]["total"]}
            row |= {"folder": run.folder.relative_to(root).as_posix()}
        yield row


def _validated(result: Row) -> Row:
    """Returns the validation columns of a run; empty if the run has no validation images."""
    score, best = result.get("validation"), result.get("best")
    if not isinstance(score, Mapping):
        return {}
    chosen = best if isinstance(best, Mapping) else {}
    values = score["accuracy"], score["images"], chosen.get("round"), chosen.get("test_accuracy")
    return dict(zip(VALIDATED, values, strict=True))


def _detailed(result: Row) -> Row:
    """Returns the columns about classes, clients and calibration, as far as they are known."""
    found: dict[str, object] = {}
    for column, (part, name) in DETAILED.items():
        known = result.get(part)
        found[column] = known.get(name) if isinstance(known, Mapping) else None
    classes = result.get("classification")
    if isinstance(classes, Mapping):
        found["calibration_error"] = classes["calibration"]["expected_error"]
    return found


def cell_rows(summaries: Sequence[Summary]) -> Iterator[Row]:
    """Yields the row of `table.csv` for each cell: runs that differ only in their seed."""
    for cell in summaries:
        row: dict[str, object] = {**cell.labels, "seeds": cell.seeds}
        row |= {"problem": "; ".join(cell.problems)}
        if cell.accuracy is not None:
            row |= {
                "accuracy_percent": cell.accuracy.mean,
                "standard_deviation": cell.accuracy.spread,
                "trainable_parameters": cell.trainable,
                "total_parameters": cell.total,
                "sent_bytes": cell.sent,
                "saving": cell.saving,
                "saving_with_flower": cell.saving_with_flower,
                "median_seconds": cell.seconds,
            }
        if cell.validation is not None:
            row |= {
                "validation_percent": cell.validation.mean,
                "validation_deviation": cell.validation.spread,
            }
        if cell.macro_f1 is not None:
            row |= {
                "macro_f1_percent": cell.macro_f1.mean,
                "macro_f1_deviation": cell.macro_f1.spread,
            }
        if cell.worst_tenth is not None:
            row |= {
                "worst_tenth_percent": cell.worst_tenth.mean,
                "worst_tenth_deviation": cell.worst_tenth.spread,
            }
        if cell.aggregation_error is not None:
            row |= {
                "aggregation_error_percent": cell.aggregation_error.mean,
                "aggregation_error_deviation": cell.aggregation_error.spread,
            }
        if cell.targets:
            row |= {"reached_target": cell.reached}
        if cell.to_target is not None:
            row |= {
                "bytes_to_target": cell.to_target.mean,
                "bytes_to_target_deviation": cell.to_target.spread,
            }
        yield row


def difference_rows(differences: Sequence[Difference]) -> Iterator[Row]:
    """Yields the row of `differences.csv` for each difference."""
    for difference in differences:
        yield {
            **difference.others,
            difference.axis: difference.label,
            "compared_axis": difference.axis,
            "baseline": difference.baseline,
            "difference_points": difference.accuracy.mean,
            "standard_error": difference.accuracy.spread,
            "pairs": difference.pairs,
            **_validation_of(difference),
        }


def _validation_of(difference: Difference) -> Row:
    """Returns the columns with the difference in validation accuracy; empty if it is unknown."""
    known = difference.validation
    if known is None:
        return {}
    return {"validation_points": known.mean, "validation_error": known.spread}


def to_csv(columns: Sequence[str], rows: Iterable[Row]) -> str:
    r"""Returns rows as comma-separated values.

    If a row has no value for a column, the field is empty.

    Example:
        >>> to_csv(["images", "seed"], [{"images": "a,b", "seed": 0}, {"seed": 1}])
        'images,seed\n"a,b",0\n,1\n'
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()

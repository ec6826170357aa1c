"""Statistics of a comparison: a summary of each cell over its seeds, and differences of cells.

A cell is a set of runs that differ only in their seed. An axis is a setting that differs between
the cells, and a label is one of its values. Differences are paired: runs with the same seed are
compared with each other.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_vitlora.config.grid_labels import Labels

Key = tuple[tuple[str, str], ...]  # the sorted labels of a cell, used as a key of a dictionary


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run of a comparison: its result, or the reason why the run has no result.

    Attributes:
        labels: For each axis (a setting that differs between runs), the value in this run.
        seed: The seed of the run.
        result: The content of `result.json`; None if the run has no result.
        folder: The run folder; None if the run has no folder.
        problem: The reason why the run has no result; empty if the run has a result.
        failed: True if the run failed. A run that has a result, or whose settings were refused, has
            not failed.
    """

    labels: Labels
    seed: int
    result: Mapping[str, Any] | None = None
    folder: Path | None = None
    problem: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Estimate:
    """The mean and the spread of some values.

    Attributes:
        mean: The mean of the values.
        spread: The standard deviation of the values, or the standard error of their mean. The
            spread is None if there is only one value.
    """

    mean: float
    spread: float | None

    def __str__(self) -> str:
        """Returns a text with the mean and the spread, each with two decimals."""
        return f"{self.mean:.2f}" + ("" if self.spread is None else f" ± {self.spread:.2f}")

    def scaled(self, factor: float) -> Estimate:
        """Returns the mean and the spread multiplied by a factor, to change their unit."""
        return Estimate(self.mean * factor, None if self.spread is None else self.spread * factor)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The summary of a cell (runs that differ only in their seed) over its seeds.

    Attributes:
        labels: For each axis (a setting that differs between cells), the value in this cell.
        seeds: The number of runs with a result.
        accuracy: The test accuracy in percent; None if no run has a result.
        validation: The validation accuracy in percent; None if a run has no validation accuracy.
        macro_f1: The mean of F1 over the classes in percent; None if a run has none, because its
            clients evaluate.
        worst_tenth: The accuracy of the worst tenth of the clients in percent; None if a run has
            none, because its clients do not evaluate.
        trainable: The number of parameters that are trained and exchanged.
        total: The number of parameters of the whole model.
        sent: The mean number of bytes sent, both directions together.
        saving: The bytes that full fine-tuning would send, divided by the bytes sent; the mean over
            the runs.
        saving_with_flower: The ratio `saving`, but both numbers include the bytes that Flower adds
            to messages.
        seconds: The median duration of a run, in seconds.
        aggregation_error: The distance of the new low-rank products from the mean of the clients'
            products, in percent of the distance by which this mean moved in a round. The value is
            None if no run has an aggregation error.
        targets: The number of runs that had a target accuracy.
        reached: The number of runs that reached their target accuracy.
        to_target: The bytes that a run had sent when it reached its target accuracy; None if no run
            reached its target accuracy.
        problems: The reasons why runs have no result, each reason once.
    """

    labels: Labels
    seeds: int
    accuracy: Estimate | None = None
    validation: Estimate | None = None
    macro_f1: Estimate | None = None
    worst_tenth: Estimate | None = None
    trainable: int = 0
    total: int = 0
    sent: float = 0.0
    saving: float = 0.0
    saving_with_flower: float = 0.0
    seconds: float = 0.0
    aggregation_error: Estimate | None = None
    targets: int = 0
    reached: int = 0
    to_target: Estimate | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The difference in accuracy between two cells that differ on one axis only.

    Attributes:
        axis: The axis: the setting in which the two cells differ.
        label: The value of the setting `axis` in the first cell.
        baseline: The value of the setting `axis` in the second cell, which is called the baseline.
        others: The values of the other settings, which both cells share.
        accuracy: The test accuracy of the first cell minus the test accuracy of the baseline, in
            percentage points. The spread of the difference is its standard error.
        validation: The validation accuracy of the first cell minus the validation accuracy of the
            baseline, in percentage points; None if a run has no validation accuracy.
        pairs: The number of seeds that both cells have in common.
    """

    axis: str
    label: str
    baseline: str
    others: Labels
    accuracy: Estimate
    pairs: int
    validation: Estimate | None = None


def percent(record: Record) -> float:
    """Returns the test accuracy of a run in percent, or NaN if the run has no result."""
    return 100.0 * float(record.result["accuracy"]) if record.result else math.nan


def validation_percent(record: Record) -> float | None:
    """Returns the validation accuracy of a run in percent; None if it was not measured."""
    score = (record.result or {}).get("validation")
    return None if score is None else 100.0 * float(score["accuracy"])


def sent_bytes(result: Mapping[str, Any]) -> int:
    """Returns the number of bytes that a run sent, both directions together."""
    wire = result["communication"]
    return int(wire["uplink_bytes"] + wire["downlink_bytes"])


def deviation(values: Sequence[float]) -> Estimate:
    """Returns the mean of values and their sample standard deviation.

    Example:
        >>> str(deviation([94.0, 96.0, 98.0]))
        '96.00 ± 2.00'
    """
    return Estimate(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)


def standard_error(values: Sequence[float]) -> Estimate:
    """Returns the mean of n values and its standard error: their standard deviation divided by √n.

    Example:
        >>> str(standard_error([1.0, 2.0, 3.0, 2.0]))
        '2.00 ± 0.41'
    """
    known = deviation(values)
    return Estimate(
        known.mean, None if known.spread is None else known.spread / math.sqrt(len(values))
    )


def summarise(records: Iterable[Record]) -> list[Summary]:
    """Returns a summary for each cell, in the order in which the cells appear."""
    return [_summary(runs) for runs in _by_cell(records).values()]


def differences(records: Iterable[Record], baselines: Labels) -> list[Difference]:
    """Compares every cell with the cell that has the baseline's label on one axis.

    On all other axes the two cells have the same labels.

    Args:
        records: The runs of the comparison.
        baselines: For each axis, the label of the baseline.

    Returns:
        A difference for each pair of cells that have a seed in common. Differences from the same
        baseline cell are next to each other, and the largest of these differences comes first. The
        differences are ranked by validation accuracy if it is known for every difference, and
        otherwise by test accuracy.
    """
    cells = _by_cell(records)
    found = []
    for axis, baseline in baselines.items():
        for runs in cells.values():
            labels = runs[0].labels
            others = cells.get(_key({**labels, axis: baseline}), [])
            if labels.get(axis, baseline) == baseline:
                continue
            scores, bases = _scores(runs), _scores(others)
            gains = [scores[seed] - bases[seed] for seed in scores if seed in bases]
            known, known_bases = _validation_scores(runs), _validation_scores(others)
            held = [known[seed] - known_bases[seed] for seed in known if seed in known_bases]
            if gains:
                found.append(
                    Difference(
                        axis=axis,
                        label=labels[axis],
                        baseline=baseline,
                        others={name: label for name, label in labels.items() if name != axis},
                        accuracy=standard_error(gains),
                        pairs=len(gains),
                        validation=standard_error(held) if len(held) == len(gains) else None,
                    )
                )
    return _ranked(found)


def _ranked(found: Iterable[Difference]) -> list[Difference]:
    """Returns differences grouped by baseline cell, with the largest first in each group."""
    found = list(found)
    ranked_by = ranking_of(found)
    groups: dict[tuple[str, Key], list[Difference]] = {}
    for difference in found:
        groups.setdefault((difference.axis, _key(difference.others)), []).append(difference)
    return [
        difference
        for group in groups.values()
        for difference in sorted(group, key=ranked_by, reverse=True)
    ]


def ranking_of(found: Sequence[Difference]) -> Callable[[Difference], float]:
    """Returns the function that ranks differences by validation accuracy or by test accuracy."""
    if is_ranked_by_validation(found):
        return lambda difference: difference.validation.mean if difference.validation else math.nan
    return lambda difference: difference.accuracy.mean


def is_ranked_by_validation(found: Sequence[Difference]) -> bool:
    """Returns True if all differences have a difference in validation accuracy."""
    return bool(found) and all(difference.validation is not None for difference in found)


def _key(labels: Labels) -> Key:
    """Returns the labels of a cell as a key of a dictionary."""
    return tuple(sorted(labels.items()))


def _by_cell(records: Iterable[Record]) -> dict[Key, list[Record]]:
    """Returns the runs of each cell, in the order in which the cells appear."""
    cells: dict[Key, list[Record]] = {}
    for record in records:
        cells.setdefault(_key(record.labels), []).append(record)
    return cells


def _scores(records: Iterable[Record]) -> dict[int, float]:
    """Returns the test accuracy of each run with a result, in percent, by seed."""
    return {record.seed: percent(record) for record in records if record.result}


def _validation_scores(records: Iterable[Record]) -> dict[int, float]:
    """Returns the validation accuracies of runs in percent, by seed, as far as they are known."""
    known = {record.seed: validation_percent(record) for record in records}
    return {seed: percents for seed, percents in known.items() if percents is not None}


def _summary(runs: Sequence[Record]) -> Summary:
    """Returns the summary of the runs of one cell."""
    problems = tuple(dict.fromkeys(run.problem for run in runs if run.problem))
    results = [run.result for run in runs if run.result]
    if not results:
        return Summary(labels=runs[0].labels, seeds=0, problems=problems)
    errors = [result.get("aggregation_error") for result in results]
    known = [100.0 * error for error in errors if error is not None]
    targets = [target for result in results if (target := result.get("target"))]
    held = list(_validation_scores(runs).values())
    spent = [float(target["bytes"]) for target in targets if target["reached"]]
    return Summary(
        labels=runs[0].labels,
        seeds=len(results),
        accuracy=deviation(list(_scores(runs).values())),
        validation=deviation(held) if len(held) == len(results) else None,
        macro_f1=_estimate(results, "classification", "macro_f1"),
        worst_tenth=_estimate(results, "client_accuracy", "worst_tenth"),
        trainable=results[0]["trainable_parameters"],
        total=results[0]["total_parameters"],
        sent=statistics.mean(sent_bytes(result) for result in results),
        saving=_mean_saving(results, "saving"),
        saving_with_flower=_mean_saving(results, "saving_with_flower"),
        seconds=statistics.median(result["seconds"]["total"] for result in results),
        aggregation_error=deviation(known) if known else None,
        targets=len(targets),
        reached=len(spent),
        to_target=deviation(spent) if spent else None,
        problems=problems,
    )


def _estimate(results: Sequence[Mapping[str, Any]], part: str, name: str) -> Estimate | None:
    """Returns the mean and the deviation of a share in percent; None if a result does not have it.

    Args:
        results: The results of the runs of a cell.
        part: The name of the entry of a result that has the share.
        name: The name of the share in this entry.
    """
    found = [(result.get(part) or {}).get(name) for result in results]
    known = [100.0 * float(share) for share in found if share is not None]
    return deviation(known) if len(known) == len(results) else None


def _mean_saving(results: Iterable[Mapping[str, Any]], name: str) -> float:
    """Returns the mean of a ratio over all results; `name` is "saving" or "saving_with_flower"."""
    return statistics.mean(float(result["communication"][name]) for result in results)

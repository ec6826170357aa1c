"""What the runs of a comparison say: each cell over its seeds, and differences paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fl_vitlora.config.grid_labels import Labels

Key = tuple[tuple[str, str], ...]  # labels as a key of a dictionary, in an order of their own


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run of a comparison: what came of it, or why nothing did.

    Attributes:
        labels: Of its cell, by axis.
        seed: Its own.
        result: As in `result.json`.
        folder: Where it lies.
        problem: Why there is no result.
        failed: Whether that is a failure of the run, not a refusal of its settings.
    """

    labels: Labels
    seed: int
    result: Mapping[str, Any] | None = None
    folder: Path | None = None
    problem: str = ""
    failed: bool = False


@dataclass(frozen=True)
class Estimate:
    """A mean, and how far it may be off; a single value does not tell.

    Attributes:
        mean: Of the values.
        spread: Standard deviation of the values, or standard error of their mean.
    """

    mean: float
    spread: float | None

    def __str__(self) -> str:
        """Writes both with two digits."""
        return f"{self.mean:.2f}" + ("" if self.spread is None else f" ± {self.spread:.2f}")

    def scaled(self, factor: float) -> Estimate:
        """Returns the same in another unit."""
        return Estimate(self.mean * factor, None if self.spread is None else self.spread * factor)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A cell over its seeds.

    Attributes:
        labels: By axis.
        seeds: How many runs there are.
        accuracy: In percent; none where there is no run.
        trainable: Parameters that are trained and exchanged.
        total: Parameters of the whole model.
        sent: Bytes in both directions, the mean.
        saving: Bytes of full fine-tuning over those sent, the mean.
        saving_with_flower: The same with what Flower's transport adds to both, the mean.
        seconds: Of a run, the median.
        aggregation_error: Of the low-rank products, in percent of the round's movement; none
            where no run has one.
        targets: How many runs had a target of accuracy.
        reached: How many reached it.
        to_target: Bytes that these had sent by then; none where no run did.
        problems: Why runs are missing, each reason once.
    """

    labels: Labels
    seeds: int
    accuracy: Estimate | None = None
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
    """How much better a cell is than the one that differs from it on one axis alone.

    Attributes:
        axis: That axis.
        label: The cell's label on it.
        baseline: The other one's.
        others: The labels that both have on the other axes.
        accuracy: The difference in points of percent, with its standard error.
        pairs: How many seeds both were run with.
    """

    axis: str
    label: str
    baseline: str
    others: Labels
    accuracy: Estimate
    pairs: int


def percent(record: Record) -> float:
    """Reads the test accuracy of a run that has one."""
    return 100.0 * float(record.result["accuracy"]) if record.result else math.nan


def sent_bytes(result: Mapping[str, Any]) -> int:
    """Adds both directions."""
    wire = result["communication"]
    return int(wire["uplink_bytes"] + wire["downlink_bytes"])


def deviation(values: Sequence[float]) -> Estimate:
    """Takes the mean and the sample standard deviation.

    Example:
        >>> str(deviation([94.0, 96.0, 98.0]))
        '96.00 ± 2.00'
    """
    return Estimate(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)


def standard_error(values: Sequence[float]) -> Estimate:
    """Takes the mean and its standard error, the deviation over the root of their number.

    Example:
        >>> str(standard_error([1.0, 2.0, 3.0, 2.0]))
        '2.00 ± 0.41'
    """
    known = deviation(values)
    return Estimate(
        known.mean, None if known.spread is None else known.spread / math.sqrt(len(values))
    )


def summarise(records: Iterable[Record]) -> list[Summary]:
    """Puts the runs of each cell together, in the order in which the cells appear."""
    return [_summary(runs) for runs in _by_cell(records).values()]


def differences(records: Iterable[Record], baselines: Labels) -> list[Difference]:
    """Compares every cell with the one that has the baseline's label on one axis, else the same.

    Args:
        records: The runs.
        baselines: The label of each axis that others are compared with.

    Returns:
        A difference for each such pair that has a seed in common; those that share axis, baseline
        and other labels stand together, the best first, which ranks them.
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
            if gains:
                found.append(
                    Difference(
                        axis=axis,
                        label=labels[axis],
                        baseline=baseline,
                        others={name: label for name, label in labels.items() if name != axis},
                        accuracy=standard_error(gains),
                        pairs=len(gains),
                    )
                )
    return _ranked(found)


def _ranked(found: Iterable[Difference]) -> list[Difference]:
    """Sorts what is compared with the same cell; which cell comes first stays as it is."""
    groups: dict[tuple[str, Key], list[Difference]] = {}
    for one in found:
        groups.setdefault((one.axis, _key(one.others)), []).append(one)
    return [
        one
        for group in groups.values()
        for one in sorted(group, key=lambda one: one.accuracy.mean, reverse=True)
    ]


def _key(labels: Labels) -> Key:
    return tuple(sorted(labels.items()))


def _by_cell(records: Iterable[Record]) -> dict[Key, list[Record]]:
    cells: dict[Key, list[Record]] = {}
    for record in records:
        cells.setdefault(_key(record.labels), []).append(record)
    return cells


def _scores(records: Iterable[Record]) -> dict[int, float]:
    return {record.seed: percent(record) for record in records if record.result}


def _summary(runs: Sequence[Record]) -> Summary:
    """Sums up the runs of one cell."""
    problems = tuple(dict.fromkeys(run.problem for run in runs if run.problem))
    results = [run.result for run in runs if run.result]
    if not results:
        return Summary(labels=runs[0].labels, seeds=0, problems=problems)
    errors = [result.get("aggregation_error") for result in results]
    known = [100.0 * error for error in errors if error is not None]
    targets = [target for result in results if (target := result.get("target"))]
    spent = [float(target["bytes"]) for target in targets if target["reached"]]
    return Summary(
        labels=runs[0].labels,
        seeds=len(results),
        accuracy=deviation(list(_scores(runs).values())),
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


def _mean_saving(results: Iterable[Mapping[str, Any]], name: str) -> float:
    return statistics.mean(float(result["communication"][name]) for result in results)

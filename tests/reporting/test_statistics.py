"""Means, deviations and paired differences, by numbers that a reader can check by hand."""

from __future__ import annotations

from typing import Any

import pytest

from fl_vitlora.reporting.statistics import (
    Record,
    differences,
    is_ranked_by_validation,
    summarise,
)


def record(
    seed: int,
    accuracy: float,
    seconds: float = 1.0,
    error: float | None = None,
    validation: float | None = None,
    **labels: str,
) -> Record:
    wire = {
        "uplink_bytes": 1_000_000,
        "downlink_bytes": 2_000_000,
        "full_fine_tuning_bytes": 30_000_000,
        "saving": 10.0,
        "saving_with_flower": 8.0,
    }
    result: dict[str, Any] = {
        "accuracy": accuracy,
        "loss": 1.0,
        "aggregation_error": error,
        "trainable_parameters": 10,
        "total_parameters": 1000,
        "communication": wire,
        "seconds": {"total": seconds},
    }
    if validation is not None:
        result["validation"] = {"accuracy": validation, "loss": 1.0, "images": 20}
        result["best"] = {"round": 3, "accuracy": validation, "test_accuracy": accuracy}
    return Record(labels=labels, seed=seed, result=result)


def test_a_cell_is_the_mean_and_the_sample_deviation_of_its_seeds():
    runs = [record(0, 0.90, 3, m="a"), record(1, 0.94, 9, m="a"), record(2, 0.98, 4, m="a")]
    (cell,) = summarise(runs)
    assert cell.accuracy is not None
    assert cell.accuracy.mean == pytest.approx(94)
    assert cell.accuracy.spread == pytest.approx(4)  # root of (16 + 0 + 16) / 2
    assert (cell.seeds, cell.seconds, cell.sent, cell.saving) == (3, 4, 3_000_000, 10)
    assert cell.saving_with_flower == 8
    assert str(cell.accuracy) == "94.00 ± 4.00"


def test_the_aggregation_error_is_told_over_the_runs_that_have_one():
    runs = [record(0, 0.5, error=0.1, m="a"), record(1, 0.5, error=0.3, m="a")]
    (cell,) = summarise([*runs, record(2, 0.5, m="a")])
    assert str(cell.aggregation_error) == "20.00 ± 14.14"  # root of (100 + 100) / 1
    (cell,) = summarise([record(0, 0.5, m="a")])
    assert cell.aggregation_error is None


def test_bytes_to_a_target_are_told_over_the_runs_that_reached_it():
    runs = [record(seed, 0.9, m="a") for seed in range(3)]
    for run, spent in zip(runs, (2_000_000, 4_000_000, None), strict=True):
        assert run.result is not None
        run.result["target"] = {"reached": spent is not None, "bytes": spent}  # type: ignore[index]
    (cell,) = summarise(runs)
    assert (cell.targets, cell.reached) == (3, 2)
    assert cell.to_target is not None
    assert str(cell.to_target.scaled(1e-6)) == "3.00 ± 1.41"  # root of (1 + 1) / 1


def test_one_seed_has_no_deviation():
    (cell,) = summarise([record(0, 0.5, m="a")])
    assert str(cell.accuracy) == "50.00"


def test_a_cell_without_a_result_says_why_once():
    runs = [Record(labels={"m": "a"}, seed=seed, problem="refused: no") for seed in (0, 1)]
    (cell,) = summarise(runs)
    assert (cell.accuracy, cell.seeds, cell.problems) == (None, 0, ("refused: no",))


def test_differences_are_paired_by_seed():
    """The seeds differ by ten points, the methods by 1, 2 and 3: so 2 ± 1 / √3."""
    base = [record(seed, 0.5 + seed / 10, m="a") for seed in (0, 1, 2)]
    other = [record(seed, 0.5 + seed / 10 + (seed + 1) / 100, m="b") for seed in (2, 0, 1)]
    (one,) = differences([*base, *other], {"m": "a"})
    assert (one.axis, one.label, one.baseline, one.pairs) == ("m", "b", "a", 3)
    assert one.accuracy.mean == pytest.approx(2)
    assert one.accuracy.spread == pytest.approx(3**-0.5)


def test_only_common_seeds_are_compared():
    runs = [record(0, 0.5, m="a"), record(1, 0.1, m="a"), record(0, 0.6, m="b")]
    runs += [record(2, 0.9, m="b"), Record(labels={"m": "b"}, seed=1, problem="failed: x")]
    (one,) = differences(runs, {"m": "a"})
    assert (one.pairs, one.accuracy.spread) == (1, None)
    assert one.accuracy.mean == pytest.approx(10)


def test_cells_that_differ_on_two_axes_are_not_compared():
    runs = [record(0, 0.5, m=m, e=e) for m in ("a", "b") for e in ("plain", "all")]
    found = differences(runs, {"m": "a", "e": "plain"})
    assert [(one.axis, one.label, dict(one.others)) for one in found] == [
        ("m", "b", {"e": "plain"}),
        ("m", "b", {"e": "all"}),
        ("e", "all", {"m": "a"}),
        ("e", "all", {"m": "b"}),
    ]


def test_what_is_compared_with_the_same_cell_is_ranked():
    accuracies = {"base": 0.5, "worse": 0.4, "best": 0.7, "better": 0.6}
    runs = [record(0, a, m=m, e="x") for m, a in accuracies.items()]
    runs += [record(0, 1 - a, m=m, e="y") for m, a in accuracies.items()]
    found = [(one.others["e"], one.label) for one in differences(runs, {"m": "base"})]
    assert found == [
        *(("x", label) for label in ("best", "better", "worse")),
        *(("y", label) for label in ("worse", "better", "best")),
    ]


def test_validation_images_rank_if_all_runs_have_them():
    """By the test images b is better, by the validation images c, and these decide."""
    held = {"a": 0.5, "b": 0.6, "c": 0.7}
    runs = [
        record(0, accuracy, validation=held[m], m=m)
        for m, accuracy in (("a", 0.5), ("b", 0.9), ("c", 0.8))
    ]
    found = differences(runs, {"m": "a"})
    assert [one.label for one in found] == ["c", "b"]
    assert [str(one.accuracy) for one in found] == ["30.00", "40.00"]
    assert [str(one.validation) for one in found] == ["20.00", "10.00"]
    assert is_ranked_by_validation(found)
    assert [str(cell.validation) for cell in summarise(runs)] == ["50.00", "60.00", "70.00"]
    runs[1] = record(0, 0.9, m="b")
    found = differences(runs, {"m": "a"})
    assert [one.label for one in found] == ["b", "c"]
    assert not is_ranked_by_validation(found)


def test_a_cell_has_a_validation_accuracy_only_if_all_its_runs_have_one():
    runs = [record(0, 0.5, validation=0.4, m="a"), record(1, 0.5, m="a")]
    (cell,) = summarise(runs)
    assert cell.validation is None
    (cell,) = summarise([runs[0], record(1, 0.5, validation=0.6, m="a")])
    assert str(cell.validation) == "50.00 ± 14.14"


def test_a_cell_whose_counterpart_is_missing_is_not_compared():
    runs = [record(0, 0.5, m="a", e="plain"), record(0, 0.5, m="b", e="all")]
    assert differences(runs, {"m": "a", "e": "plain"}) == []

"""What a comparison shows: rows for programs, Markdown, a terminal's tables, pictures."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from fl_vitlora.reporting.comparison_tables import (
    describe,
    print_report,
    report,
    to_markdown,
    write_plots,
    write_tables,
)
from fl_vitlora.reporting.console import ComparisonDisplay
from fl_vitlora.reporting.statistics import Record
from tests.reporting.test_statistics import record

AXES = {"method": "head", "images": "plain"}


def runs(root: Path) -> list[Record]:
    """Two whole cells, one with a run that failed, one that was refused."""
    told = [
        record(seed, accuracy, method=method, images="plain")
        for method, accuracy in (("head", 0.80), ("lora", 0.90))
        for seed in (0, 1)
    ]
    told = [
        Record(labels=r.labels, seed=r.seed, result=r.result, folder=root / f"run{i}")
        for i, r in enumerate(told)
    ]
    lora = {"method": "lora", "images": "plain"}
    told.append(Record(labels=lora, seed=2, problem="failed: the loss", failed=True))
    told.append(Record(labels={"method": "full"}, seed=0, problem="refused: a|b [bold]"))
    return told


def test_every_run_has_a_line_and_every_line_all_columns(tmp_path: Path):
    write_tables(tmp_path, report("", runs(tmp_path), AXES))
    with (tmp_path / "runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["0", "1", "0", "1", "2", "0"]
    assert rows[0]["folder"] == "run0"
    assert rows[0]["uplink_bytes"] == "1000000"
    assert (rows[0]["saving"], rows[0]["saving_with_flower"]) == ("10.0", "8.0")
    assert (rows[4]["accuracy"], rows[4]["problem"]) == ("", "failed: the loss")
    assert (rows[5]["method"], rows[5]["images"]) == ("full", "")
    with (tmp_path / "table.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert [(c["method"], c["seeds"]) for c in cells] == [
        ("head", "2"),
        ("lora", "2"),
        ("full", "0"),
    ]
    assert float(cells[1]["accuracy_percent"]) == 90


def test_markdown_holds_cells_problems_and_differences(tmp_path: Path):
    lines = to_markdown(report("A title", runs(tmp_path), AXES)).splitlines()
    assert lines[0] == "# A title"
    assert "| head | plain | 80.00 ± 0.00 | 2 | 10 | 3.0 MB | 10.0x | 1 |" in lines
    assert "| full |  | refused |  |  |  |  |  |" in lines
    assert "* lora, plain, seed 2: failed: the loss" in lines
    assert "| lora against head | plain | +10.00 ± 0.00 | 2 |" in lines


def test_the_aggregation_error_has_a_column_where_any_run_has_one(tmp_path: Path):
    more = record(3, 0.9, error=0.25, method="lora", images="plain")
    found = to_markdown(report("", [*runs(tmp_path), more], AXES))
    assert "| accuracy % | seeds | trained | sent | saving | s | aggregation error % |" in found
    assert "| head | plain | 80.00 ± 0.00 | 2 | 10 | 3.0 MB | 10.0x | 1 |  |" in found
    assert "| lora | plain | 90.00 ± 0.00 | 3 | 10 | 3.0 MB | 10.0x | 1 | 25.00 |" in found
    assert "| full |  | refused |  |  |  |  |  |  |" in found
    assert "Aggregation error: the distance" in found
    assert "ggregation error" not in to_markdown(report("", runs(tmp_path), AXES))


def test_validation_accuracies_have_columns_and_order_the_differences(tmp_path: Path):
    told = [
        record(0, accuracy, validation=held, method=method)
        for method, accuracy, held in (("head", 0.5, 0.5), ("lora", 0.9, 0.6), ("full", 0.8, 0.7))
    ]
    told = [replace(one, folder=tmp_path / f"run{i}") for i, one in enumerate(told)]
    comparison = report("", told, {"method": "head"})
    found = to_markdown(comparison)
    assert "| s | validation % |" in found
    assert "| 1 | 60.00 |" in found
    assert "ordered by validation accuracy, the best first" in found
    assert found.index("full against head") < found.index("lora against head")
    assert "The test images are never used to choose anything." in found
    write_tables(tmp_path, comparison)
    rows = list(csv.DictReader((tmp_path / "runs.csv").open()))
    assert [row["validation_accuracy"] for row in rows] == ["0.5", "0.6", "0.7"]
    assert (rows[1]["best_round"], rows[1]["best_test_accuracy"]) == ("3", "0.9")
    cells = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert float(cells[1]["validation_percent"]) == pytest.approx(60)
    differences = list(csv.DictReader((tmp_path / "differences.csv").open()))
    assert [row["method"] for row in differences] == ["full", "lora"]
    assert float(differences[1]["validation_points"]) == pytest.approx(10)
    assert "validation" not in to_markdown(report("", runs(tmp_path), AXES)).lower()
    assert describe(told[1]).startswith("lora, seed 0: 90.00 % (validation 60.00 %), ")


def test_a_terminal_sees_the_same(tmp_path: Path):
    console = Console(record=True, width=150)
    print_report(report("A title", runs(tmp_path), AXES), "runs/grid", console)
    shown = console.export_text()
    for part in ("A title", "80.00 ± 0.00", "[bold]", "lora against head", "runs/grid"):
        assert part in shown


def test_pictures_are_drawn_and_not_empty(tmp_path: Path):
    write_plots(tmp_path, report("A title", runs(tmp_path), AXES))
    pictures = sorted((tmp_path / "plots").iterdir())
    assert [path.stem for path in pictures] == [
        "accuracy_over_megabytes",
        "accuracy_over_trained_share",
    ]
    for path in pictures:
        assert len(np.unique(np.asarray(Image.open(path)))) > 10


def test_nothing_is_drawn_where_nothing_ran(tmp_path: Path):
    write_plots(tmp_path, report("", runs(tmp_path)[-1:], AXES))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_ended_is_a_line(tmp_path: Path):
    console = Console(record=True, width=60, force_terminal=False)
    with ComparisonDisplay(6, console) as display:
        display.announce("starting workers")
        display.show_round({"round": 1, "accuracy": 0.5})
        for one in runs(tmp_path)[3:5]:
            display.show_run(describe(one))
    assert console.export_text().splitlines() == [
        f"1/6  lora, plain, seed 1: 90.00 %, 1.0 s, {tmp_path / 'run3'}",
        "2/6  lora, plain, seed 2: failed: the loss",
    ]


def test_a_column_tells_the_bytes_to_a_target_if_there_is_one(tmp_path: Path):
    told = runs(tmp_path)
    assert "to target" not in to_markdown(report("", told, AXES))
    for run in told[:4]:
        assert run.result is not None
        reached = run.labels["method"] == "lora" and run.seed == 0
        run.result["target"] = {"reached": reached, "bytes": 1_500_000}  # type: ignore[index]
    table = to_markdown(report("", told, AXES)).splitlines()
    assert next(line for line in table if "to target" in line)
    head, lora = (next(x for x in table if f"| {name} | plain |" in x) for name in ("head", "lora"))
    assert head.endswith("| not reached |")
    assert lora.endswith("| 1.50 MB (1 of 2) |")


def test_figures_of_classes_and_clients_have_columns_only_where_runs_have_them(tmp_path: Path):
    """Two runs whose server evaluates: their macro F1 is 70 ± 14.14 %; clients report nothing."""
    known = []
    for run, share in zip(runs(tmp_path)[:2], (0.6, 0.8), strict=True):
        classes = {"macro_f1": share, "calibration": {"expected_error": 0.05}}
        result = {**(run.result or {}), "classification": classes, "client_accuracy": None}
        known.append(replace(run, result=result))
    found = report("", known, AXES)
    write_tables(tmp_path, found)
    (cell,) = csv.DictReader((tmp_path / "table.csv").open())
    assert float(cell["macro_f1_percent"]) == pytest.approx(70.0)
    assert cell["worst_tenth_percent"] == ""
    first, _ = csv.DictReader((tmp_path / "runs.csv").open())
    assert (first["macro_f1"], first["calibration_error"]) == ("0.6", "0.05")
    text = to_markdown(found)
    assert "| macro F1 % |" in text
    assert "| 70.00 ± 14.14 |" in text
    assert "worst tenth of clients %" not in text
    assert "macro F1" not in to_markdown(report("", runs(tmp_path), AXES))

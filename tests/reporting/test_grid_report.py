"""The report of a comparison, from the table of its runs and their folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fl_vitlora.command_line import tools
from fl_vitlora.config.grid import read_grid, to_tree
from fl_vitlora.config.yaml_text import write_yaml
from fl_vitlora.errors import UserError
from fl_vitlora.library.comparing import load_comparison
from fl_vitlora.reporting.comparison_tables import readable_cells, report, to_markdown, write_tables
from fl_vitlora.reporting.grid_folder import GRID, RUNS, read_comparison
from fl_vitlora.reporting.latex_tables import to_latex
from fl_vitlora.reporting.report.writing import write_report
from fl_vitlora.reporting.statistics import Record
from tests.browser import browser_page, chromium
from tests.reporting.test_report import BROWSER, HOSTILE, Parsed
from tests.reporting.test_statistics import record

AXES = {"finetuning.method": {"head": "head", HOSTILE: "lora"}}
ACCURACIES = {"head": (0.80, 0.82), HOSTILE: (0.90, 0.94)}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A comparison of two settings with two seeds, and a third seed that failed."""
    grid = read_grid({"title": "Two & two", "compare": AXES, "seeds": [0, 1, 2]}, {})
    (tmp_path / GRID).write_text(write_yaml(to_tree(grid)))
    (axis,) = grid.baselines
    records: list[Record] = []
    for label, accuracies in ACCURACIES.items():
        for seed, accuracy in enumerate(accuracies):
            told = replace(record(seed, accuracy), labels={axis: label})
            place = tmp_path / f"run{len(records)}"
            place.mkdir()
            (place / "result.json").write_text(json.dumps(told.result))
            lines = [{"round": 1, "accuracy": accuracy - 0.1}, {"round": 2, "accuracy": accuracy}]
            (place / "rounds.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
            records.append(Record(labels=told.labels, seed=seed, result=told.result, folder=place))
    records.append(Record(labels={axis: "head"}, seed=2, problem="failed: no memory"))
    write_tables(tmp_path, report(grid.title, records, grid.baselines))
    return tmp_path


def test_a_comparison_is_read_back_from_its_folder(folder: Path):
    found = read_comparison(folder)
    assert (folder / "table.md").read_text() == to_markdown(found)
    assert (folder / "table.tex").read_text() == to_latex(found)
    assert [run.seed for run in found.records] == [0, 1, 0, 1, 2]
    assert found.records[-1].problem == "failed: no memory"


def test_a_report_has_all_tables_and_loads_nothing(folder: Path):
    parsed = Parsed(load_comparison(folder).report())
    assert parsed.addresses == [("link href", "data:,")]
    for row in readable_cells(read_comparison(folder)):
        assert " ".join(row) in parsed.text
    assert "81.00 ± 1.41" in parsed.text
    assert "Two & two" in parsed.text
    assert "seed 2: failed: no memory" in parsed.text
    assert r"81.00 $\pm$ 1.41" in parsed.text
    assert "img" not in parsed.tags


def test_charts_show_each_setting_with_its_deviation_and_its_mean_curve(folder: Path):
    parsed = Parsed(write_report(folder))
    head, other = parsed.chart("bytes")["data"]
    assert (head["x"], head["y"]) == ([3.0], [pytest.approx(81.0)])
    assert head["error_y"]["array"] == [pytest.approx(2**0.5)]
    assert "<" not in other["name"]
    head, _ = parsed.chart("rounds")["data"]
    assert head["y"] == pytest.approx([71.0, 81.0])


def test_a_round_that_one_run_did_not_evaluate_has_no_mean(folder: Path):
    (folder / "run0" / "rounds.jsonl").write_text('{"round": 2, "accuracy": 0.8}\n')
    head, _ = Parsed(write_report(folder)).chart("rounds")["data"]
    assert head["x"] == [2]


def test_a_table_that_names_a_folder_elsewhere_is_refused(folder: Path, tmp_path: Path):
    text = (folder / RUNS).read_text()
    (folder / RUNS).write_text(text.replace(",run0,", ",../run0,"))
    with pytest.raises(UserError, match=r"^\S+: \.\./run0 is not a folder in"):
        write_report(folder)


def test_a_comparison_without_a_run_says_so(folder: Path):
    (folder / RUNS).unlink()
    with pytest.raises(UserError, match="writes this file after its first run"):
        write_report(folder)


def test_plots_of_a_comparison_are_written_as_vector_pictures(folder: Path):
    tools.main(["report", str(folder), "--vector", "svg"])
    plots = sorted(path.name for path in (folder / "plots").iterdir())
    assert plots == ["accuracy_over_megabytes.svg", "accuracy_over_trained_share.svg"]
    assert "<svg" in (folder / "plots" / plots[0]).read_text()


@BROWSER
def test_a_browser_opens_the_report_of_a_comparison(folder: Path, tmp_path: Path):
    with browser_page(str(chromium()), tmp_path / "profile") as seen:
        for width in (390, 1200):
            seen.open(write_report(folder), width=width, dark=width == 390)
            assert seen.value("document.documentElement.scrollWidth") <= width
        assert seen.value("document.title") == "Two & two – report"
        assert seen.complaints == []
        assert {address.split(":")[0] for address in seen.requests} <= {"file", "data", "blob"}

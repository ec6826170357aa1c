"""Tables fit 80 columns, pipes and small screens; no word is broken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from fl_vitlora.reporting.comparison_tables import print_report, report
from fl_vitlora.reporting.statistics import Record
from fl_vitlora.reporting.table_layout import fold, print_named, screen
from tests.reporting.test_statistics import record

NAMES = ["flwr.serverapp.strategy:FedAdam", "fedavg", "topk(0.1)+int4"]


def grid(axes: int) -> list[Record]:
    """Two cells of a comparison with so many axes of long labels."""
    cells = [{f"axis {i}": f"{name}-{i}" for i in range(axes)} for name in NAMES[:2]]
    whole = {seed: record(seed, 0.9, error=0.25) for seed in (0, 1)}
    return [replace(whole[seed], labels=labels) for labels in cells for seed in whole]


@pytest.mark.parametrize("axes", [1, 2, 4])
@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_a_table_fits_and_keeps_its_words(axes: int, width: int) -> None:
    console = Console(record=True, width=width, force_terminal=False)
    first = {f"axis {i}": f"{NAMES[0]}-{i}" for i in range(axes)}
    print_report(report("", grid(axes), first), "runs/grid", console)
    shown = console.export_text()
    words = [f"{name}-{i}" for name in NAMES[:2] for i in range(axes)]
    for word in (*words, "90.00 ± 0.00", "aggregation error %", "3.0 MB", "10.0x"):
        assert word in shown
    longest = max(map(len, words)) + 8
    assert [line for line in shown.splitlines() if len(line) > max(width, longest)] == []


def test_a_table_that_fits_is_one_and_a_wider_one_repeats_the_names_of_its_rows() -> None:
    rows = [["method", *(f"number {i}" for i in range(9))], ["lora", *map(str, range(9))]]
    assert fold(rows, 1, width=200).parts == [rows]
    parts = fold(rows, 1, width=40).parts
    assert len(parts) > 1
    assert all([row[0] for row in part] == ["method", "lora"] for part in parts)
    assert [cell for part in parts for cell in part[1][1:]] == rows[1][1:]


def test_a_path_keeps_its_letters_together() -> None:
    console = Console(record=True, width=40, force_terminal=False)
    path = "/home/somebody/" + "experiments/" * 6 + "run"
    print_named(console, {"run folder": Text(path), "time": Text("word " * 20)})
    shown = console.export_text()
    assert path in shown
    assert [line for line in shown.splitlines() if len(line) > 40 and path not in line] == []
    assert [line for line in shown.splitlines() if line != line.rstrip()] == []


@pytest.mark.parametrize(
    ("given", "width"), [("120", 120), ("5", 40), ("", 80), ("x", 80), ("-3", 80), ("0", 80)]
)
def test_the_width_of_a_pipe_is_told_or_usual(
    given: str, width: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", given)
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr("sys.stdout", file)
        assert screen().width == width

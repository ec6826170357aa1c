"""`fv.compare`: a grid as a mapping or a file, its callbacks, its table, and its folder."""

from __future__ import annotations

import csv
import statistics
from pathlib import Path
from typing import Any

import pytest

import fl_vitlora as fv
from fl_vitlora.config import Config, load
from fl_vitlora.errors import UserError
from fl_vitlora.library.comparing import grid_of
from tests.whole_runs import SMALL

ROOT = Path(__file__).resolve().parents[2]


def test_a_comparison_is_given_as_a_mapping_or_a_file() -> None:
    axes = {"finetuning.method": ["head", "lora"]}
    grid = grid_of({"compare": axes, "seeds": range(2), "data.limit": 50, "data": {"alpha": 1}})
    assert grid == grid_of({"compare": axes, "seeds": "0-1"}, {"data.limit": 50, "data.alpha": 1})
    assert grid.cells[1].config == load(
        None, {"finetuning.method": "lora", "data.limit": 50, "data.alpha": 1}
    )
    again = grid_of(ROOT / "configs/grids/default_job.yaml", {"rounds": 3})
    assert (len(again.runs), again.shared.rounds) == (30, 3)


def test_settings_that_are_given_stay_as_they_are() -> None:
    own: dict[str, Any] = {"compare": {"clients": [2, 3]}, "data": {"limit": 50}, "data.alpha": 1}
    grid_of(own)
    assert own["data"] == {"limit": 50}


def test_what_compares_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected the key compare or seeds"):
        fv.compare({"clients": 3})
    with pytest.raises(UserError, match=r"no file grid\.yaml"):
        fv.load_comparison(tmp_path)
    (tmp_path / "grid.yaml").write_text("strategy: theirs:Theirs\nseeds: [0]\n")
    with pytest.raises(UserError, match=r"no file runs\.csv"):
        fv.load_comparison(tmp_path)
    with pytest.raises(UserError, match="only a file names this code"):
        fv.compare(tmp_path / "grid.yaml")


class Notes(fv.Callback):
    """Ends the first run after its first round, and no other."""

    may_stop = True

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self.runs: list[fv.FinishedRun] = []

    def on_run_begin(self, config: Config) -> None:
        self.heard.append((config.finetuning.method, config.seed))

    def on_round_end(self, line: dict[str, Any]) -> bool:
        self.heard.append(line["round"])
        return len(self.heard) == 2

    def on_run_end(self, run: fv.FinishedRun) -> None:
        self.runs.append(run)


@pytest.mark.slow
def test_a_comparison_is_followed_continued_and_opened_again(tmp_path: Path) -> None:
    notes, folder = Notes(), tmp_path / "grid"
    own = {
        **SMALL,
        "out": str(folder),
        "encryption.key_file": str(tmp_path / "owner.key"),
        "compare": {"finetuning.method": ["head", "lora", "lora+dora"]},
        "seeds": [0],
    }
    del own["seed"]
    first = fv.compare(own, callbacks=[notes])
    assert notes.heard == [("head", 0), 1, ("lora", 0), 1, 2, ("lora+dora", 0)]
    assert [run.folder for run in notes.runs] == [run.folder for run in first.runs]
    assert first.runs[0].result["stopped"] == "caller"
    assert first.runs[1].result["stopped"] is None
    assert list(first.problems) == ["lora+dora, seed 0"]  # two low-rank parts are refused

    notes.heard.clear()
    whole = fv.compare(own | {"seeds": [0, 1]}, callbacks=[notes])
    begun = [heard for heard in notes.heard if heard not in (1, 2)]
    assert begun == [("head", 1), ("lora", 1), ("lora+dora", 0), ("lora+dora", 1)]
    row = {row["finetuning.method"]: row for row in whole.rows}["lora"]
    runs = [whole.find("lora", seed) for seed in (0, 1)]
    scores = [100 * (run.accuracy or 0) for run in runs]
    assert row["accuracy_percent"] == pytest.approx(statistics.mean(scores))
    assert row["standard_deviation"] == pytest.approx(statistics.stdev(scores))
    assert "±" in whole.table() and whole.table() == (folder / "table.md").read_text()
    assert [run.config.seed for run in whole.runs] == [0, 1, 0, 1]
    assert len(runs[0].history) == 2
    with pytest.raises(UserError, match=r"no run with these labels.*head, seed 0; head, seed 1"):
        whole.find("full")
    with pytest.raises(UserError, match=r"several runs with these labels"):
        whole.find()
    with pytest.raises(UserError, match=r"lora\+dora, seed 1 has no result: refused"):
        whole.find({"finetuning.method": "lora+dora"}, 1)

    opened = fv.load_comparison(folder)
    assert opened.table() == whole.table()
    assert opened.rows == whole.rows
    assert opened.differences == whole.differences
    assert [run.folder for run in opened.runs] == [run.folder for run in whole.runs]
    with (folder / "runs.csv").open(newline="") as file:
        for row, read in zip(opened.run_rows, csv.DictReader(file), strict=True):
            assert {name: str(value) for name, value in row.items() if value is not None} == {
                name: read[name] for name, value in row.items() if value is not None
            }
    assert opened.grid.runs == whole.grid.runs

"""The live page of a real run and of a real comparison, while they write their folders."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

import strategies
from fl_vitlora.config.grid import read_grid
from fl_vitlora.experiment import comparison
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.reporting.live.grid_state import read_grid_state
from fl_vitlora.reporting.live.run_state import Files
from fl_vitlora.reporting.live.server import shown
from tests.served_page import content, figures, served
from tests.whole_runs import SMALL, execute

pytestmark = pytest.mark.slow


def test_a_real_run_is_followed_from_its_preparation_to_its_end(
    tmp_path: Path,
) -> None:
    """The page is asked again and again while the run writes its folder."""
    states, ended = list[tuple[str, str]](), threading.Event()

    def follow(url: str) -> None:
        while not ended.is_set():
            found = content(url)
            assert found["error"] == ""
            states.append((found["state"], figures(found).get("rounds", "0 of 3")))

    with shown(tmp_path / "run") as url:
        thread = threading.Thread(target=follow, args=(url,))
        thread.start()
        try:
            done = execute(tmp_path, rounds=3)
        finally:
            ended.set()
            thread.join()
        last = content(url)
    order = list(dict.fromkeys(states))
    assert order[0] == ("preparing", "0 of 3")
    assert ("running", "1 of 3") in order
    assert order == sorted(order, key=lambda pair: (pair[1], pair[0] == "ended"))
    assert last["state"] == "ended"
    assert figures(last)["workers"] == "2 (cpu)"
    assert figures(last)["clients"] == "4"
    (accuracy,) = (chart for chart in last["charts"] if chart["name"] == "accuracy")
    (trace,) = accuracy["figure"]["data"]
    assert trace["y"] == [100 * line["accuracy"] for line in done.lines]
    (sent,) = (chart for chart in last["charts"] if chart["name"] == "sent")
    totals = [trace["y"][-1] for trace in sent["figure"]["data"]]
    wire = done.result["communication"]
    greeting = wire["greeting_bytes"] / 1e6
    whole = (wire["uplink_bytes"] + wire["downlink_bytes"]) / 1e6
    assert sum(totals) <= whole <= sum(totals) + greeting + 1e-9


def test_a_comparison_is_followed_run_by_run(tmp_path: Path) -> None:
    """A real comparison of two runs, of which one is refused."""
    settings = {**SMALL, "encryption.key_file": str(tmp_path / "owner.key"), "rounds": 1}
    grid = read_grid(
        {"compare": {"strategy": ["fedavg", "flora"], "finetuning.method": ["head"]}}, settings
    )
    folder, files, seen = tmp_path / "grid", Files(), list[tuple[str, list[str]]]()

    def look() -> list[str]:
        found = read_grid_state(folder, files)
        seen.append((found.state, [run.state for run in found.runs]))
        return seen[-1][1]

    def follow(line: dict[str, Any]) -> None:
        look()

    watch = Watch(show_round=follow)
    with comparison.prepare_folder(folder, grid):
        look()
        for _ in comparison.compare(grid, folder, strategies.load_for, watch):
            look()
    look()
    assert seen[0] == ("running", ["waiting", "waiting"])
    assert ("running", ["running", "waiting"]) in seen
    assert ("running", ["ended", "waiting"]) in seen
    assert seen[-1] == ("ended", ["ended", "without result"])
    with served(folder) as server:
        found = content(server.url)
    assert figures(found)["runs with a result"] == "1 of 2"
    assert [row[:2] for row in found["tables"][0]["rows"]] == [
        ["fedavg, head", "ended"],
        ["flora, head", "without result"],
    ]
    assert "needs low-rank matrices" in found["remarks"][0]
    (chart,) = found["charts"]
    assert [trace["name"] for trace in chart["figure"]["data"]] == ["fedavg, head, seed 7"]

"""The server's side of a run that does not learn: one warning, in its rounds and in its result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import strategies
from fl_vitlora.checkpoints.logbook import Logbook
from fl_vitlora.communication.ledger import Entry
from fl_vitlora.config import load
from fl_vitlora.experiment.preparation import prepare_model
from fl_vitlora.experiment.server_model import make_server
from fl_vitlora.experiment.server_run import Run
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.hooks import RoundReport
from fl_vitlora.reporting.run_folder import RunFolder


def observed(tmp_path: Path, losses: list[float]) -> tuple[Run, list[dict[str, Any]]]:
    """Shows a run as many rounds as there are losses, of an accuracy of one in ten."""
    config = load(None, {"out": str(tmp_path / "run"), "rounds": len(losses)})
    folder = RunFolder.create(config)
    shown: list[dict[str, Any]] = []
    run = Run(
        config=config,
        strategy=strategies.load_for(config),
        server=make_server(prepare_model(config, 10, "cpu"), lambda origin: origin),
        shards=folder.shards,
        folder=folder,
        watch=Watch(show_round=shown.append),
        logbook=Logbook.begin(folder.path),
        class_names=tuple("0123456789"),
    )
    run.record.shares.extend([0.1] * 10)
    for number, loss in enumerate(losses, start=1):
        run.record.ledger.record(
            Entry(round=number, client=0, direction="uplink", groups={"head": 1}, overhead=0)
        )
        report = RoundReport(
            round=number,
            accuracy=0.1,
            loss=loss,
            train_loss=loss,
            participants=(0,),
            failures=(),
            taken_apart=(),
            aggregation_error=None,
            moved=True,
            seconds=1.0,
        )
        run.record.report(report, GlobalModel(tensors=run.server.initial))
    return run, shown


@pytest.mark.parametrize(
    ("losses", "warned"),
    [
        ([2.5, 2.4, 2.4, 2.4, 2.4], 3),
        ([2.0, 1.9, 2.5, 2.5, float("nan")], 5),
        ([2.3, 2.2, 2.1, 2.0, 1.9], None),
    ],
)
def test_a_run_that_does_not_learn_says_so_once(
    tmp_path: Path, losses: list[float], warned: int | None
):
    run, shown = observed(tmp_path, losses)
    written = [
        json.loads(line) for line in (run.folder.path / "rounds.jsonl").read_text().splitlines()
    ]
    for lines in (run.record.lines, shown, written):
        assert [line["round"] for line in lines if "warnings" in line] == ([warned] * bool(warned))
    assert len(run.record.warnings) == bool(warned)
    for told in run.record.warnings:
        assert f"after round {warned}, with learning rate 0.02, the test loss is" in told
        assert "learning rate 0.02" in told

"""Each tracker shows the numbers of `rounds.jsonl`, read back by the tracker's own reader."""

from __future__ import annotations

import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fl_vitlora as fv
from fl_vitlora.errors import UserError
from fl_vitlora.library.trackers import numbers_of
from tests.whole_runs import SMALL


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> fv.FinishedRun:
    """Runs a small experiment, which TensorBoard follows if it is installed."""
    folder = tmp_path_factory.mktemp("tracked")
    where = {"out": str(folder / "run"), "encryption.key_file": str(folder / "owner.key")}
    known = importlib.util.find_spec("tensorboard") is not None
    callbacks: list[fv.Callback] = [fv.TensorBoard(folder / "board")] if known else []
    return fv.run(SMALL, where, callbacks=callbacks)


def lines_of(run: fv.FinishedRun) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.folder / "rounds.jsonl").read_text().splitlines()]


def replay(run: fv.FinishedRun, callback: fv.Callback) -> None:
    """Calls a callback as the run did."""
    callback.on_run_begin(run.config)
    for line in run.history:
        callback.on_round_end(dict(line))
    callback.on_run_end(run)


@pytest.mark.slow
def test_tensorboard_reads_the_accuracy_of_each_round(run: fv.FinishedRun) -> None:
    accumulator: Any = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator",
        reason="needs pip install -e '.[tensorboard]'",
    )
    events = accumulator.EventAccumulator(str(run.folder.parent / "board" / run.folder.name))
    events.Reload()
    for name in ("accuracy", "loss", "uplink_bytes", "payload_by_group/head"):
        read = {event.step: event.value for event in events.Scalars(name)}
        expected = {line["round"]: dict(numbers_of(line))[name] for line in lines_of(run)}
        assert read == pytest.approx(expected, rel=1e-6), name  # of float32
    assert events.Scalars("final/accuracy")[0].value == pytest.approx(run.accuracy, rel=1e-6)
    assert "config/text_summary" in events.Tags()["tensors"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the library itself
def test_mlflow_reads_the_accuracy_of_each_round(run: fv.FinishedRun, tmp_path: Path) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason="needs pip install -e '.[mlflow]'")
    replay(run, fv.MLflow(tmp_path, "ours"))
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (kept,) = client.search_runs([client.get_experiment_by_name("ours").experiment_id])
    read = {m.step: m.value for m in client.get_metric_history(kept.info.run_id, "accuracy")}
    assert read == {line["round"]: line["accuracy"] for line in lines_of(run)}
    assert kept.data.params["finetuning.method"] == run.config.finetuning.method
    assert kept.info.status == "FINISHED"
    names = {file.path for file in client.list_artifacts(kept.info.run_id)}
    assert names == {"config.yaml", "result.json", "rounds.jsonl"}


def records_in(file: bytes) -> Iterator[bytes]:
    """Yields the records of an offline run, which is a log of LevelDB after a header of 7 bytes.

    The library has no reader in Python; its protobuf reads the records.
    """
    assert file[:4] == b":W&B"
    place, parts, block, head, last = 7, b"", 2**15, 7, (1, 4)
    while place + head <= len(file):
        left = block - place % block
        if left < head:  # no record begins at the end of a block
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", file, place)
        parts += file[place + head : place + head + length]
        place += head + length
        if kind in last:
            yield parts
            parts = b""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the library itself
def test_weights_and_biases_reads_the_accuracy_of_each_round(
    run: fv.FinishedRun, tmp_path: Path
) -> None:
    pytest.importorskip("wandb", reason="needs pip install -e '.[wandb]'")
    from wandb.proto import wandb_internal_pb2

    replay(run, fv.WandB(tmp_path))
    (path,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    read = {}
    for data in records_in(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        items = {"/".join(i.nested_key) or i.key: i.value_json for i in record.history.item}
        if "accuracy" in items:
            read[int(items["_step"])] = json.loads(items["accuracy"])
    assert read == {line["round"]: line["accuracy"] for line in lines_of(run)}


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_tracker_that_is_not_installed_names_its_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    makers = {
        "tensorboard": lambda: fv.TensorBoard(tmp_path),
        "mlflow": lambda: fv.MLflow(tmp_path),
        "wandb": lambda: fv.WandB(tmp_path),
    }
    known = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n, *rest: None if n == name else known(n, *rest)
    )
    with pytest.raises(UserError, match=rf"needs the library {name}; .*fl_vitlora\[{name}\]"):
        makers[name]()

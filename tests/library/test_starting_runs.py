"""Whole runs that start from a finished run, from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fl_vitlora as fv
import simulate
from fl_vitlora.config import DataConfig
from fl_vitlora.data.sources import load as load_images
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.held_keys import holds_key, reveals_part_of_key
from fl_vitlora.models.start import start_of
from fl_vitlora.storage.checksummed import read_sealed
from tests.whole_runs import SMALL

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> fv.FinishedRun:
    folder = tmp_path_factory.mktemp("keyed")
    return fv.run(
        SMALL, {"out": str(folder / "run"), "encryption.key_file": str(folder / "owner.key")}
    )


def test_a_whole_run_goes_on_with_other_classes(keyed: fv.FinishedRun, tmp_path: Path) -> None:
    """Some digits under other numbers, and one new class; the old run is named in the result."""
    train, _ = load_images(DataConfig())
    chosen = np.flatnonzero(np.isin(train.labels, [3, 7, 8]))
    pixels = train.read(chosen, 16, 16).numpy()
    texts = [{"3": "3", "7": "7", "8": "eight"}[str(n)] for n in train.labels[chosen]]
    key = {"out": str(tmp_path / "new"), "encryption.key_file": str(tmp_path / "new.key")}
    run = fv.run(
        {**SMALL, **key, "encryption.adapt": True, "training.learning_rate": 1e-6},
        train=(pixels, texts),
        class_names=["eight", "7", "3"],
        init_from=keyed,
    )
    assert run.class_names == ("eight", "7", "3")
    state, _ = read_sealed(keyed.folder / "model.safetensors")
    told = run.result["model"]["weights"]
    start = start_of(run.config.model)
    assert start is not None
    assert start.digest in told and str(keyed.folder) in told
    assert run.config.finetuning.head_start == "zero"
    head = run.model("plain").get_parameter("head.weight").detach()
    assert torch.allclose(head[1], state["head.weight"][7], atol=1e-3)
    assert torch.allclose(head[2], state["head.weight"][3], atol=1e-3)
    assert not torch.allclose(head[1], state["head.weight"][3], atol=1e-3)
    exported = run.export(tmp_path / "exported")
    assert (exported / "model.safetensors").is_file()


def chain(folder: Path, number: int, **first: Any) -> list[fv.FinishedRun]:
    """Runs experiments with one key, each from the model of the one before; only the first adapts.

    The first has other settings on demand, and no run after it trains a patch embedding.
    """
    key = {"encryption.key_file": str(folder / "owner.key")}
    runs: list[fv.FinishedRun] = []
    for place in range(number):
        own = first if not runs else {"finetuning.method": "lora"}
        given = {**SMALL, **own, **key, "rounds": 1, "out": str(folder / f"run{place}")}
        runs.append(fv.run(given, init_from=runs[-1] if runs else None))
    return runs


def pushed(run: fv.FinishedRun, folder: Path) -> str:
    """Returns why a model for ciphertext cannot be uploaded; here there is no hub to reach."""
    with pytest.raises(UserError) as error:
        run.export(folder / "x", reads="ciphertext", push_to_hub="model")
    assert not (folder / "x").exists()
    return str(error.value)


def test_a_model_with_the_key_of_an_earlier_run_is_not_uploaded(tmp_path: Path) -> None:
    runs = chain(tmp_path, 3, **{"encryption.adapt": True, "finetuning.method": "lora"})
    for run in runs:
        assert "this model for ciphertext holds the key" in pushed(run, tmp_path)
    for run in runs[1:]:
        start = start_of(run.config.model)
        assert start is not None and start.reads.startswith("ciphertext")
        assert start.holds_key and not start.reveals_part_of_key


def test_a_patch_embedding_of_an_earlier_run_is_told(tmp_path: Path) -> None:
    told = chain(tmp_path / "a", 2, **{"finetuning.method": "lora+patch_embed"})[-1].config
    assert reveals_part_of_key(told, "ciphertext") and not reveals_part_of_key(told, "plain")
    assert not holds_key(told, "ciphertext")


def test_a_comparison_starts_each_run_and_keeps_what_is_finished(
    keyed: fv.FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--out", str(tmp_path / "grid"), "--set", f"encryption.key_file={tmp_path / 'k'}"]
    small = [
        word
        for path, value in SMALL.items()
        if path != "seed"
        for word in ("--set", f"{path}={value}")
    ]
    words = ["--init-from", str(keyed.folder), "--compare", "head", "lora", *where, *small]
    simulate.main(words)
    first = fv.load_comparison(tmp_path / "grid")
    assert [run.config.model.init_from for run in first.runs] == 2 * [str(keyed.folder)]
    stamps = [(run.folder / "result.json").stat().st_mtime_ns for run in first.runs]
    simulate.main(words)
    again = fv.load_comparison(tmp_path / "grid")
    assert [(run.folder / "result.json").stat().st_mtime_ns for run in again.runs] == stamps
    starts = {json.dumps(run.result["model"]) for run in again.runs}
    assert len(starts) == 1

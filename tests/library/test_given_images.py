"""`fv.run` with images that a program hands in, and how such a run is continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fl_vitlora as fv
import simulate
from fl_vitlora.config import RATES, Config, DataConfig, ModelConfig
from fl_vitlora.data.sources import load
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.classifier import plain_heads
from fl_vitlora.models import backbone
from tests.whole_runs import SMALL

pytestmark = pytest.mark.slow


def digits() -> tuple[Any, Any, tuple[str, ...]]:
    """Returns the digits of the default job as arrays, as a program would have them."""
    train, test = load(DataConfig())
    split = [
        (images.read(np.arange(len(images)), 16, 16).numpy(), images.labels)
        for images in (train, test)
    ]
    return split[0], split[1], train.class_names


def test_a_run_on_arrays_is_that_on_the_same_data_set(tmp_path: Path) -> None:
    train, test, names = digits()
    key = {"encryption.key_file": str(tmp_path / "owner.key")}
    named = fv.run(SMALL, {"out": str(tmp_path / "named"), **key})
    ours = fv.run(
        SMALL, {"out": str(tmp_path / "ours"), **key}, train=train, test=test, class_names=names
    )
    assert [line["loss"] for line in ours.history] == [line["loss"] for line in named.history]
    one, other = (run.model("ciphertext").state_dict() for run in (ours, named))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert ours.config.data.name == "given"
    assert len(str(ours.config.data.digest)) == 32
    assert "handed in by a program" in (ours.folder / "data.txt").read_text()
    rows = {image.tobytes() for image in train[0]}
    for path in ours.folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert not any(row in content for row in rows), f"{path} holds a plain image"


class Falls(fv.Callback):
    def on_round_end(self, line: dict[str, Any]) -> None:
        raise RuntimeError("the power failed")


def test_an_interrupted_run_on_arrays_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, test, names = digits()
    key = {"encryption.key_file": str(tmp_path / "owner.key")}
    own: dict[str, Any] = {"train": train, "test": test, "class_names": names}
    whole = fv.run(SMALL, {"out": str(tmp_path / "whole"), **key}, **own)
    folder = tmp_path / "cut"
    late = {"out": str(folder), "checkpoint_every": 2, **key}
    with pytest.raises(RuntimeError, match="the power failed"):
        fv.run(SMALL, late, **own, callbacks=[Falls()])
    with pytest.raises(SystemExit) as ended:
        simulate.main(["--resume", str(folder)])
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert len(lines) == 1
    assert "a Python program passes the images" in lines[0] and "fv.resume(FOLDER" in lines[0]
    with pytest.raises(UserError, match="expected the images with which the run began"):
        fv.resume(folder, train=train)
    with pytest.raises(UserError, match=r"rounds is 2 in this run, not 3"):
        fv.resume(folder, {"rounds": 3}, **own)
    again = fv.resume(folder, {"engine.workers": 1}, **own)
    assert [line["loss"] for line in again.history] == [line["loss"] for line in whole.history]
    assert fv.resume(folder).accuracy == again.accuracy


def test_a_model_is_handed_in_and_opened_later(tmp_path: Path) -> None:
    """The model is the bundled one, under no name: the run is that of the bundled one."""
    key = {"encryption.key_file": str(tmp_path / "owner.key")}
    rates = {name: getattr(Config().training, name) for name in RATES}
    model: Any = backbone.build(ModelConfig(), 10, 0).model
    plain_heads(model)
    ours = fv.run(
        SMALL,
        {"out": str(tmp_path / "ours"), "finetuning.head_start": "zero", **key}
        | {f"training.{name}": rate for name, rate in rates.items()},
        model=model,
    )
    named = fv.run(SMALL, {"out": str(tmp_path / "named"), **key})
    assert [line["loss"] for line in ours.history] == [line["loss"] for line in named.history]
    stored = Path(ours.config.model.name.removeprefix("local-dir:"))
    assert stored.parent == tmp_path / ".given-models"
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    later = fv.load_run(ours.folder).predict(images)
    assert torch.equal(later.probabilities, named.predict(images).probabilities)
    with pytest.raises(UserError, match=r"model\.weights random: a model was handed in"):
        fv.run(SMALL, {"model.weights": "random"}, model=model)

"""Whole runs that choose by validation images, at the server and by the clients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from fl_vitlora.config import DataConfig
from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.data.shards import (
    TEST_SHARD,
    VALIDATION_SHARD,
    client_shard,
)
from fl_vitlora.data.sources import load
from fl_vitlora.experiment.preparation import prepare_model
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.training.local import evaluate
from tests.whole_runs import Finished, execute, opened, owned

pytestmark = pytest.mark.slow

ALIGNED = {"finetuning__patch_embedding": "aligned", "evaluation__by": "clients"}
HELD: dict[str, Any] = {"data__validation_fraction": 0.2, "rounds": 3}


def digits_in(done: Finished, name: str, part: str) -> torch.Tensor:
    """Returns the plain images of a shard of a run."""
    _, holder = owned(done.config)
    party = name.removesuffix(".safetensors").removesuffix("-validation")
    party = f"client {int(party[-5:])}" if party.startswith("client") else "test"
    return holder.decrypt(opened(done, name).images, party, part)  # type: ignore[arg-type]


def test_the_server_chooses_by_validation_images_and_reports_test_images(
    tmp_path: Path, engine: Engine
) -> None:
    done = execute(tmp_path, engine, **HELD, evaluation__every=2, target_accuracy=0.01)
    images, _ = owned(done.config)
    (held,) = images.validation
    expected = images.train.read(held, 16, 16)
    assert torch.equal(digits_in(done, VALIDATION_SHARD, "validation"), expected)
    result, (first, second, third) = done.result, done.lines
    assert first["accuracy"] is None
    assert {line["measured_on"] for line in (second, third)} == {"validation"}
    assert {line["measured_images"] for line in (second, third)} == {32}
    assert "test_accuracy" not in second
    assert third["test_accuracy"] == result["accuracy"] == result["accuracy_by_view"][RIGHT_KEY]
    assert set(result["accuracy_by_view"]) == {"right_key", "wrong_key", "no_key"}
    assert result["test_images"] == len(opened(done, TEST_SHARD))
    assert result["validation"]["accuracy"] == third["accuracy"]
    best = max((second, third), key=lambda line: line["accuracy"])
    assert (result["best"]["round"], result["best"]["measured_on"]) == (best["round"], "validation")
    assert result["best"]["test_images"] == result["test_images"]
    assert (result["target"]["round"], result["target"]["measured_on"]) == (2, "validation")


def test_an_earlier_best_model_is_measured_on_test_images_from_its_file(
    tmp_path: Path, engine: Engine
) -> None:
    """With such a rate the accuracy hardly changes, so patience ends the run early."""
    slow: dict[str, Any] = {"training__learning_rate": 1e-9, "evaluation__patience": 2}
    done = execute(tmp_path, engine, **{**HELD, "rounds": 60}, **slow)
    result, accuracies = done.result, [line["accuracy"] for line in done.lines]
    assert (result["stopped"], result["rounds_planned"]) == ("patience", 60)
    best = result["best"]
    assert best["round"] == accuracies.index(max(accuracies)) + 1 == result["rounds"] - 2
    test = opened(done, TEST_SHARD)
    for name, told in (("best_model", best["test_accuracy"]), ("model", result["accuracy"])):
        state = load_file(done.folder / f"{name}.safetensors")
        model = prepare_model(done.config, 10, "cpu")
        assert evaluate(model, state, test)[0] == pytest.approx(told, abs=0.01)
    matrix = np.array(result["classification"]["confusion_matrix"])
    assert matrix.trace() / matrix.sum() == result["accuracy"]  # that of the last model


@pytest.mark.parametrize(
    "given",
    [
        {"strategy": "fedsa_lora", "evaluation__by": "clients"},
        {"encryption__scope": "client", "encryption__adapt": True, **ALIGNED},
        {"evaluation__by": "clients", "privacy__secure_aggregation": True, "fraction": 1.0},
    ],
    ids=["own tensors", "own keys", "secure sums"],
)
def test_clients_choose_by_validation_images_of_their_own(
    tmp_path: Path, engine: Engine, given: dict[str, Any]
) -> None:
    done = execute(tmp_path, engine, **HELD, evaluation__images=10, **given)
    images, _ = owned(done.config)
    for client, positions in enumerate(images.validation):
        assert len(opened(done, client_shard(client))) == len(images.parts[client])
        own = digits_in(done, client_shard(client, "validation"), "validation")
        assert torch.equal(own, images.train.read(positions, 16, 16))
    held = [min(3, len(part)) for part in images.validation]  # ten images of four clients
    tested = [min(3, len(part)) for part in images.test_parts]
    for line in done.lines:
        assert (line["measured_on"], line["measured_images"]) == ("validation", sum(held))
        assert line["test_images"] == sum(tested)
    result = done.result
    assert result["test_images"] == len(images.test)
    assert result["validation"]["images"] == sum(map(len, images.validation))
    assert result["best"]["test_accuracy"] is not None
    told = result["client_accuracy"]
    assert told["client"] == [0, 1, 2, 3]
    assert told["images"] == [len(part) for part in images.test_parts]
    assert np.average(told["accuracy"], weights=told["images"]) == pytest.approx(result["accuracy"])
    assert result["classification"] is None  # clients send their accuracy, and nothing more


def test_a_budget_leaves_room_for_the_last_evaluation_by_clients(
    tmp_path: Path, engine: Engine
) -> None:
    """A round of three clients costs 360 kB, and an evaluation of four 240 kB."""
    given: dict[str, Any] = {"evaluation__by": "clients", "evaluation__every": 5, "rounds": 9}
    done = execute(tmp_path, engine, budget="1400kB", **given)
    wire, result = done.result["communication"], done.result
    assert (result["stopped"], result["rounds"]) == ("budget", 2)
    assert done.lines[-1]["accuracy"] is None
    assert result["accuracy"] > 0
    assert result["test_images"] == 160
    assert wire["uplink_bytes"] + wire["downlink_bytes"] <= 1_400_000
    assert result["best"] is None


@pytest.mark.parametrize("by", ["central", "clients"])
def test_a_split_of_the_data_set_chooses_as_held_out_images_do(
    tmp_path: Path, engine: Engine, by: str
) -> None:
    train, _ = load(DataConfig(limit=120))
    pixels = train.read(np.arange(120), 8, 8)
    for split, places in (("train", range(80)), ("dev", range(80, 100)), ("test", range(100, 120))):
        for place in places:
            folder = tmp_path / "images" / split / train.class_names[train.labels[place]]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[place, 0].numpy()).save(folder / f"{place}.png")
    given: dict[str, Any] = {"data__name": str(tmp_path / "images"), "data__partition": "iid"}
    split_of = {"data__validation_split": "dev", "evaluation__by": by}
    done = execute(tmp_path, engine, **given, **split_of)
    assert {line["measured_on"] for line in done.lines} == {"validation"}
    assert {line["measured_images"] for line in done.lines} == {20}
    assert done.result["test_images"] == 20
    assert done.result["validation"]["accuracy"] == done.lines[-1]["accuracy"]
    assert done.result["best"]["measured_on"] == "validation"

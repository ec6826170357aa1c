"""A new experiment starts from the model of a finished run: other key, data, classes, clients."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fl_vitlora as fv
import strategies
from fl_vitlora.adaptation import coordinates
from fl_vitlora.config import Config, DataConfig, load
from fl_vitlora.data.sources import load as load_images
from fl_vitlora.encryption.holder import TEST
from fl_vitlora.encryption.keys import open_or_create_ring
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.preparation import prepare_holder, prepare_model
from fl_vitlora.experiment.server_model import make_server
from fl_vitlora.experiment.starting import with_start
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.models.backbone import normalize
from fl_vitlora.models.start import start_of
from fl_vitlora.storage.checksummed import read_sealed
from tests.whole_runs import SMALL, execute

pytestmark = pytest.mark.slow

OLD: dict[str, dict[str, Any]] = {
    "plain images, all tensors": {"encryption__steps": [], "finetuning__method": "full"},
    "a key": {},
    "a key, adapted": {"encryption__adapt": True},
    "a key for each client, adapted, aligned": {
        "encryption__adapt": True,
        "finetuning__patch_embedding": "aligned",
        "encryption__scope": "client",
    },
}


@pytest.fixture(scope="module", params=OLD)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def old(kind: str, tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> fv.FinishedRun:
    return fv.load_run(execute(tmp_path_factory.mktemp("old"), engine, **OLD[kind]).folder)


def started(folder: Path, old: fv.FinishedRun, **given: Any) -> Config:
    """Returns the configuration of a new run that starts from an old one."""
    paths = {"out": str(folder / "new"), "encryption.key_file": str(folder / "new.key")}
    own = {path.replace("__", "."): value for path, value in given.items()}
    config = load(None, {**SMALL, **paths, "model.init_from": str(old.folder), **own})
    return with_start(config, strategies.load_for)


def held_out() -> tuple[Tensor, Tensor, tuple[str, ...]]:
    _, test = load_images(DataConfig())
    pixels = test.read(np.arange(len(test)), 16, 16)
    return pixels, torch.from_numpy(test.labels), test.class_names


def at_round_0(config: Config, images: Tensor, names: tuple[str, ...]) -> Tensor:
    """Returns the logits of the server's model before the first round, as the new run has it."""
    built = prepare_model(config, names, "cpu")
    holder = prepare_holder(config, built)
    server = make_server(built, lambda origin: coordinates.server_reader(config, origin, holder))
    with torch.no_grad():
        found: Tensor = server.backbone.model.eval()(
            normalize(holder.encrypt(images, TEST, "test"))
        )
    return found


@torch.no_grad()
def of_old(old: fv.FinishedRun, images: Tensor) -> Tensor:
    found: Tensor = old.model("plain")(normalize(images))
    return found


def test_under_a_new_key_the_adapted_model_answers_as_the_old_one(
    old: fv.FinishedRun, kind: str, tmp_path: Path
) -> None:
    images, labels, names = held_out()
    new = started(tmp_path, old, encryption__adapt=True, clients=3)
    found, expected = at_round_0(new, images, names), of_old(old, images)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    accuracy = float((found.argmax(dim=1) == labels).double().mean())
    before = float((expected.argmax(dim=1) == labels).double().mean())
    assert abs(accuracy - before) <= 1 / len(labels)  # rounding may move one image
    assert (start := start_of(new.model)) is not None
    assert start.reads == "plain images"
    assert start.class_names == names


def test_tensors_are_those_of_the_old_run_bit_for_bit(
    old: fv.FinishedRun, kind: str, tmp_path: Path
) -> None:
    """Merged products are rounded once; all that was not merged has its bits."""
    start = start_of(started(tmp_path, old).model)
    assert start is not None
    trained, _ = read_sealed(old.folder / "model.safetensors")
    same = [name for name in trained if name in start.tensors and "patch_embed" not in name]
    assert {"head.weight", "head.bias"} <= set(same)
    assert all(torch.equal(trained[name], start.tensors[name]) for name in same)
    if kind.endswith("all tensors"):
        assert set(trained) == set(start.tensors)
        assert torch.equal(
            trained["patch_embed.proj.weight"], start.tensors["patch_embed.proj.weight"]
        )


def test_under_the_same_key_the_model_for_ciphertext_goes_on(
    old: fv.FinishedRun, kind: str, tmp_path: Path
) -> None:
    if kind.startswith("a key for each client"):
        pytest.skip("every client has its own key")
    ring = old.config.encryption.key_file
    steps = old.config.encryption.steps
    new = started(tmp_path, old, encryption__key_file=ring, encryption__steps=list(steps))
    images, _, names = held_out()
    cipher = old.encrypt(images)
    with torch.no_grad():
        expected = old.model("ciphertext")(normalize(cipher))
    found = at_round_0(new, images, names)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    other = dataclasses.replace(new, seed=new.seed + 1)  # another key from the same secret
    start = start_of(with_start(_fresh(other), strategies.load_for).model)
    assert start is not None
    assert start.reads == "plain images"


def _fresh(config: Config) -> Config:
    return dataclasses.replace(
        config, model=dataclasses.replace(config.model, weights="pretrained")
    )


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> fv.FinishedRun:
    return fv.load_run(execute(tmp_path_factory.mktemp("keyed"), engine).folder)


def test_without_the_old_key_the_run_is_refused(keyed: fv.FinishedRun, tmp_path: Path) -> None:
    ring = Path(keyed.config.encryption.key_file)
    hidden = ring.rename(ring.with_name("hidden"))
    try:
        with pytest.raises(
            UserError, match=r"model\.init_from .*the owners' key ring is needed"
        ) as e:
            started(tmp_path, keyed, encryption__adapt=True)
        assert "\n" not in str(e.value)
        started(tmp_path, keyed, encryption__adapt=True, encryption__key_file=str(hidden))
        open_or_create_ring(tmp_path / "other.key")
        with pytest.raises(UserError, match=r"model\.init_from"):
            started(tmp_path, keyed, encryption__key_file=str(tmp_path / "other.key"))
    finally:
        hidden.rename(ring)


def test_what_is_no_finished_run_is_refused(keyed: fv.FinishedRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.init_from .*contains no run"):
        with_start(load(None, {"model.init_from": str(tmp_path)}), strategies.load_for)
    with pytest.raises(UserError, match=r"model\.init_from .*expected model\.weights with"):
        started(tmp_path, keyed, model__weights="random")

"""Whole runs in which clients sign the list of participants, and their audit."""

from __future__ import annotations

import csv
import json
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, RecordDict
from safetensors.torch import load_file

import simulate
import strategies
from fl_vitlora import config as configuration
from fl_vitlora.encryption.identities import private_path
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.deployment import node_settings
from fl_vitlora.flower.simulation.engine import Engine
from tests.whole_runs import execute

SUMS: dict[str, Any] = {"privacy__secure_aggregation": True, "fraction": 1.0, "rounds": 1}


def verdicts(run: Path) -> dict[str, str]:
    simulate.main(["--attack", str(run), "--only", "false_keys,false_dropout"])
    content = json.loads((run / "attacks.json").read_text())
    return {one["attack"]: one["verdict"] for one in content["attacks"]}


def test_pinned_keys_change_no_bit_of_the_model_and_end_the_attack_by_false_keys(
    tmp_path: Path, engine: Engine
):
    pins = tmp_path / "keys" / "clients.pub"
    given = {"privacy__client_keys": str(pins), "privacy__reveal_seeds": False}
    ring = {"encryption__key_file": str(tmp_path / "owner.key")}  # both see the same ciphertext
    signed = execute(tmp_path / "signed", engine, **SUMS, **ring, **given)
    plain = execute(tmp_path / "plain", engine, **SUMS, **ring)
    one, other = (load_file(done.folder / "model.safetensors") for done in (signed, plain))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert verdicts(plain.folder) == {"false_keys": "recovered", "false_dropout": "recovered"}
    assert verdicts(signed.folder) == {"false_keys": "not", "false_dropout": "not"}
    assert stat.S_IMODE(private_path(pins).stat().st_mode) == 0o600
    with (signed.folder / "communication.csv").open(newline="") as file:
        purposes = [row["purpose"] for row in csv.DictReader(file)]
    assert purposes.count("vouching") == 8  # four clients, both ways


def test_the_identities_of_a_run_are_found_from_elsewhere(
    tmp_path: Path, engine: Engine, monkeypatch: pytest.MonkeyPatch
):
    """The run names them relative to the directory in which it was started."""
    monkeypatch.chdir(tmp_path)
    done = execute(tmp_path / "run", engine, **SUMS, privacy__client_keys="clients.pub")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert verdicts(done.folder)["false_keys"] == "not"


@pytest.fixture
def node(tmp_path: Path) -> dict[str, Any]:
    """Makes what the operator of a node gives, without its identity."""
    config = {"clients": 3, "privacy.secure_aggregation": True, "encryption.at_rest": "none"}
    text = configuration.to_yaml(
        configuration.load(None, {**config, "privacy.client_keys": str(tmp_path / "clients.pub")})
    )
    (tmp_path / "config.yaml").write_text(text)
    return {
        "partition-id": 1,
        "config": str(tmp_path / "config.yaml"),
        "shards": str(tmp_path),
        "classes": '["a", "b"]',
    }


def identity(folder: Path, client: int, capsys: pytest.CaptureFixture[str]) -> str:
    """Makes an identity by the command, adds it to `clients.pub`, and returns its file."""
    path = folder / f"client-{client}.identity"
    simulate.main(["--new-identity", str(client), "--out", str(path)])
    with (folder / "clients.pub").open("a") as file:
        file.write(capsys.readouterr().out)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return str(path)


def settings_of(node: dict[str, Any]) -> Any:
    context = Context(1, 1, node, RecordDict(), {})
    return node_settings(context, strategies.load_for)


def test_a_deployed_node_has_its_own_identity_and_the_keys_of_all(
    node: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    files = [identity(tmp_path, client, capsys) for client in range(3)]
    settings = settings_of(node | {"identity": files[1]})
    assert list(settings.identities.private_keys) == [1]
    assert sorted(settings.identities.pins.keys) == [0, 1, 2]
    with pytest.raises(UserError, match="has the key of client 2, but this node runs client 1"):
        settings_of(node | {"identity": files[2]})
    with pytest.raises(UserError, match='this node lacks identity="FILE" in --node-config'):
        settings_of(node)


def test_a_node_with_an_identity_and_no_pinned_keys_is_refused(
    node: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Otherwise its operator would believe that it is protected."""
    mine = identity(tmp_path, 1, capsys)
    text = configuration.to_yaml(configuration.load(None, {"privacy.secure_aggregation": True}))
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"this node lacks privacy\.client_keys"):
        settings_of(node | {"identity": mine})

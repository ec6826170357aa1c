"""`fl-vitlora keys client` gives a node the key of its client, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fl_vitlora.command_line import tools
from fl_vitlora.config import Config, load, to_yaml
from fl_vitlora.encryption.client_keys import open_client_key
from fl_vitlora.encryption.keys import key_id, open_or_create_ring, open_ring
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.client_settings import client_settings
from fl_vitlora.experiment.preparation import storage_keys
from fl_vitlora.flower.client.workspace import Workspace, workspace
from fl_vitlora.flower.strategies.aggregators import Unaided
from fl_vitlora.models.reading import WEIGHT
from tests.owned_shards import prepare

ALIGNED: dict[str, Any] = {
    "encryption.scope": "client",
    "encryption.adapt": True,
    "finetuning.patch_embedding": "aligned",
    "clients": 2,
}


def export(folder: Path, config: Config, name: str = "1", *more: str) -> Path:
    """Exports a key by the command, with the configuration in a file."""
    (folder / "config.yaml").write_text(to_yaml(config))
    out = folder / f"{name.replace(' ', '-')}.own"
    words = ["keys", "client", str(folder / "owner.key"), name, str(out)]
    tools.main([*words, "--config", str(folder / "config.yaml"), *more])
    return out


def node(config: Config, key_file: Path) -> Workspace:
    """Returns what a deployed node of client 1 computes with."""
    own = load(None, {**_settings(config), "encryption.key_file": str(key_file)})
    place = key_file.parent / "run" / "shards"
    names = tuple(str(number) for number in range(10))
    return workspace(
        client_settings(
            own, place, names, "cpu", Unaided(), with_key=True, storage=storage_keys(own)
        )
    )


def _settings(config: Config) -> dict[str, Any]:
    from fl_vitlora.config import to_mapping

    return to_mapping(config)


def test_a_node_with_the_exported_key_turns_tensors_as_with_the_whole_ring(tmp_path: Path) -> None:
    config = prepare(tmp_path, ALIGNED)
    out = export(tmp_path, config)
    whole = node(config, tmp_path / "owner.key").coordinates_of(1)
    tensors = whole.to_client(dict(whole.initial))
    back = whole.to_server({name: tensor * 0.5 for name, tensor in tensors.items()})
    other = node(config, tmp_path / "owner.key").coordinates_of(0).to_client(dict(whole.initial))
    assert not torch.equal(other[WEIGHT], tensors[WEIGHT])
    (tmp_path / "owner.key").unlink()
    own = node(config, out).coordinates_of(1)
    turned = own.to_client(dict(own.initial))
    returned = own.to_server({name: tensor * 0.5 for name, tensor in turned.items()})
    assert all(torch.equal(turned[name], tensors[name]) for name in tensors)
    assert all(torch.equal(returned[name], back[name]) for name in back)
    with pytest.raises(UserError, match="is the key of client 1, not of client 0"):
        node(config, out).coordinates_of(0)


def test_the_exported_key_opens_the_clients_own_shard_alone(tmp_path: Path) -> None:
    config = prepare(tmp_path, {**ALIGNED, "encryption.at_rest": "ring"})
    keys = storage_keys(load(None, {"encryption.key_file": str(export(tmp_path, config))}))
    name = key_id(open_ring(tmp_path / "owner.key").current)
    assert keys.can_open(name, "client 1")
    assert not keys.can_open(name, "client 0")


def test_an_older_secret_may_be_named(tmp_path: Path) -> None:
    ring = open_or_create_ring(tmp_path / "owner.key").rotated()
    first, last = map(key_id, ring.secrets)
    config = load(None, ALIGNED)
    assert open_client_key(export(tmp_path, config)).name == last
    assert open_client_key(export(tmp_path, config, "0", "--id", first)).name == first


def test_an_unknown_secret_is_refused_with_those_of_the_ring(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ring = open_or_create_ring(tmp_path / "owner.key").rotated()
    with pytest.raises(SystemExit) as ended:
        export(tmp_path, load(None, ALIGNED), "1", "--id", "zzz")
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"unknown id of a secret of the key ring {tmp_path / 'owner.key'} 'zzz'" in line
    assert all(key_id(secret) in line for secret in ring.secrets)
    assert "--set" not in line


def test_a_key_from_another_secret_than_that_of_the_shard_is_refused(tmp_path: Path) -> None:
    config = prepare(tmp_path, {**ALIGNED, "encryption.at_rest": "none"})
    open_ring(tmp_path / "owner.key").rotated()
    out = export(tmp_path, config)
    with pytest.raises(UserError, match=r"--id [0-9a-f]{16}"):
        node(config, out)


def test_a_client_may_be_named_as_the_run_names_it(tmp_path: Path) -> None:
    open_or_create_ring(tmp_path / "owner.key")
    (tmp_path / "clients.json").write_text('["north ward", "south ward"]')
    config = load(None, ALIGNED)
    assert open_client_key(export(tmp_path, config, "south ward")).party == "client 1"


@pytest.mark.parametrize(
    ("word", "client"),
    [("3", 3), ("name:12", 0), ("number:12", 12), ("name:1", 2), ("number:1", 1), ("7", 7)],
)
def test_a_number_may_be_a_name(word: str, client: int, tmp_path: Path) -> None:
    """The data set names its clients by numbers, so the client named 12 is client 0."""
    open_or_create_ring(tmp_path / "owner.key")
    (tmp_path / "clients.json").write_text("[12, 0, 1, 3]")
    config = load(None, {**ALIGNED, "clients": 20})
    assert open_client_key(export(tmp_path, config, word)).party == f"client {client}"


@pytest.mark.parametrize(
    ("names", "word", "told"),
    [
        (
            "[12, 0, 1, 5]",
            "12",
            "client 12: this is a number, and also the name of client 0; write number:12 or "
            "name:12",
        ),
        ("[12, 0, 1, 5]", "1", "the name of client 2; write number:1 or name:1"),
        ("[12, 0, 1, 5]", "name:7", "unknown client '7'"),
        ("[12, 0, 1, 5]", "number:x", "expected a number behind number:, from 0"),
        ('[7, "7"]', "name:7", "the name of the clients 0, 1; write number:0"),
        ("{}", "1", "clients.json cannot be read: expected a list of names"),
        ("[[1]]", "1", "clients.json cannot be read: expected a list of names"),
    ],
)
def test_a_client_that_may_be_meant_in_two_ways_is_refused(
    names: str, word: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_or_create_ring(tmp_path / "owner.key")
    (tmp_path / "clients.json").write_text(names)
    with pytest.raises(SystemExit) as ended:
        export(tmp_path, load(None, {**ALIGNED, "clients": 20}), word)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert list(tmp_path.glob("*.own")) == []


@pytest.mark.parametrize(
    ("changes", "name", "told"),
    [
        ({"encryption.scope": "shared"}, "1", "all clients share one key"),
        ({"encryption.scope": "block"}, "1", "all clients share one key"),
        ({"encryption.scope": "image", "encryption.adapt": False}, "1", "every image has its own"),
        ({"encryption.steps": []}, "1", "the images are plain"),
        ({}, "2", "expected a number from 0 to 1"),
        ({}, "south ward", "clients.json"),
    ],
)
def test_what_has_no_key_of_one_client_is_refused_with_the_reason(
    changes: dict[str, Any],
    name: str,
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    open_or_create_ring(tmp_path / "owner.key")
    policy = {"finetuning.patch_embedding": "aggregate"} if changes else {}
    with pytest.raises(SystemExit) as ended:
        export(tmp_path, load(None, {**ALIGNED, **policy, **changes}), name)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert list(tmp_path.glob("*.own")) == []

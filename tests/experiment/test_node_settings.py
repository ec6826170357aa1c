"""What a deployed node reads off what its operator gave it, without a SuperLink."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

import strategies
from fl_vitlora.config import Config, DataConfig, load, to_yaml
from fl_vitlora.data import sources
from fl_vitlora.data.owner import key_holder, write_encrypted_shards
from fl_vitlora.encryption.keys import open_or_create_ring
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.deployment import _classes, make_node_app, node_settings
from fl_vitlora.experiment.owner_keys import hand_out_keys
from fl_vitlora.experiment.preparation import prepare_storage
from fl_vitlora.flower.client.workspace import ClientSettings, workspace
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.folding import fold, unfold

DIGITS = tuple(str(digit) for digit in range(10))


@pytest.fixture
def handed_out(tmp_path: Path) -> Path:
    """A node's folder: its shard, its storage key and its configuration; the ring is elsewhere."""
    owners = load(None, {"encryption.key_file": str(tmp_path / "owner.key")})
    secret = open_or_create_ring(tmp_path / "owner.key").current
    train, test = sources.load(DataConfig(limit=20))
    node = tmp_path / "node"
    (node / "shards").mkdir(parents=True)
    write_encrypted_shards(
        node / "shards",
        train=train,
        test=test,
        parts=[np.arange(12), np.arange(12, 20)],
        test_parts=[],
        holder=key_holder(owners, patch_size=4, image_shape=(3, 16, 16), secret=secret),
        metadata={},
        storage=prepare_storage(owners),
    )
    hand_out_keys(owners, [node / "shards"], node / "keys")
    config = load(None, {"encryption.key_file": str(node / "nowhere.key"), "engine.device": "cpu"})
    (node / "config.yaml").write_text(to_yaml(config))
    return node


def settings_of(node: Path, **given: Any) -> ClientSettings:
    """Reads the settings of a node that its operator gave these values."""
    return node_settings(context_of(node, **given), load_strategy)


def context_of(node: Path, run: int = 1, **given: Any) -> Context:
    """The context of a node that its operator gave these values."""
    values: dict[str, bool | float | int | str] = {
        "partition-id": 0,
        "config": str(node / "config.yaml"),
        "shards": str(node / "shards"),
    }
    values.update({name.replace("_", "-"): str(value) for name, value in given.items()})
    return Context(run, 1, values, RecordDict(), {})


def load_strategy(config: Config, confirmed: Collection[str] = ()) -> Any:
    return strategies.load_for(config)


def test_a_node_opens_its_shard_with_its_storage_key_alone(handed_out: Path) -> None:
    settings = settings_of(handed_out, storage_key=handed_out / "keys" / "client-00000.key")
    assert settings.class_names == DIGITS
    assert settings.config.encryption.key_file == ""
    assert settings.storage is not None
    assert settings.storage.roots == {}
    assert len(workspace(settings).shard("client-00000.safetensors")) == 12
    with pytest.raises(UserError, match=r"sealed under storage key .* of test"):
        workspace(settings).shard("test.safetensors")


@pytest.mark.parametrize("client", [0, 1])
def test_a_node_that_turns_tensors_reads_its_own_shard_alone(handed_out: Path, client: int) -> None:
    """Which secret of the ring it is must not be asked of a shard that it cannot open."""
    aligned = {
        "encryption.key_file": str(handed_out.parent / "owner.key"),
        "engine.device": "cpu",
        "encryption.scope": "client",
        "encryption.adapt": True,
        "finetuning.patch_embedding": "aligned",
    }
    (handed_out / "config.yaml").write_text(to_yaml(load(None, aligned)))
    key = handed_out / "keys" / f"client-{client:05d}.key"
    settings = settings_of(handed_out, partition_id=client, storage_key=key)
    holder = workspace(settings).holder
    assert holder is not None
    assert holder.secret == open_or_create_ring(handed_out.parent / "owner.key").current


def test_a_node_without_a_storage_key_says_what_it_needs(handed_out: Path) -> None:
    with pytest.raises(UserError, match=r"client-00000\.safetensors is sealed .* storage-key"):
        settings_of(handed_out)
    with pytest.raises(UserError, match=r"nothing\.key: no such file"):
        settings_of(handed_out, storage_key=handed_out / "nothing.key")


def test_a_node_counts_classes_as_the_run_does_where_it_is_told(handed_out: Path) -> None:
    key = handed_out / "keys" / "client-00000.key"
    (handed_out / "classes.json").write_text(json.dumps(DIGITS[::-1]))
    own = settings_of(handed_out, storage_key=key)
    before = workspace(own).shard("client-00000.safetensors").labels
    told = settings_of(handed_out, storage_key=key, classes=handed_out / "classes.json")
    assert told.class_names == DIGITS[::-1]
    after = workspace(told).shard("client-00000.safetensors").labels
    assert [told.class_names[n] for n in after] == [own.class_names[n] for n in before]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({}, 'has no test.safetensors, so the names of the classes are unknown; .*classes="FILE"'),
        (
            {"classes": ""},
            "has no test.safetensors, so the names of the classes are unknown; .*FILE",
        ),
        ({"classes": 10}, "classes: expected a list with the names of the classes"),
        ({"classes": "nowhere.json"}, "classes nowhere.json cannot be read"),
    ],
)
def test_a_server_without_test_images_is_told_the_classes_by_name(
    tmp_path: Path, given: dict[str, Any], says: str
) -> None:
    """A number of classes names none."""
    with pytest.raises(UserError, match=says):
        _classes(given, tmp_path, None)


def test_a_server_takes_a_list_of_classes_or_a_file_with_one(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('["cat", "dog"]\n')
    for given in ('["cat", "dog"]', str(tmp_path / "classes.json")):
        assert _classes({"classes": given}, tmp_path / "nowhere", None) == ("cat", "dog")


def greeted(app: ClientApp, context: Context) -> list[Any]:
    """The names of the classes in the answer of a node to the server's first message."""
    message = Message(fold(RecordDict(), {}, {}), dst_node_id=1, message_type=MessageType.QUERY)
    names = unfold(app(message, context).content).content.config_records[messages.CONFIG]
    found = names[messages.CLASSES]
    assert isinstance(found, list)
    return found


def test_a_node_reads_its_files_once_in_each_run(
    handed_out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    read: list[Config] = []

    def load_once(config: Config, confirmed: Collection[str] = ()) -> Any:
        read.append(config)
        return strategies.load_for(config, confirmed)

    app, names = make_node_app(load_once), handed_out / "classes.json"
    given: dict[str, Any] = {
        "storage_key": handed_out / "keys" / "client-00000.key",
        "classes": names,
    }
    with pytest.raises(UserError, match="cannot be read"):
        greeted(app, context_of(handed_out, **given))
    names.write_text(json.dumps(DIGITS))
    read.clear()
    assert greeted(app, context_of(handed_out, **given)) == [*DIGITS]
    names.write_text(json.dumps(DIGITS[::-1]))
    assert greeted(app, context_of(handed_out, **given)) == [*DIGITS]
    assert len(read) == 1
    assert greeted(app, context_of(handed_out, run=2, **given)) == [*DIGITS[::-1]]
    assert len(read) == 2

"""Plain and encrypted images of a client are drawn if the owner asks for them, and only then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fl_vitlora.command_line import tools
from fl_vitlora.config import DataConfig, load, to_yaml
from fl_vitlora.data.owner import write_encrypted_shards
from fl_vitlora.data.shard_pieces import AT_ONCE
from fl_vitlora.data.shards import NO_KEYS, client_shard
from fl_vitlora.data.sources import load as load_images
from fl_vitlora.encryption.storage_keys import StorageKey, StorageKeys
from fl_vitlora.errors import UserError
from fl_vitlora.experiment import example_images
from fl_vitlora.experiment.deployment import prepare_server
from fl_vitlora.experiment.example_images import examples_of
from fl_vitlora.flower.simulation.engine import Engine
from tests.data import digit_shards
from tests.experiment.test_node_settings import handed_out as handed_out  # noqa: PLC0414 - a fixture
from tests.experiment.test_node_settings import load_strategy, settings_of
from tests.whole_runs import execute

PICTURE = Path("plots") / "plain_examples.png"


@pytest.mark.parametrize("scope", ["shared", "client", "image", "block"])
def test_the_images_are_those_of_the_owner_and_of_the_shard(scope: str, tmp_path: Path) -> None:
    digits, holder = load_images(DataConfig(limit=30)), digit_shards.holder_of(scope=scope)
    content = digit_shards.write(tmp_path, digits, holder, apart=False)
    path = tmp_path / client_shard(0)
    plain, cipher, labels = examples_of(path, holder, NO_KEYS, 6)
    owned = {image.numpy().tobytes() for image in content[path.name][0]}
    assert len(plain) == len(cipher) == len(labels) == 6
    assert {image.numpy().tobytes() for image in plain} <= owned
    assert not {image.numpy().tobytes() for image in cipher} & owned
    assert labels == sorted(set(labels))  # one image of each of the first classes


def test_a_class_is_shown_again_only_if_there_are_too_few_classes(tmp_path: Path) -> None:
    digits, holder = load_images(DataConfig(limit=30)), digit_shards.holder_of()
    content = digit_shards.write(tmp_path, digits, holder, apart=False)
    images = content[client_shard(0)][0]
    plain, _, labels = examples_of(tmp_path / client_shard(0), holder, NO_KEYS, 100)
    assert len(plain) == len(images)
    first = labels[: len(set(labels))]
    assert first == sorted(set(labels))


@pytest.mark.parametrize("storage", [None, StorageKey(name="a", root=digit_shards.SECRET)])
def test_classes_of_a_large_shard_are_found_in_every_piece_of_it(
    storage: StorageKey | None, tmp_path: Path
) -> None:
    """A shard that is sorted by class, of images of which only ten are in memory together."""
    digits, side = load_images(DataConfig())[0], 1024
    assert AT_ONCE // (3 * side**2) == 10
    places = [np.flatnonzero(digits.labels == label) for label in range(3)]
    positions = np.concatenate([places[0][:10], places[1][:1], places[2][:1]])
    holder = digit_shards.holder_of(size=(side, side), scope="image")
    write_encrypted_shards(
        tmp_path,
        train=digits,
        test=digits,
        parts=[positions],
        test_parts=[positions[:1]],
        validation=[],
        holder=holder,
        metadata={},
        storage=storage,
    )
    keys = NO_KEYS if storage is None else StorageKeys(roots={storage.name: storage.root})
    plain, _, labels = examples_of(tmp_path / client_shard(0), holder, keys, 3)
    assert labels == [0, 1, 2]
    assert torch.equal(plain, digits.read(positions[[0, 10, 11]], side, side))


@pytest.mark.parametrize(
    ("given", "deployed", "told"),
    [
        ({"data.shards": "site"}, False, "with data.shards a run has none"),
        ({}, True, "a deployed server or node has none"),
    ],
)
def test_a_program_without_plain_images_refuses(
    given: dict[str, Any], deployed: bool, told: str
) -> None:
    config = load(None, {"plain_examples": 4, **given})
    with pytest.raises(UserError, match=f"plain_examples 4: .*{told}"):
        example_images.check(config, deployed=deployed)
    example_images.check(load(None, given), deployed=deployed)


def test_a_node_of_a_deployment_refuses(handed_out: Path) -> None:
    config = load(None, {"encryption.key_file": str(handed_out / "no.key"), "plain_examples": 4})
    (handed_out / "config.yaml").write_text(to_yaml(config))
    with pytest.raises(UserError, match="a deployed server or node has none"):
        settings_of(handed_out, storage_key=handed_out / "keys" / "client-00000.key")


def test_the_server_of_a_deployment_refuses(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(to_yaml(load(None, {"plain_examples": 4})))
    given = {"config": "config.yaml", "shards": "shards", "out": "run"}
    given = {name: str(tmp_path / place) for name, place in given.items()}
    with pytest.raises(UserError, match="a deployed server or node has none"):
        prepare_server(given, load_strategy)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_run_draws_the_picture_on_request_and_its_report_shows_it(
    tmp_path: Path, engine: Engine
) -> None:
    pytest.importorskip("plotly", reason="needs pip install -e '.[report]'")
    ring = str(tmp_path / "owner.key")
    usual = execute(tmp_path / "usual", engine, encryption__key_file=ring)
    asked = execute(tmp_path / "asked", engine, encryption__key_file=ring, plain_examples=5)
    assert not (usual.folder / PICTURE).exists()
    assert (asked.folder / PICTURE).stat().st_mode & 0o777 == 0o600
    assert [line["loss"] for line in asked.lines] == [line["loss"] for line in usual.lines]
    for done, shown in ((usual, False), (asked, True)):
        tools.main(["report", str(done.folder)])
        page = done.folder / "report.html"
        caption = "Training images of client 0, plain above and encrypted below"
        assert (caption in page.read_text()) == shown
        assert (page.stat().st_mode & 0o077 == 0) == shown


@pytest.mark.slow
def test_images_that_are_not_encrypted_are_drawn_too(tmp_path: Path, engine: Engine) -> None:
    done = execute(tmp_path, engine, plain_examples=20, encryption__steps=[])
    assert (done.folder / PICTURE).exists()

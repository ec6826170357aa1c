"""A run on shards that owners made elsewhere: what is taken from them, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import fl_vitlora as fv
from fl_vitlora.config import Config, given_paths, load
from fl_vitlora.data.given_shards import GivenShards, find_given
from fl_vitlora.data.shards import read_shard, write_shard
from fl_vitlora.encryption.keys import open_ring
from fl_vitlora.encryption.storage_keys import of_secret, open_all_party_keys
from fl_vitlora.errors import UserError
from fl_vitlora.experiment import elsewhere
from tests.made_up_owners import CLASSES, make_folder, program

OWNERS = 3
SAME = ("--scope", "client", "--seed", 4)


def encrypt(folder: Path, owner: int, *words: object, out: str = "site") -> None:
    """Lets an owner encrypt its images, with a ring of its own, and hand out its storage key."""
    place = folder / out / f"owner {owner}"
    ring, key = folder / "rings" / f"{owner}.key", folder / "keys" / f"client-{owner:05d}.key"
    given = ("--client", owner, "--key", ring, "--model", "vit_letters_16", "--storage-key", key)
    program("encrypt", folder / f"own {owner}", place, *given, *words)


@pytest.fixture(scope="module")
def owners(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three owners, each with its own ring and its own order of the classes."""
    folder = tmp_path_factory.mktemp("owners")
    for owner in range(OWNERS):
        make_folder(folder / f"own {owner}", seed=owner, each=8)
        classes = folder / f"classes {owner}.json"
        classes.write_text(json.dumps([*CLASSES[owner:], *CLASSES[:owner]]))
        encrypt(folder, owner, "--scope", "client", "--seed", 4, "--classes", classes)
    return folder


@pytest.fixture
def place(owners: Path, tmp_path: Path) -> Path:
    """A copy of the owners' folders, which a test may spoil."""
    shutil.copytree(owners, tmp_path / "copy")
    return tmp_path / "copy"


def fitted(place: Path, **settings: Any) -> tuple[Config, GivenShards, list[str]]:
    """Fits an experiment to the shards; names of settings have __ for dots."""
    given = {name.replace("__", "."): value for name, value in settings.items()}
    given |= {"data.shards": str(place / "site"), "data.storage_keys": str(place / "keys")}
    notes: list[str] = []
    config, shards = elsewhere.fitted(load(None, given), given_paths({}, given), notes.append)
    elsewhere.check_evaluated(config, shards)
    return config, shards, notes


def shard(place: Path, owner: int, part: str = "") -> Path:
    return place / "site" / f"owner {owner}" / f"client-{owner:05d}{part}.safetensors"


def test_settings_that_nobody_has_written_are_taken_from_the_shards(owners: Path) -> None:
    config, shards, notes = fitted(owners)
    assert (config.clients, config.encryption.scope, config.seed) == (OWNERS, "client", 4)
    assert (config.encryption.block_size, config.model.image_size) == (4, (16, 16))
    assert len(notes) == 1
    for told in ("clients=3", "encryption.scope=client", "seed=4"):
        assert told in notes[0]
    assert len(set(shards.keys.values())) == OWNERS
    again, _, none = fitted(
        owners,
        clients=OWNERS,
        seed=4,
        encryption__scope="client",
        encryption__block_size=4,
        model__image_size=16,
        data__name=str(owners / "site"),
    )
    assert again.encryption == config.encryption
    assert [note for note in none if "taken" in note] == []


def test_classes_are_matched_by_their_names(owners: Path) -> None:
    _, shards, _ = fitted(owners)
    assert [shards.shards[f"client-{k:05d}.safetensors"].class_names for k in range(OWNERS)] == [
        (*CLASSES[k:], *CLASSES[:k]) for k in range(OWNERS)
    ]
    assert shards.class_names == CLASSES
    assert shards.counts().tolist() == [[8, 8, 8]] * OWNERS


def test_settings_of_the_owners_that_change_nothing_are_told(owners: Path) -> None:
    _, _, notes = fitted(owners, data__limit=5, data__partition="iid", data__fit="crop")
    assert "data.limit, data.partition" in notes[0]


def spoil_content(place: Path) -> None:
    content = bytearray(shard(place, 1).read_bytes())
    content[-100] ^= 1
    shard(place, 1).write_bytes(content)


def give_another_name(place: Path) -> None:
    shutil.copy(shard(place, 1), shard(place, 2))


def give_the_same_name(place: Path) -> None:
    shutil.copy(shard(place, 1), shard(place, 2).with_name(shard(place, 1).name))


def give_a_short_name(place: Path) -> None:
    shard(place, 1).rename(shard(place, 1).with_name("client-1.safetensors"))


def lose_a_key(place: Path) -> None:
    (place / "keys" / "client-00001.key").unlink()


def with_words(*words: object) -> Callable[[Path], None]:
    """Returns a function that lets owner 1 encrypt again in another way."""

    def spoil(place: Path) -> None:
        encrypt(place, 1, "--replace", *words)

    return spoil


def with_other_classes(place: Path) -> None:
    (place / "more.json").write_text(json.dumps([*CLASSES, "cow"]))
    encrypt(
        place, 1, "--replace", "--scope", "client", "--seed", 4, "--classes", place / "more.json"
    )


SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "a client is missing": (lambda p: shard(p, 1).unlink(), r"expected client-00001.safetensors"),
    "a name occurs twice": (
        give_the_same_name,
        "have the same name",
    ),
    "a shard is damaged": (spoil_content, "client-00001.safetensors is damaged or was changed"),
    "a shard has another's name": (give_another_name, "is the train shard of client 1"),
    "a name is written otherwise": (give_a_short_name, "expected the name client-00001"),
    "a storage key is missing": (lose_a_key, "client-00001.*is sealed under storage key"),
    "own test images are missing": (
        lambda p: shard(p, 1, "-test").unlink(),
        "client-00001-test.safetensors is missing; every client evaluates",
    ),
    "another scope": (with_words("--seed", 4, "--scope", "image"), "has scope image"),
    "another seed": (with_words("--scope", "client", "--seed", 5), "has seed 5"),
    "other steps": (with_words(*SAME, "--scheme", "EtC"), "has steps"),
    "another size": (
        with_words(*SAME, "--image-size", 32, "--patch-size", 4),
        "has image_size",
    ),
    "other classes": (with_other_classes, "has other classes than .* 'cow'"),
    "no shards": (lambda p: shutil.rmtree(p / "site"), "expected a folder with shards"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_shards_that_do_not_fit_are_refused_in_one_line(place: Path, what: str) -> None:
    spoil, told = SPOILT[what]
    spoil(place)
    with pytest.raises(UserError, match=told) as refused:
        fitted(place)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"clients": 20}, "clients 20: .* have 3; set clients=3"),
        ({"encryption__scope": "shared"}, "encryption.scope shared: .*have client"),
        ({"seed": 0}, "seed 0: .*have 4"),
        ({"encryption__steps": "EtC"}, "encryption.steps .*set encryption.steps="),
        ({"encryption__block_size": 8}, "encryption.block_size 8"),
        ({"encryption__at_rest": "none"}, "encryption.at_rest none"),
        ({"model__image_size": 32}, "model.image_size"),
        ({"data__validation_fraction": 0.1}, "client-00000-validation.safetensors is missing"),
        ({"encryption__adapt": True, "finetuning__method": "lora"}, ""),
    ],
)
def test_a_written_setting_must_be_that_of_the_shards(
    owners: Path, settings: dict[str, Any], told: str
) -> None:
    if not told:  # this needs the keys of the images, which only the rings have
        config, shards, _ = fitted(owners, **settings)
        with pytest.raises(UserError, match=r"encryption.adapt needs the owners' secrets"):
            elsewhere.keys_at_hand(config, shards.keys)
        config, shards, _ = fitted(owners, **settings, encryption__key_file=str(owners / "rings"))
        assert elsewhere.keys_at_hand(config, shards.keys)
        return
    with pytest.raises(UserError, match=told):
        fitted(owners, **settings)


def test_a_common_key_is_one_key(place: Path) -> None:
    """Owners with rings of their own have no common key, whatever their shards say."""
    for owner in range(OWNERS):
        words = ("--replace", "--scope", "shared", "--seed", 4)
        encrypt(place, owner, *words)
    with pytest.raises(UserError, match=r"expected one key with encryption\.scope shared"):
        fitted(place)


def test_content_and_not_the_seal_decides_the_digest(place: Path) -> None:
    """A file that is sealed anew has another salt, so all its bytes differ."""
    keys = open_all_party_keys(place / "keys")
    before, path = find_given(place / "site", keys), shard(place, 1)
    content, metadata = read_shard(path, keys)
    sealed = path.read_bytes()
    storage = of_secret(open_ring(place / "rings" / "1.key").current)
    write_shard(path, content, metadata, storage)
    assert path.read_bytes() != sealed
    assert find_given(place / "site", keys).digest == before.digest
    content.labels[0] = (content.labels[0] + 1) % 3
    write_shard(path, content, metadata, storage)
    assert find_given(place / "site", keys).digest != before.digest


@pytest.mark.slow
def test_a_run_on_shards_is_the_run_that_made_them(tmp_path: Path) -> None:
    """The weights are the same bits, with and without the key of the images."""
    settings = {
        "clients": 2,
        "rounds": 2,
        "data.limit": 60,
        "engine.device": "cpu",
        "engine.workers": 1,
        "encryption.key_file": str(tmp_path / "owner.key"),
        "out": str(tmp_path / "first"),
    }
    first = fv.run(settings)
    program(
        "keys", "storage", tmp_path / "first", tmp_path / "keys", "--key", tmp_path / "owner.key"
    )
    for name, more in (
        ("keyed", {"encryption.key_file": settings["encryption.key_file"]}),
        ("without", {"data.storage_keys": str(tmp_path / "keys"), "encryption.key_file": "none"}),
    ):
        given = {key: settings[key] for key in ("rounds", "engine.device", "engine.workers")}
        run = fv.run({**given, **more, "out": str(tmp_path / name)}, shards=tmp_path / "first")
        one, other = (load_file(r.folder / "model.safetensors") for r in (first, run))
        assert all(torch.equal(one[key], other[key]) for key in one)
        views = first.result["accuracy_by_view"]
        expected = views if name == "keyed" else {"right_key": views["right_key"]}
        assert run.result["accuracy_by_view"] == expected
        assert run.result["encryption"]["key_id"] == first.result["encryption"]["key_id"]
        assert not Path("none").exists()


@pytest.mark.slow
def test_every_owner_has_a_ring_of_its_own(owners: Path, tmp_path: Path) -> None:
    """With a folder of rings each client has its own, also if models are adapted to keys."""
    settings = {
        "rounds": 3,
        "engine.device": "cpu",
        "engine.workers": 1,
        "data.storage_keys": str(owners / "keys"),
        "encryption.adapt": True,
        "finetuning.patch_embedding": "aligned",
    }
    with pytest.raises(UserError, match="needs the owners' secrets"):
        fv.run({**settings, "out": str(tmp_path / "refused")}, shards=owners / "site")
    assert not (tmp_path / "refused").exists()
    ring = {"encryption.key_file": str(owners / "rings"), "out": str(tmp_path / "run")}
    run = fv.run({**settings, **ring}, shards=owners / "site")
    assert set(run.result["accuracy_by_view"]) == {"right_key", "wrong_key", "no_key"}
    assert run.accuracy is not None
    assert run.accuracy > 0.9
    for owner in range(OWNERS):
        pictures = owners / f"own {owner}" / "test"
        found = run.predict(pictures, client=owner)
        right = [row["class"] == Path(row["image"]).parts[-2] for row in found.rows()]
        assert sum(right) > 0.9 * len(right)

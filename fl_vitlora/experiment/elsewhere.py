"""Fits an experiment to shards that owners made elsewhere, and puts the shards into a run folder.

Settings of the encryption that the user has not set are taken from the shards. Settings that the
user has set must have the values of the shards. Everything is checked before a file is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from fl_vitlora.adaptation import policies
from fl_vitlora.config import Config, differences, resolve, to_mapping
from fl_vitlora.data.classes import count, name_some, printable
from fl_vitlora.data.given_shards import GivenShards, find_given, shown_value
from fl_vitlora.data.holding_out import has_validation
from fl_vitlora.data.shard_store import place
from fl_vitlora.data.shards import TEST_SHARD, VALIDATION_SHARD
from fl_vitlora.encryption.keys import key_id, open_rings
from fl_vitlora.encryption.storage_keys import BY_PASSPHRASE
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.preparation import storage_keys
from fl_vitlora.experiment.run_shards import one_or_all
from fl_vitlora.models.backbone import Backbone

OF_THE_RUN = frozenset(  # settings of the data that also have an effect with shards made elsewhere
    ("data.shards", "data.storage_keys", "data.validation_fraction", "data.validation_split")
)
OF_PREDICTIONS = frozenset(("data.fit", "data.background", "data.pixel_range"))


def fitted(
    config: Config,
    given: Collection[str] | None,
    note: Callable[[str], None],
    shards: GivenShards | None = None,
) -> tuple[Config, GivenShards]:
    """Opens the shards of an experiment, and fits the settings of the experiment to the shards.

    Args:
        config: The experiment; its setting `data.shards` is the folder of the shards.
        given: The dotted paths of the settings that the user has set. None if these paths are
            unknown; then every setting whose value is not the default counts as set by the user.
        note: A function that is called with sentences for the user.
        shards: The shards, if they have been read already.

    Returns:
        The experiment with the settings of the shards, and the shards.

    Raises:
        UserError: If a shard cannot be used, or if the user has set another value than the shards
            have.
    """
    if given is None:
        given = {path for path, _ in differences(Config(), config).items()}
    _tell_unused(config, given, note)
    if shards is None:
        shards = find_given(Path(config.data.shards or ""), storage_keys(config))
    changes = {
        path: value
        for path, value in _settings_of(shards).items()
        if _differs(config, path, value, given, shards)
    }
    config = resolve(to_mapping(config), {**changes, "data.name": str(shards.folder)})
    changes |= _evaluation(config, shards)
    config = resolve(to_mapping(config), changes)
    if changes:
        told = ", ".join(f"{path}={shown_value(value)}" for path, value in changes.items())
        note(f"settings taken from the shards in {shards.folder}: {told}")
    return config, shards


def _settings_of(shards: GivenShards) -> dict[str, Any]:
    """Returns the settings that the shards have, by their dotted paths."""
    own, first = shards.first.settings, shards.first
    seal = first.seal
    at_rest = "none" if seal is None else "ring"
    if seal is not None and seal.startswith(BY_PASSPHRASE):
        at_rest = "passphrase"
    found = {
        "clients": shards.clients,
        "encryption.steps": own["steps"],
        "encryption.at_rest": at_rest,
        "model.image_size": own["image_size"],
    }
    if not own["steps"]:
        return found
    names = ("scope", "block_size", "fixed_blocks", "fixed_entries")
    return found | {f"encryption.{name}": own[name] for name in names} | {"seed": own["seed"]}


def _differs(
    config: Config, path: str, value: Any, given: Collection[str], shards: GivenShards
) -> bool:
    """Returns True if a setting must get the value of the shards.

    Raises:
        UserError: If the user has set another value.
    """
    group, _, name = path.rpartition(".")
    now = getattr(getattr(config, group) if group else config, name)
    if path == "model.image_size" and now is not None:
        same = (now[0], now[-1]) == value
    else:
        same = now == value
    if not same and now is not None and path in given:
        raise UserError(
            f"{path} {shown_value(now)}: the shards, for example {shards.first.path}, have "
            f"{shown_value(value)}; set {path}={shown_value(value)}, or leave it out"
        )
    return not same


def check_same(config: Config, shards: GivenShards) -> None:
    """Checks that the settings of a run are still those of the shards with which it began.

    Raises:
        UserError: If a setting differs.
    """
    found = _settings_of(shards)
    for path, value in found.items():
        _differs(config, path, value, found, shards)


def check_shape(shards: GivenShards, model: Backbone) -> None:
    """Checks that the model reads images of the shards' size.

    Raises:
        UserError: If the model reads images of another size.
    """
    shape = tuple(shards.first.described.cipher.image_shape)
    if shape != tuple(model.image_shape):
        raise UserError(
            f"{shards.first.path} has images of the shape {list(shape)}, but the model reads "
            f"{list(model.image_shape)}; set model.image_size to the size of the images"
        )


def _evaluation(config: Config, shards: GivenShards) -> dict[str, Any]:
    """Returns new values for settings that say who evaluates, and on which images."""
    changes: dict[str, Any] = {}
    clients = policies.clients_evaluate(config)
    central_is_free = config.evaluation.by == "auto" and TEST_SHARD not in shards.shards
    if not clients and central_is_free and shards.has_all("test"):
        changes["evaluation.by"], clients = "clients", True
    has_some = shards.has_all("validation") if clients else VALIDATION_SHARD in shards.shards
    if has_some and not has_validation(config.data):
        changes["data.validation_split"] = "validation"
    return changes


def check_evaluated(config: Config, shards: GivenShards) -> None:
    """Checks that there are images for the evaluation.

    Args:
        config: The experiment, after all changes that its strategy demands.
        shards: The shards.

    Raises:
        UserError: If a shard for testing or validation is missing.
    """
    own, parts = policies.clients_evaluate(config), ["test"]
    if has_validation(config.data):
        parts.append("validation")
    for part, common in zip(parts, (TEST_SHARD, VALIDATION_SHARD), strict=False):
        lacking = [] if common in shards.shards else [common]
        if own:
            lacking = shards.lacking("test" if part == "test" else "validation")
        if lacking:
            who = "every client evaluates on its own images" if own else "the server evaluates"
            raise UserError(
                f"data.shards {shards.folder}: {lacking[0]} is missing; {who} (evaluation.by "
                f"{config.evaluation.by})"
                + (f", and {count(len(lacking), 'shard')} are missing" if len(lacking) > 1 else "")
            )


def _tell_unused(config: Config, given: Collection[str], note: Callable[[str], None]) -> None:
    """Calls `note` with the settings that have no effect, because the shards exist already."""
    changed = differences(Config(), config)
    unused = sorted(
        path
        for path in changed
        if path.startswith("data.") and path in given and path not in OF_THE_RUN | OF_PREDICTIONS
    )
    if unused:
        note(f"the shards are made already, so these settings change nothing: {', '.join(unused)}")


def keys_at_hand(config: Config, shards_keys: str | Mapping[str, str]) -> bool:
    """Returns True if the key ring has the secrets of all parties.

    Args:
        config: The experiment, with the path of the key ring, or of a folder of rings.
        shards_keys: The id of the secret that encrypts all shards, or the id of each party's secret
            by the name of the party.

    Raises:
        UserError: If a ring cannot be read, or a secret is missing that the experiment needs.
    """
    wanted = {shards_keys} if isinstance(shards_keys, str) else set(shards_keys.values())
    path = Path(config.encryption.key_file)
    known = {key_id(s) for s in open_rings(path).secrets} if path.exists() else set[str]()
    lacking = sorted(wanted - known)
    if lacking and policies.reader_is_stored(config):
        why = (
            "encryption.adapt" if policies.adapts(config) else "finetuning.patch_embedding aligned"
        )
        raise UserError(
            f"{why} needs the owners' secrets, and the key ring {path} lacks {', '.join(lacking)}; "
            "name a ring or a folder of rings that has them: --set encryption.key_file=PATH"
        )
    return not lacking


def put_into(shards: GivenShards, folder: Path) -> None:
    """Puts the shards into the folder of a run, as hard links where possible, otherwise as copies.

    Raises:
        WriteError: If a file cannot be written.
    """
    for name, one in shards.shards.items():
        place(one.path.resolve(), folder / name)


def tell(shards: GivenShards) -> str:
    """Returns the line of text that says which images a run uses."""
    keys = one_or_all(shards.keys)
    secrets = "one secret" if isinstance(keys, str) else f"{len(set(keys.values()))} secrets"
    names = name_some(shards.class_names)
    return printable(
        f"data: shards of {count(shards.clients, 'client')} from {shards.folder}, made elsewhere "
        f"under {secrets}: {count(shards.images('train'), 'image')} for training, "
        f"{shards.images('test'):,} for testing, {shards.images('validation'):,} for validation, "
        f"{len(shards.class_names)} classes: {names}"
    )

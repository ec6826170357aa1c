"""Checks files that an experiment uses in the same way as a run does, but starts no run.

Each function returns what it has checked, in words, and raises the error that the run would raise.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fl_vitlora.config import Config
from fl_vitlora.config.confirmation import check_confirmed
from fl_vitlora.data.class_names import read_names
from fl_vitlora.data.classes import count
from fl_vitlora.data.given_shards import find_given, read_given
from fl_vitlora.data.identity import DIGITS
from fl_vitlora.encryption.client_keys import open_client_key
from fl_vitlora.encryption.identities import open_pins
from fl_vitlora.encryption.keys import is_client_key, key_id, open_ring
from fl_vitlora.encryption.storage_keys import StorageKeys, open_party_keys
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.owner_keys import client_names
from fl_vitlora.experiment.preparation import prepare_images, storage_keys
from fl_vitlora.experiment.runner import check_settings
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.flower.strategies.aggregators import LoadStrategy
from fl_vitlora.reporting.run_folder import CLASSES, CLIENTS, find_run

SETTINGS = "names, ranges and combinations of settings, strategy, method, codecs and model"
IMAGES = "the images, their classes and their division among the clients"
SHARDS = "the shards that owners made elsewhere"


def check_experiment(
    config: Config,
    load_strategy: LoadStrategy,
    confirmed: frozenset[str],
    *,
    new: bool = True,
    typed: Collection[str] | None = None,
) -> str:
    """Checks an experiment without running it.

    Args:
        config: The settings.
        load_strategy: A function that makes the strategy of an experiment.
        confirmed: The names of code that the user typed on the command line.
        new: True if the run would make the folder `out`; False if the run in this folder would be
            resumed.
        typed: The paths of the settings that the user has set; see `elsewhere.fitted`.

    Returns:
        What was checked, in words.

    Raises:
        UserError: If the experiment cannot run.
    """
    check_confirmed(config, confirmed)
    strategy = load_strategy(config)
    if config.model.init_from is not None:
        start = Path(config.model.init_from)
        if find_run(start)[1] is None:
            raise UserError(f"model.init_from {start}: this run is not finished")
    check_settings(config, strategy, Watch(), resume=not new, typed=typed)
    if config.data.shards is not None:
        return f"{SETTINGS}; {SHARDS}" if new else SETTINGS
    if config.data.name != DIGITS and not Path(config.data.name).exists():
        return f"{SETTINGS}; the images of {config.data.name} are not on this disk, and not checked"
    prepare_images(config)
    return f"{SETTINGS}; {IMAGES}"


def check_folder_of_shards(folder: Path, config: Config) -> str:
    """Checks all shards in a folder, as a run with `data.shards` does.

    Args:
        folder: The folder.
        config: Settings that name the key ring or the storage keys, which open the files.
    """
    shards = find_given(folder, storage_keys(config))
    return (
        f"the shards of {count(shards.clients, 'client')}, with "
        f"{count(shards.images('train'), 'image')} for training, {shards.images('test'):,} for "
        f"testing and {shards.images('validation'):,} for validation: every file to its end, and "
        "that all agree in encryption, size and class names"
    )


def check_shard(path: Path, config: Config) -> str:
    """Checks one shard, as a run with `data.shards` does."""
    shard = read_given(path, storage_keys(config))
    return f"the shard of {shard.described.party} ({shard.described.part}), to its end"


def check_names(path: Path) -> tuple[str, str]:
    """Checks a file with the names of clients or of classes.

    Returns:
        Two texts: what the list contains, and what was checked. If the name of the file does not
        say whether it lists clients or classes, the first text is "list of names".
    """
    if path.name == CLIENTS:
        return "list of client names", f"the names of {len(client_names(path) or []):,} clients"
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"classes {path} cannot be read: {error}") from None
    number = len(read_names(text, f"classes {path}"))
    if path.name == CLASSES:
        return "list of class names", f"the names of {number:,} classes"
    return "list of names", f"{number:,} different names, as those of classes must be"


def check_keys(path: Path) -> tuple[str, str]:
    """Checks a file of keys: a key ring, a client key, a storage key or public identity keys.

    Returns:
        Two texts: what the file contains, and what was checked. No text contains a secret.

    Raises:
        UserError: If the file is none of these, or is damaged, or other users can read its secrets.
    """
    if is_client_key(path):
        key = open_client_key(path)
        return "key of one client", f"the key of {key.party} for seed {key.seed}, from {key.name}"
    try:
        words = [len(line.split()) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError):
        words = []
    if words and min(words) > 2:
        keys = open_party_keys(path)
        return "storage key", f"storage keys of {told_parties(keys)}"
    if words and set(words) == {2}:
        return "public identity keys", f"the keys of {count(len(open_pins(path).keys), 'client')}"
    ring = open_ring(path)
    ids = ", ".join(map(key_id, ring.secrets))
    return "key ring", f"{count(len(ring.secrets), 'secret')} ({ids}), readable by its owner alone"


def told_parties(keys: StorageKeys) -> str:
    """Returns the names of the parties whose files storage keys open."""
    return ", ".join(party for _, party in keys.parties)

"""Takes the shards of a run from a store, or makes the shards and keeps them in the store.

With a store, a second start of the same experiment reads, converts and encrypts no image. Two
experiments count as the same if their shards have the same recipe (`data.shard_recipe`). A recipe
is a text with everything that can change a byte of the shards.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fl_vitlora.config import Config, DataConfig
from fl_vitlora.config.units import unit_of
from fl_vitlora.data import owner
from fl_vitlora.data.classes import count
from fl_vitlora.data.identity import DIGITS, is_unchanged
from fl_vitlora.data.shard_recipe import write_recipe
from fl_vitlora.data.shard_store import Listed, ShardStore
from fl_vitlora.encryption.holder import KeyHolder
from fl_vitlora.encryption.keys import derive_key
from fl_vitlora.encryption.storage_keys import BY_PASSPHRASE, StorageKey
from fl_vitlora.experiment.preparation import OwnedImages, shard_metadata_of, write_shards
from fl_vitlora.reporting.run_folder import RunFolder
from fl_vitlora.storage.files import WriteError

KEPT = ".kept-shards"  # the name of the store beside the run folders, if the user names no store
AUTO, NONE = "auto", "none"
OFF = "data.keep_shards=none turns this off"


def take_or_write_shards(
    config: Config,
    images: OwnedImages,
    holder: KeyHolder,
    *,
    folder: RunFolder,
    storage: StorageKey | None,
    announce: Callable[[str], None] = lambda phase: None,
) -> str:
    """Puts the encrypted shards of all parties into a run folder.

    Args:
        config: The configuration of the experiment.
        images: The plain images and their division among the clients.
        holder: The key holder that encrypts the images.
        folder: The run folder.
        storage: The storage key with which the files are sealed; None if the files are not sealed.
        announce: A function that is called with the name of a phase before the phase begins.

    Returns:
        A sentence for the user that says from which store the shards were taken, or in which store
        the shards are kept; "" without a store.

    Raises:
        UserError: If an image cannot be read.
    """
    store = store_of(config.data, folder.path)
    recipe = _recipe(config, images, holder, storage) if store else None
    key = _key_of_store(holder, storage)
    if store and recipe:
        announce("looking for kept shards")
        taken = store.take(recipe, key, folder.shards)
        if taken:
            return _tell_taken(store, taken)
    announce("encrypting shards" if holder.cipher.steps else "writing plain shards")
    write_shards(config, images, holder, folder, storage)
    if not store or not recipe or not is_unchanged(images.identity or "", Path(config.data.name)):
        return ""
    return _keep(store, recipe, key, folder, _ids_of_secrets(holder, storage))


def store_of(config: DataConfig, run: Path) -> ShardStore | None:
    """Returns the store of shards for a run; None if the shards of the run are not kept.

    Args:
        config: The settings of the data.
        run: The path of the run folder.
    """
    automatic = config.keep_shards == AUTO
    if config.keep_shards == NONE or (automatic and config.name == DIGITS):
        return None
    chosen = run.absolute().parent / KEPT if automatic else Path(config.keep_shards)
    return ShardStore(folder=chosen, most=config.keep_at_most)


def _recipe(
    config: Config, images: OwnedImages, holder: KeyHolder, storage: StorageKey | None
) -> str | None:
    """Returns the recipe of the shards; None if another run cannot use the shards.

    The recipe is None if the data set has no identity, or if a passphrase seals the files. A
    passphrase gets a new salt in each run, so no other run has the same storage key.
    """
    if images.identity is None or (storage and storage.name.startswith(BY_PASSPHRASE)):
        return None
    metadata = shard_metadata_of(config)
    return write_recipe(
        config.data, images.identity, images, holder=holder, metadata=metadata, storage=storage
    )


def _key_of_store(holder: KeyHolder, storage: StorageKey | None) -> bytes:
    """Returns the key of the store, with which entries are named and authenticated.

    The key of the store is derived from the storage key, so nobody can decrypt an image with it.
    If the files are not sealed, the key of the store is derived from the owner's secret. If also
    the images are not encrypted, the key of the store is not secret.
    """
    secret = storage.root if storage else holder.secret
    return derive_key(secret, "kept shards")


def _ids_of_secrets(holder: KeyHolder, storage: StorageKey | None) -> set[str]:
    """Returns the ids of the secrets that encrypt the images or the files."""
    ids = {holder.key_id} if holder.cipher.steps else set()
    return ids if storage is None else ids | {storage.name}


def _keep(store: ShardStore, recipe: str, key: bytes, folder: RunFolder, ids: set[str]) -> str:
    """Stores the shards of a run folder in the store, and returns a sentence for the user."""
    try:
        if store.keep(recipe, key, owner.find_shards(folder.path), ids):
            return f"shards: kept in {_shown(store.folder)} for the next run ({OFF})"
    except WriteError as error:  # the run does not need the store
        return f"shards: not kept for the next run, because {error} ({OFF})"
    return (
        f"shards: not kept for the next run, because they have more than {_size(store.most)} "
        "(data.keep_at_most)"
    )


def _tell_taken(store: ShardStore, taken: Listed) -> str:
    size = _size(sum(size for size, _ in taken.values()))
    return (
        f"shards: {count(len(taken), 'file')} ({size}) reused from {_shown(store.folder)}, so no "
        f"image was read ({OFF})"
    )


def _size(amount: int) -> str:
    factor, unit = unit_of(amount)
    return f"{amount / factor:.1f} {unit}"


def _shown(path: Path) -> Path:
    """Returns a path; if the path is inside the current directory, the result is relative to it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path

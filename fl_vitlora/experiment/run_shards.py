"""Reads what the shards in a run folder have in common, so that the run can be continued."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fl_vitlora.data import owner
from fl_vitlora.data.class_names import disagreement
from fl_vitlora.data.shards import TEST_SHARD, class_names_of, shard_metadata
from fl_vitlora.encryption.at_rest import sealed_under
from fl_vitlora.encryption.storage_keys import StorageKeys
from fl_vitlora.errors import UserError
from fl_vitlora.reporting.run_folder import SHARDS

OWN_KEYS = ("client", "image")  # scopes in which parties need not share a secret


def holds_shards(run: Path) -> bool:
    """Returns True if a run folder contains at least one shard."""
    return any((run / SHARDS).glob("*.safetensors"))


@dataclass(frozen=True, kw_only=True)
class ShardsOfRun:
    """The metadata that the shards of a run have in common.

    Attributes:
        class_names: The names of the classes, in the order in which the run numbers them.
        key: The id of the secret with which the images are encrypted; empty if they are plain. If
            owners have secrets of their own, a dictionary with the id of each party's secret.
        sealed: The names of the storage keys that open the files.
    """

    class_names: tuple[str, ...]
    key: str | Mapping[str, str]
    sealed: frozenset[str]


def shards_of(run: Path, keys: StorageKeys) -> ShardsOfRun:
    """Reads the metadata that the shards of a run have in common.

    Args:
        run: The run folder.
        keys: The keys that may open the shards.

    Raises:
        UserError: If there is no shard, if shards differ in their keys or classes, or if a shard
            does not name its classes.
    """
    paths = owner.find_shards(run)
    metadata = {path: shard_metadata(path, keys) for path in paths}
    first = next((path for path in paths if path.name == TEST_SHARD), paths[0])
    key, names = metadata[first].get("key_id", ""), class_names_of(metadata[first], first)
    for path, one in metadata.items():
        other = one.get("key_id", "")
        if other != key and one.get("scope") not in OWN_KEYS:
            raise UserError(
                f"all shards of a run must be encrypted with one key, but {path} has the key "
                f"{other or 'none'}, and {first} has {key or 'none'}"
            )
        if set(own := class_names_of(one, path)) != set(names):
            raise UserError(
                f"all shards of a run must have the same classes, but {path} has other classes "
                f"than {first} ({disagreement(own, names)})"
            )
    sealed = {under[0] for path in paths if (under := sealed_under(path)) is not None}
    ids = {one["party"]: one.get("key_id", "") for one in metadata.values()}
    return ShardsOfRun(class_names=names, key=one_or_all(ids), sealed=frozenset(sealed))


def one_or_all(ids: Mapping[str, str]) -> str | Mapping[str, str]:
    """Returns the id of the secret that all parties share, or else all ids by party.

    Example:
        >>> one_or_all({"client 0": "a", "client 1": "a"})
        'a'
        >>> one_or_all({"client 0": "a", "test": "b"})
        {'client 0': 'a', 'test': 'b'}
    """
    different = set(ids.values())
    return different.pop() if len(different) == 1 else dict(ids)

r"""The key of one client, exported from the owner's key ring for the node of this client.

With the scope `client`, the key of a client is derived from the owner's secret in one step: every
encryption step has the subkey HKDF-SHA256(secret, "client K/seed S/STEP"). The file of a client has
these subkeys and the storage key of the client's files, but not the secret. HKDF is one-way, and
its outputs for different texts are independent (RFC 5869), so the file does not help to find the
secret or the key of another client. The file is a text:

    fl_vitlora client key 1
    party client 3
    seed 0
    key_id 1a009aae9b6a6aab
    storage 64 hexadecimal digits
    step block_scrambling 64 hexadecimal digits
    ...
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from fl_vitlora.encryption.cipher import subkeys
from fl_vitlora.encryption.keys import (
    CLIENT_KEY,
    SECRET_BYTES,
    derive_key,
    is_client_key,
    key_id,
    open_rings,
)
from fl_vitlora.encryption.steps import STEPS
from fl_vitlora.encryption.storage_keys import StorageKeys, of_ring, of_secret
from fl_vitlora.errors import UserError
from fl_vitlora.storage.files import PRIVATE, WriteError, write_atomically

SERVER = "server"  # its key is used only to shape its patch embedding


@dataclass(frozen=True, kw_only=True)
class ClientKey:
    """The key of one client.

    Attributes:
        party: The name of the client, for example "client 3".
        seed: The seed of the experiment, from which the subkeys were also derived.
        name: The id of the secret from which the key was derived.
        subkeys: The subkey of each encryption step, 32 bytes.
        storage: The storage key of the client's files, 32 bytes.
        source: The file of the key, for error messages.
    """

    party: str
    seed: int
    name: str
    subkeys: Mapping[str, bytes] = field(repr=False)
    storage: bytes = field(repr=False)
    source: str = "the key of a client"

    @property
    def client(self) -> int:
        """Returns the number of the client."""
        return int(self.party.removeprefix("client "))

    def subkeys_of(self, party: str, scope: str, seed: int) -> Mapping[str, bytes]:
        """Returns the subkeys, after a check that they are the subkeys of the given party.

        Args:
            party: The party whose key is needed.
            scope: The setting `encryption.scope`, which must be "client".
            seed: The seed of the experiment.

        Raises:
            UserError: If the scope is not "client", or if the key has another client or seed.
        """
        if scope != "client":
            raise UserError(
                f"{self.source} is the key of one client, but encryption.scope is {scope}; "
                "expected encryption.scope client"
            )
        if seed != self.seed:
            raise UserError(
                f"{self.source} was exported for seed {self.seed}, but the experiment has seed "
                f"{seed}; export the key again with the configuration of the experiment"
            )
        if party not in (self.party, SERVER):
            raise UserError(f"{self.source} is the key of {self.party}, not of {party}")
        return self.subkeys

    def changed(self, purpose: str) -> ClientKey:
        """Returns a key with other subkeys, each derived from one of these for a purpose."""
        others = {step: derive_key(subkey, purpose) for step, subkey in self.subkeys.items()}
        return replace(self, subkeys=others)

    def storage_keys(self) -> StorageKeys:
        """Returns the keys that open the files of the client's shards."""
        return StorageKeys(parties={(self.name, self.party): self.storage}, source=self.source)


def context_of(owner: str, seed: int) -> str:
    """Returns the text from which the keys of a party, or of all parties, are derived."""
    return f"{owner}/seed {seed}"


def derive_client_key(secret: bytes, party: str, seed: int) -> ClientKey:
    """Derives the key of one client from the owner's secret.

    Args:
        secret: The owner's secret of 32 bytes.
        party: The name of the client.
        seed: The seed of the experiment.
    """
    return ClientKey(
        party=party,
        seed=seed,
        name=key_id(secret),
        subkeys=subkeys(secret, context_of(party, seed), STEPS),
        storage=of_secret(secret).of_party(party),
    )


def write_client_key(path: Path, key: ClientKey) -> None:
    """Writes the key of a client to a new file that only the current user can read.

    Raises:
        UserError: If the file exists or cannot be written.
    """
    lines = [
        CLIENT_KEY.decode().strip(),
        f"party {key.party}",
        f"seed {key.seed}",
        f"key_id {key.name}",
        f"storage {key.storage.hex()}",
        *(f"step {step} {subkey.hex()}" for step, subkey in key.subkeys.items()),
    ]
    try:
        write_atomically(path, "\n".join(lines) + "\n", mode=PRIVATE, new=True)
    except WriteError as error:
        raise UserError(f"client key {error}") from None


def open_client_key(path: Path) -> ClientKey:
    """Reads the key of one client.

    Raises:
        UserError: If the file cannot be read, other users can read it, or its content is damaged.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"client key {path} cannot be read: {error}") from None
    if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise UserError(f"client key {path} can be read by other users; run: chmod 600 {path}")
    lines = [line.partition(" ") for line in text.splitlines()[1:]]
    plain = {name: value for name, _, value in lines if name != "step"}
    steps = dict(value.split(" ", 1) for name, _, value in lines if name == "step" and " " in value)
    try:
        key = ClientKey(
            party=plain["party"],
            seed=int(plain["seed"]),
            name=plain["key_id"],
            subkeys={step: bytes.fromhex(steps[step]) for step in STEPS},
            storage=bytes.fromhex(plain["storage"]),
            source=f"client key {path}",
        )
        _ = key.client  # raises an error if the party is no client
    except (LookupError, ValueError) as error:
        raise UserError(
            f"client key {path}: damaged or written by another version ({error}); export the key "
            "again: fl-vitlora keys client"
        ) from None
    for name, value in {"storage": key.storage, **key.subkeys}.items():
        if len(value) != SECRET_BYTES:
            raise UserError(
                f"client key {path}: {name} has {len(value)} bytes; expected {SECRET_BYTES}"
            )
    return key


def storage_keys_in(path: Path) -> StorageKeys:
    """Returns the keys that open files of shards, from a key ring, several rings or a client key.

    Args:
        path: The file, or the folder of several rings; it may be missing.

    Raises:
        UserError: If a file cannot be used.
    """
    if is_client_key(path):
        return open_client_key(path).storage_keys()
    return of_ring(open_rings(path)) if path.exists() else StorageKeys(source=f"key ring {path}")

"""Makes the settings of the clients.

All simulated clients have the same settings. In a deployment each SuperNode (a machine that runs a
client) has its own settings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fl_vitlora.config import Config
from fl_vitlora.encryption.identities import Identities
from fl_vitlora.encryption.storage_keys import StorageKeys
from fl_vitlora.flower.client.workspace import ClientSettings
from fl_vitlora.strategy import Strategy


def client_settings(
    config: Config,
    shards: Path,
    class_names: tuple[str, ...],
    device: str,
    strategy: Strategy,
    *,
    with_key: bool,
    storage: StorageKeys | None = None,
    identities: Identities | None = None,
    library: str = "",
) -> ClientSettings:
    """Returns the settings that every client of a simulation, or one node, needs.

    Storage keys open the files of shards, but do not decrypt the images in the files. The keys are
    passed in memory. If the keys were in a file, the file would be on the same disk as the shards
    and would not protect the shards.

    Args:
        config: The configuration of the experiment.
        shards: The folder of the shards (the files with the clients' images).
        class_names: The names of the classes, in the order of the head's outputs.
        device: The device on which clients train.
        strategy: The strategy, whose methods for clients are called.
        with_key: True if clients need the key ring (the file with the secrets). If `with_key` is
            False, the path of the key ring is left out.
        storage: The keys that open the files of the shards; None if the files are not sealed.
        identities: The identity keys with which clients sign the rosters of secure sums; None if
            clients do not sign rosters.
        library: The library for matrix products; an empty text if each client chooses the library.
    """
    ring = str(Path(config.encryption.key_file).resolve()) if with_key else ""
    return ClientSettings(
        shards=str(shards.resolve()),
        class_names=class_names,
        device=device,
        strategy=strategy,
        storage=storage,
        identities=identities,
        products=library,
        config=replace(config, encryption=replace(config.encryption, key_file=ring)),
    )


@dataclass(frozen=True)
class SameForAll:
    """A function object that returns the same settings for every simulated client.

    Ray can send an instance of this class to worker processes.

    Attributes:
        settings: The settings of all clients.
    """

    settings: ClientSettings

    def __call__(self, context: object) -> ClientSettings:
        """Returns the settings, which do not depend on Flower's context of the client."""
        del context
        return self.settings

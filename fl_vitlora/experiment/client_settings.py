"""The settings that clients get: the simulated ones all the same, a SuperNode its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fl_vitlora.config import Config
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
) -> ClientSettings:
    """Returns the settings of clients.

    Storage keys open the files of shards, but decrypt no image in them. They are handed over in
    memory: a file of them would lie on the disk beside the shards that it protects.

    Args:
        config: The experiment.
        shards: The folder of the shards.
        class_names: The names of the classes, in the order of the head's outputs.
        device: The device that clients train on.
        strategy: The client's half of the strategy.
        with_key: True if clients need the key ring. Otherwise its path is left out.
        storage: The keys that open the shards, if the shards are sealed at rest.
    """
    ring = str(Path(config.encryption.key_file).resolve()) if with_key else ""
    return ClientSettings(
        shards=str(shards.resolve()),
        class_names=class_names,
        device=device,
        strategy=strategy,
        storage=storage,
        config=replace(config, encryption=replace(config.encryption, key_file=ring)),
    )


@dataclass(frozen=True)
class SameForAll:
    """Gives every simulated client the same settings. Ray can send it to workers.

    Attributes:
        settings: The settings.
    """

    settings: ClientSettings

    def __call__(self, context: object) -> ClientSettings:
        """Returns the settings, whatever Flower's context of the client is."""
        del context
        return self.settings

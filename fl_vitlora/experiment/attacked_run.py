"""Opens a finished run for an audit: its settings, shards, keys, recorded updates and final model.

Letters in shapes: n images, C channels, H × W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fl_vitlora.adaptation import coordinates, policies
from fl_vitlora.adaptation.coordinates import Coordinates
from fl_vitlora.config import Config
from fl_vitlora.data import owner
from fl_vitlora.data.shards import Shard, client_shard, open_own_shard, owner_of
from fl_vitlora.encryption.holder import KeyHolder, client_party
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.encryption.storage_keys import StorageKeys
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.preparation import (
    prepare_holder,
    prepare_model,
    storage_keys,
)
from fl_vitlora.experiment.recorded_updates import RecordedRounds
from fl_vitlora.experiment.run_shards import shards_of
from fl_vitlora.flower.strategies.aggregators import Unaided
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import POSITION, WEIGHT, exchanged_reader, reader_of
from fl_vitlora.reporting.run_folder import MODEL, SHARDS, find_run, located
from fl_vitlora.state import State
from fl_vitlora.storage.checksummed import read_sealed
from fl_vitlora.strategy import Strategy

MOST_KNOWN = 2000  # the largest number of plain test images that an adversary has


@dataclass(frozen=True, kw_only=True)
class AttackedRun:
    """A finished run with all files and keys of its owners.

    Attributes:
        folder: The run folder.
        config: The settings of the run, with the changes that its strategy requires.
        class_names: The names of the classes, in the order of the run's labels.
        storage: The keys that open the files of the shards; None if the shards are not sealed.
        holder: The key holder for the images.
        backbone: The public model with the tensors of the fine-tuning method.
        origin: The patch reader (patch and position embedding) of the public model.
        final: The tensors of the final model.
        strategy: The strategy's methods for clients.
    """

    folder: Path
    config: Config
    class_names: tuple[str, ...]
    storage: StorageKeys | None = field(repr=False)
    holder: KeyHolder
    backbone: Backbone
    origin: PatchReader
    final: State
    strategy: Strategy

    @cached_property
    def start(self) -> PatchReader:
        """Returns the patch reader that the server had at the start of the run."""
        return coordinates.server_reader(self.config, self.origin, self.holder)

    @cached_property
    def rounds(self) -> RecordedRounds:
        """Returns the recorded rounds; there are none if the run did not record its updates."""
        return RecordedRounds(self.folder)

    @cached_property
    def known(self) -> Shard:
        """Returns the plain test images with their labels, at most `MOST_KNOWN`."""
        found, left = list[Shard](), MOST_KNOWN
        for path in owner.find_shards(self.folder):
            party, part = owner_of(path.name)
            if part == "test" and left:
                shard = self._open(path)
                plain = self.holder.decrypt(shard.images, party, "test")
                found.append(Shard(images=plain[:left], labels=shard.labels[:left]))
                left -= len(found[-1])
        if not found:
            raise UserError(f"{self.folder}: expected test images in {SHARDS}/, found none")
        return Shard(
            images=torch.cat([shard.images for shard in found]),
            labels=torch.cat([shard.labels for shard in found]),
        )

    def shard_path(self, client: int) -> Path:
        """Returns the path of a client's training shard."""
        return self.folder / SHARDS / client_shard(client)

    def shard(self, client: int) -> Shard:
        """Returns a client's training shard, with ciphertext and labels."""
        return self._open(self.shard_path(client))

    def plain(self, client: int) -> Tensor:
        """Returns the decrypted training images of a client."""
        return self.holder.decrypt(self.shard(client).images, client_party(client))

    def final_reader(self) -> PatchReader:
        """Returns the patch reader of the final model, in the coordinates of the server."""
        if WEIGHT not in self.final:
            return self.start
        reader = exchanged_reader(self.final, self.holder.cipher.geometry.blocks)
        return reader if POSITION in self.final else self.start.with_weight(reader.weight)

    def coordinates_of(self, party: str) -> Coordinates:
        """Returns the object that converts the server's tensors to the tensors of a party."""
        initial = dict(self.final)
        if WEIGHT in initial:
            initial[WEIGHT] = self.start.weight.reshape(initial[WEIGHT].shape)
        if POSITION in initial and self.start.position is not None:
            others = initial[POSITION][:, : -len(self.start.position)]
            initial[POSITION] = torch.cat([others, self.start.position.unsqueeze(0)], dim=1)
        return coordinates.of_party(
            self.config,
            origin=self.origin,
            start=self.start,
            initial=initial,
            holder=self.holder if policies.clients_turn(self.config) else None,
            party=party,
        )

    def _open(self, path: Path) -> Shard:
        return open_own_shard(path, self.class_names, self.storage)


def open_run(folder: Path, config: Config, strategy: object) -> AttackedRun:
    """Opens a finished run.

    Args:
        folder: The run folder.
        config: The settings of the run, in which paths lead to the files that the run used.
        strategy: The strategy of the run.

    Raises:
        UserError: If the run is not finished, or if a shard, the key ring or the model is missing.
    """
    if find_run(folder)[1] is None:
        raise UserError(
            f"--attack {folder}: this run is not finished; finish it first: --resume {folder}"
        )
    adapter = "lora"
    if isinstance(strategy, Strategy):
        config, adapter = policies.for_strategy(config, strategy), strategy.adapter
    lacking = next((c for c in range(config.clients) if not _has_shard(folder, c)), None)
    if lacking is not None:
        raise UserError(
            f"--attack {folder}: the shard of client {lacking} is missing; an audit needs the "
            "shards of all clients, which only the folder of a simulated run has"
        )
    keys = storage_keys(config)
    shards = shards_of(folder, keys)
    backbone = prepare_model(config, shards.class_names, "cpu", adapter)
    return AttackedRun(
        folder=folder,
        config=config,
        class_names=shards.class_names,
        storage=None if config.encryption.at_rest == "none" else keys,
        holder=prepare_holder(config, backbone, shards.key),
        backbone=backbone,
        origin=reader_of(backbone),
        final=read_sealed(folder / MODEL)[0],
        strategy=strategy if isinstance(strategy, Strategy) else Unaided(),
    )


def settings_of(folder: Path) -> Config:
    """Reads the settings of a run, in which paths lead to the files that the run used."""
    begun, _ = find_run(folder)
    return located(begun, begun, folder)


def _has_shard(folder: Path, client: int) -> bool:
    return (folder / SHARDS / client_shard(client)).is_file()

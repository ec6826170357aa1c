"""Opens the model of a finished run, as a PyTorch model that reads ciphertext or plain images.

The server of a run stores the exchanged tensors. Whether a model with these tensors reads
ciphertext or plain images depends on the settings (`adaptation.coordinates`). This module puts the
tensors into the public model, in the coordinates that the caller needs:

* The model for ciphertext reads images that are encrypted with the key of one party. The key is
  needed to make this model only if parties convert the server's patch embedding
  (`policies.clients_turn`). The key is not needed to use this model.
* The model for plain images has the effect of the key removed from its patch embedding, and also
  from its position embedding if the key moves patches. For the same image, the two models have the
  same outputs. If the server's model already works in the coordinates of plain images, no key is
  needed. A model for plain images exists only for keys to which a model can be adapted
  (`Cipher.adapt`).

Letters in shapes: n images, C channels, H × W pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import torch
from torch import Tensor, nn

from fl_vitlora.adaptation import coordinates, policies
from fl_vitlora.config import Config
from fl_vitlora.data.class_names import CLASS_NAMES, read_names
from fl_vitlora.encryption.holder import TEST, KeyHolder, client_party
from fl_vitlora.encryption.keys import open_rings
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.preparation import prepare_holder, prepare_model
from fl_vitlora.experiment.server_model import Server, make_server
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.finetuning import methods, shelf, targets
from fl_vitlora.flower.strategies.aggregators import AnyStrategy, client_half
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import READER_FILE, open_reader, put_reader, reader_of
from fl_vitlora.reporting.run_folder import BEST, MODEL, ROUND, SHARDS, find_run
from fl_vitlora.state import State
from fl_vitlora.storage.checksummed import read_sealed


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """The model of a finished run.

    Attributes:
        folder: The run folder.
        config: The settings of the run, with the changes that its strategy requires. Paths lead to
            the files that the run used.
        class_names: The names of the classes, in the order of the head's outputs.
        tensors: The exchanged tensors at the end of the run, and the sums that were added to frozen
            weights.
        key_id: The id of the secret with which the images are encrypted; "" if they are plain, or
            if several owners have secrets of their own.
        key_ids: The id of each party's secret, by the name of the party, if several owners have
            secrets of their own; otherwise empty.
        server: The server's model before the first round.
    """

    folder: Path
    config: Config
    class_names: tuple[str, ...]
    tensors: GlobalModel
    key_id: str
    server: Server = field(repr=False)
    key_ids: Mapping[str, str] = field(default_factory=dict)

    @property
    def backbone(self) -> Backbone:
        """Returns the public model with the tensors of the fine-tuning method."""
        return self.server.backbone

    @property
    def reads_plain(self) -> bool:
        """Returns True if the server's model reads plain images, so that no key is needed."""
        config = self.config
        # otherwise the server has added up changes that are in the coordinates of different clients
        plain = policies.aligns(config) or not policies.exchanges_reader(config)
        return not config.encryption.steps or (policies.computes_on_plain(config) and plain)

    def secrets_of(self, client: int | None) -> list[str]:
        """Returns the ids of the secrets from which the keys of images are derived.

        Args:
            client: The number of the client of the images; None for the images of all parties.

        Returns:
            The ids without repetition, in the order of the parties; empty if no id is known.
        """
        if client is not None and (own := self.key_ids.get(client_party(client))):
            return [own]
        return list(dict.fromkeys(self.key_ids.values())) or [self.key_id] * bool(self.key_id)

    @cached_property
    def holder(self) -> KeyHolder:
        """Opens the owners' key ring, and returns the key holder for the images of the run.

        Raises:
            UserError: If the key ring does not exist, or if the key ring has several secrets and
                the secret of this run is unknown.
        """
        ring = Path(self.config.encryption.key_file).absolute()
        if policies.lacks_key_ring(self.config):
            raise UserError(
                f"{self.folder}: the owners' key ring is needed, but {ring} does not exist; name "
                "the file: encryption.key_file=FILE"
            )
        if not self.key_id and not self.key_ids and len(open_rings(ring).secrets) > 1:
            raise UserError(
                f"{self.folder}: the run does not state with which secret its images are "
                f"encrypted, and the key ring {ring} has several secrets; name a key ring that has "
                "only the secret of this run"
            )
        return prepare_holder(self.config, self.backbone, self.key_ids or self.key_id)

    def encrypt(self, images: Tensor, client: int | None = None) -> Tensor:
        """Encrypts plain images with the key of a party, in the same way as the run's images.

        If every image has its own key, the key is derived from the secret and the image. Therefore
        different images never share a key, and equal images have equal ciphertext.

        Args:
            images: Plain images of the model's size, uint8 (n, C, H, W).
            client: The number of the client whose key is used, if every client has its own key.

        Returns:
            The ciphertext, uint8 (n, C, H, W).
        """
        if not self.config.encryption.steps:
            return images
        if self.config.encryption.scope == "image":
            named = [f"new image {sha256(i.numpy().tobytes()).hexdigest()}" for i in images]
            each = zip(torch.split(images, 1), named, strict=True)
            return torch.cat([self.holder.encrypt(image, name, "test") for image, name in each])
        return self.holder.encrypt(images, self._party(client), "test")

    def for_ciphertext(
        self, client: int | None = None, dtype: torch.dtype = torch.float32
    ) -> nn.Module:
        """Returns the model that reads images encrypted with the key of a party.

        Args:
            client: The number of the client whose images the model reads. This number is needed if
                every client has its own key and its own coordinates.
            dtype: The number format of the weights, in which products of matrices are added.

        Returns:
            A new model in evaluation mode, on the CPU. The inputs of the model are uint8 images,
            (n, C, H, W), after the function `backbone.normalize`.

        Raises:
            UserError: If the run folder has no such model, or if a needed key is missing.
        """
        keyed = policies.clients_turn(self.config)
        party = self._party(client) if keyed or client is not None else TEST
        own = coordinates.of_party(
            self.config,
            origin=self.server.origin,
            start=self.server.start,
            initial=self.server.initial,
            holder=self.holder if keyed else None,
            party=party,
        )
        return self._with(own.base, own.to_client(self.tensors.tensors), dtype)

    def for_plain(self, client: int | None = None, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Returns the model that reads plain images; see `for_ciphertext`.

        Raises:
            UserError: If a needed key is missing, or if no model for plain images exists. No model
                exists if every image has its own key, or if the method has learned the order of
                patches in ciphertext.
        """
        if client is not None:
            self._party(client)
        if self.reads_plain:
            return self._with(self.server.start, self.tensors.tensors, dtype)
        self._expect_no_token_order()
        model = self.for_ciphertext(client, dtype)
        reader = reader_of(replace(self.backbone, model=model))
        put_reader(model, self.holder.restore(reader, self._party(client)))
        return model

    def _expect_no_token_order(self) -> None:
        """Raises an error if the trained tensors depend on the order of patches in ciphertext."""
        if "block_scrambling" not in self.config.encryption.steps:
            return
        for name, part in shelf.method_of(self.config.finetuning).parts:
            if part.reads_token_order:
                raise UserError(
                    f"{self.folder}: the method {name} mixes patches in the order that the key "
                    "gave them, so no model for plain images exists; use the model for ciphertext"
                )

    def _with(self, reader: PatchReader, state: State, dtype: torch.dtype) -> nn.Module:
        """Returns a copy of the public model with a patch reader and trained tensors."""
        model = copy.deepcopy(self.backbone.model).to(dtype).eval()
        put_reader(model, reader)
        targets.put_increments(model, self.tensors.increments)
        methods.load_state(model, state)
        return model

    def _party(self, client: int | None) -> str:
        """Returns the party with whose key the images are encrypted.

        Raises:
            UserError: If every client has its own key and no client is named, or if the run has no
                client of this number.
        """
        own = self.config.encryption.scope == "client" and bool(self.config.encryption.steps)
        if client is None:
            if own:
                raise UserError(
                    f"{self.folder}: every client has its own key, so name the client of the "
                    f"images, with a number from 0 to {self.config.clients - 1}"
                )
            return TEST
        if not 0 <= client < self.config.clients:
            raise UserError(
                f"{self.folder}: there is no client {client}; expected a number from 0 to "
                f"{self.config.clients - 1}"
            )
        return client_party(client)


def open_model(
    folder: Path, config: Config, strategy: AnyStrategy, *, best: bool = False
) -> TrainedModel:
    """Opens the model of a finished run; no shards and no key are needed to open it.

    Args:
        folder: The run folder.
        config: The settings of the run, in which paths lead to the files that the run used.
        strategy: The strategy of the run.
        best: True for the model of the round with the best accuracy, instead of the model of the
            last round. The accuracy is measured on the validation images if the run has validation
            images, otherwise on the test images.

    Raises:
        UserError: If the run is not finished, or if its model is missing or damaged. The error is
            also raised if the clients kept some tensors for themselves, because no common model of
            all clients exists in this case.
    """
    result = find_run(folder)[1]
    if result is None:
        raise UserError(f"{folder}: this run is not finished; finish it first: --resume {folder}")
    path = folder / (BEST if best else MODEL)
    state, metadata = read_sealed(path)
    if CLASS_NAMES not in metadata:
        raise UserError(
            f"{path} has no list of class names, because an older version of this program wrote "
            "the model; run the experiment again"
        )
    if best and metadata.get(ROUND) != str(result["best"]["round"]):
        raise UserError(
            f"{path}: expected the model after round {result['best']['round']}, the best round of "
            f"the run, got that after round {metadata.get(ROUND)}; an interruption has lost the "
            "best model, so use the last model"
        )
    class_names = read_names(metadata[CLASS_NAMES], f"model {path}")
    half = client_half(strategy)
    config = policies.for_strategy(config, half)
    public = prepare_model(config, class_names, "cpu", half.adapter)
    model = TrainedModel(
        folder=folder,
        config=config,
        class_names=class_names,
        tensors=GlobalModel.of_stored(state),
        key_id=str(result.get("encryption", {}).get("key_id") or ""),
        key_ids=result.get("encryption", {}).get("key_ids", {}),
        server=_server_of(folder, config, public),
    )
    _expect_all(model, path)
    return model


def _server_of(folder: Path, config: Config, public: Backbone) -> Server:
    """Returns the server's model before the first round, with the stored patch reader."""
    stored = folder / SHARDS / READER_FILE
    if policies.reader_is_stored(config) and not stored.is_file():
        raise UserError(
            f"{stored}: this file does not exist; it has the server's initial patch embedding, "
            "without which the model cannot be opened"
        )
    if not policies.reader_is_stored(config):
        return make_server(public, lambda origin: origin)
    return make_server(public, lambda origin: open_reader(stored))


def _expect_all(model: TrainedModel, path: Path) -> None:
    """Raises an error if the file of a model lacks trained tensors, or has unknown tensors."""
    expected, found = set(model.server.initial), set(model.tensors.tensors)
    if kept := sorted(expected - found):
        raise UserError(
            f"{path} lacks {kept[0]} ({len(kept)} of {len(expected)} trained tensors), because the "
            "clients kept these tensors for themselves, so no model of all clients exists"
        )
    if strange := sorted(found - expected):
        raise UserError(f"{path} has {strange[0]}, which the method of the run does not train")

"""Makes the view of each adversary from a finished run, and the owners' secrets for scoring.

A view contains everything that an adversary knows. Each view is made by one function of this file,
so this file shows what each attack can see. Only the scoring gets the owners' secrets.

Letters in shapes: M images, L classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from fl_vitlora.adaptation import policies
from fl_vitlora.attacks.key_search.three_steps import three_steps
from fl_vitlora.attacks.truth import Opened, Owned, Truth
from fl_vitlora.attacks.views import (
    HostileServerView,
    InformedServerView,
    InsiderView,
    OutsiderView,
    Public,
    ServerView,
    ThiefView,
    UserView,
    View,
    WorkerView,
)
from fl_vitlora.config import Config, EncryptionConfig
from fl_vitlora.encryption.at_rest import sealed_under
from fl_vitlora.encryption.cipher import CipherKey
from fl_vitlora.encryption.holder import client_party
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.experiment.attacked_run import AttackedRun
from fl_vitlora.experiment.hostile_server import first_update, hostile_server
from fl_vitlora.finetuning import methods
from fl_vitlora.models.backbone import normalize
from fl_vitlora.models.reading import WEIGHT, exchanged_reader, put_reader
from fl_vitlora.training.local import scheduled_rate

ATTACKED = 3  # the number of clients whose shards are attacked; figures are means over the clients
CANDIDATES = 1000  # the largest number of members, and of other images, for membership attacks
PAIRS = 20  # the largest number of a client's images that an insider knows, at most half of them
OTHERS = 200  # the number of images on which no client trains, encrypted with each client's key
BATCH = 64  # the number of images in a batch
SEALED = "the shards are sealed on the disk (encryption.at_rest)"


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Images for which a user knows the logits that the final model computes.

    Attributes:
        logits: The logits of the final model, (M, L).
        images: The images as a model in the server's coordinates reads them.
        labels: The labels, int64 (M,).
        owners: The number of the client with whose key each image is encrypted, int64 (M,).
        members: True for an image on which the client has trained, bool (M,).
    """

    logits: Tensor
    images: Tensor
    labels: Tensor
    owners: Tensor
    members: Tensor


@dataclass(frozen=True, kw_only=True)
class Adversaries:
    """The views of all adversaries of a run.

    Attributes:
        run: The finished run.
    """

    run: AttackedRun

    def views(self, kind: type[View]) -> Sequence[View]:
        """Returns the views of the adversaries of one type.

        Args:
            kind: The Python class of the wanted views; each type of adversary has its own class.

        Returns:
            One view, or a view for each attacked client if the adversary attacks one client.
        """
        makers: Mapping[type[View], Callable[[], Sequence[View]]] = {
            ServerView: lambda: [self._server()],
            InformedServerView: lambda: [self._informed_server()],
            HostileServerView: lambda: [self._hostile(client) for client in self._attacked],
            OutsiderView: lambda: [self._outsider()],
            WorkerView: lambda: [self._worker(client) for client in self._attacked],
            ThiefView: lambda: [self._thief(client) for client in self._attacked],
            InsiderView: lambda: [self._insider(client) for client in self._attacked],
            UserView: lambda: [self._user()],
        }
        return makers[kind]()

    @cached_property
    def public(self) -> Public:
        """Returns the data about the run that every adversary has."""
        config = self.run.config
        return Public(
            settings=_without_secrets(config),
            rates=tuple(
                scheduled_rate(config.training, number, config.rounds)
                for number in range(1, config.rounds + 1)
            ),
            classes=len(self.run.class_names),
            patch_size=self.run.backbone.patch_size,
            cipher=self.run.holder.cipher,
            reader=self.run.origin,
            images=self.run.known.images,
            labels=self.run.known.labels,
            no_common_order=self._no_common_order,
        )

    @cached_property
    def truth(self) -> Truth:
        """Returns the owners' secrets, with which attacks are scored."""
        clients = range(self.run.config.clients)
        keys = {} if self._no_common_order else Opened(clients, self._key)
        return Truth(
            keys=keys,
            labels=Opened(clients, lambda client: self.run.shard(client).labels),
            owned=Opened(clients, self._owned),
            members=lambda: self._candidates.members,
            updates=Opened(clients, lambda client: first_update(self.run, self.public, client)),
        )

    @property
    def _server_has_reader(self) -> bool:
        config = self.run.config
        return policies.server_needs_reader(config) or not policies.reader_is_stored(config)

    def _hostile(self, client: int) -> HostileServerView:
        return hostile_server(self.run, self.public, client, has_reader=self._server_has_reader)

    def _server(self) -> ServerView:
        seen = self._server_has_reader
        return ServerView(
            public=self.public,
            reader=self.run.final_reader() if seen else None,
            rounds=self.run.rounds,
            model=self._model_of_server() if seen else None,
        )

    def _informed_server(self) -> InformedServerView:
        server, found = self._server(), self._candidates
        model = None
        if not policies.needs_key_to_compute(self.run.config):
            plain = policies.computes_on_plain(self.run.config)
            model = copy.deepcopy(self.run.backbone.model)
            put_reader(model, self.run.origin if plain else self.run.start)
        return InformedServerView(
            public=server.public,
            reader=server.reader,
            rounds=server.rounds,
            model=model,
            images=found.images,
            labels=found.labels,
            owners=found.owners,
        )

    def _model_of_server(self) -> nn.Module:
        model = copy.deepcopy(self.run.backbone.model)
        put_reader(model, self.run.start)
        return model

    def _outsider(self) -> OutsiderView:
        return OutsiderView(public=self.public, reader=self.run.final_reader())

    def _worker(self, client: int) -> WorkerView:
        shard = self.run.shard(client)
        return WorkerView(
            public=self.public,
            reader=self._reader_of(client),
            client=client,
            images=shard.images,
            labels=shard.labels,
        )

    def _thief(self, client: int) -> ThiefView:
        sealed = sealed_under(self.run.shard_path(client)) is not None
        shard = None if sealed else self.run.shard(client)
        return ThiefView(
            public=self.public,
            reader=self.run.start if policies.reader_is_stored(self.run.config) else None,
            client=client,
            images=None if shard is None else shard.images,
            labels=None if shard is None else shard.labels,
            sealed=SEALED if sealed else "",
        )

    def _insider(self, client: int) -> InsiderView:
        shard = self.run.shard(client)
        return InsiderView(
            public=self.public,
            reader=self._reader_of(client),
            client=client,
            images=shard.images,
            labels=shard.labels,
            known=self.run.plain(client)[: min(PAIRS, len(shard) // 2)],
        )

    def _user(self) -> UserView:
        found = self._candidates
        return UserView(public=self.public, reader=None, logits=found.logits, labels=found.labels)

    def _reader_of(self, client: int) -> PatchReader:
        """Returns the patch reader in a worker's memory, in the coordinates of the given client."""
        own = self.run.coordinates_of(client_party(client))
        if WEIGHT not in self.run.final:
            return own.base
        model, blocks = own.to_client(self.run.final), self.run.holder.cipher.geometry.blocks
        return own.base.with_weight(exchanged_reader(model, blocks).weight)

    def _owned(self, client: int) -> Owned:
        shard, party = self.run.shard(client), client_party(client)
        others = self.run.known.images[:OTHERS]
        return Owned(
            plain=self.run.plain(client),
            ciphertext=shard.images,
            others=others,
            others_ciphertext=self.run.holder.encrypt(others, party, "test"),
            others_labels=self.run.known.labels[:OTHERS],
        )

    def _key(self, client: int) -> CipherKey:
        key = three_steps(self.run.holder, client_party(client))
        assert not isinstance(key, str)
        return key

    @cached_property
    def _no_common_order(self) -> str:
        if not self.run.holder.cipher.steps:
            return "the images are not encrypted"
        key = three_steps(self.run.holder, client_party(0))
        return key if isinstance(key, str) else ""

    @property
    def _attacked(self) -> range:
        return range(min(ATTACKED, self.run.config.clients))

    @cached_property
    def _candidates(self) -> Candidates:
        return candidates_of(self.run)


def candidates_of(run: AttackedRun) -> Candidates:
    """Computes the logits of the final model for images of clients, and for other images.

    For each image of a client, another image of the same class is chosen. The two images are
    encrypted with the client's key and read in the client's coordinates. The client has trained on
    only one of the two images. If all clients share a key, several clients can have the same other
    image. If the final model is not complete, the result has no images.
    """
    model = copy.deepcopy(run.backbone.model)  # other attacks need the model's initial tensors
    if set(methods.trainable(model)) != set(run.final):
        return _no_candidates(run)
    logits, images, labels, owners, members = [], list[Tensor](), [], [], []
    plain = policies.computes_on_plain(run.config)
    most = math.ceil(CANDIDATES / run.config.clients)
    for client in range(run.config.clients):
        own, party = run.shard(client), client_party(client)
        ours, theirs = _pairs(own.labels, run.known.labels, most, client)
        if not len(ours):
            continue
        coordinates = run.coordinates_of(party)
        put_reader(model, coordinates.base)
        methods.load_state(model, coordinates.to_client(run.final))
        # Encrypted all together: if every image has its own key, the key depends on the position.
        encrypted = replace(run.known, images=run.holder.encrypt(run.known.images, party, "test"))
        if plain:
            images += [run.plain(client)[ours], run.known.images[theirs]]
        for shard, member in ((own.take(ours), True), (encrypted.take(theirs), False)):
            images += [] if plain else [shard.images]
            owners.append(torch.full((len(shard),), client))
            logits.append(_answers(model, shard.images))
            labels.append(shard.labels)
            members.append(torch.full((len(shard),), member))
    return Candidates(
        logits=torch.cat(logits),
        images=torch.cat(images),
        labels=torch.cat(labels),
        owners=torch.cat(owners),
        members=torch.cat(members),
    )


def _no_candidates(run: AttackedRun) -> Candidates:
    nothing = torch.empty(0, dtype=torch.int64)
    return Candidates(
        logits=torch.empty(0, len(run.class_names)),
        images=run.known.images[:0],
        labels=nothing,
        owners=nothing,
        members=nothing.bool(),
    )


def _pairs(own: Tensor, others: Tensor, most: int, client: int) -> tuple[Tensor, Tensor]:
    """Draws pairs of a client's image and another image of the same class.

    Args:
        own: The labels of the client's images.
        others: The labels of the other images.
        most: The largest number of pairs.
        client: The number of the client, which is the seed of the draw.

    Returns:
        Two tensors of equal length: the positions of the client's images, and the positions of the
        other images.
    """
    generator = torch.Generator().manual_seed(client)
    free = {int(c): (others == c).nonzero().flatten() for c in set(others.tolist())}  # by class
    free = {c: left[torch.randperm(len(left), generator=generator)] for c, left in free.items()}
    ours, theirs = list[int](), list[int]()
    for position in torch.randperm(len(own), generator=generator).tolist():
        left = free.get(int(own[position]), others[:0])
        if len(left) and len(ours) < most:
            ours.append(position)
            theirs.append(int(left[0]))
            free[int(own[position])] = left[1:]
    return torch.tensor(ours, dtype=torch.int64), torch.tensor(theirs, dtype=torch.int64)


def _without_secrets(config: Config) -> Config:
    """Returns settings without the seed, which determines noise, and without paths of files."""
    nowhere = EncryptionConfig().key_file
    encryption = replace(config.encryption, key_file=nowhere)
    return replace(config, seed=0, out=None, encryption=encryption)


@torch.inference_mode()
def _answers(model: nn.Module, images: Tensor) -> Tensor:
    """Returns the logits of images, (M, L)."""
    model.eval()
    return torch.cat([model(normalize(batch)) for batch in torch.split(images, BATCH)])

"""The objects that a worker process keeps between messages: model, decrypted shards and settings.

A worker serves many clients, one after the other. The frozen backbone and the decrypted shards (the
images of each client) stay in the process. A message contains only the exchanged tensors.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from flwr.app import Context
from torch import nn

from fl_vitlora.adaptation import coordinates, policies
from fl_vitlora.adaptation.coordinates import Coordinates
from fl_vitlora.communication.packing import Layout
from fl_vitlora.config import Config
from fl_vitlora.config.units import UNITS
from fl_vitlora.data.owner import key_holder
from fl_vitlora.data.shards import (
    CLIENT_SHARDS,
    NO_KEYS,
    Shard,
    client_shard,
    open_own_shard,
    shard_metadata,
)
from fl_vitlora.data.shelf import MOST_KEPT, Shelf
from fl_vitlora.encryption.at_rest import sealed_under
from fl_vitlora.encryption.client_keys import open_client_key
from fl_vitlora.encryption.holder import KeyHolder, client_party
from fl_vitlora.encryption.identities import Identities
from fl_vitlora.encryption.keys import SECRET_BYTES, is_client_key, open_rings
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.encryption.storage_keys import StorageKeys
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods, products
from fl_vitlora.finetuning.method import Method
from fl_vitlora.flower.client.feature_cache import FeatureCache
from fl_vitlora.lowrank import cut, pad
from fl_vitlora.models import backbone
from fl_vitlora.models.reading import READER_FILE, open_reader, put_reader, reader_of
from fl_vitlora.population.ranks import rank_of
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy
from fl_vitlora.training.cohort import CohortTrainer, can_share_a_batch
from fl_vitlora.training.inputs import frozen_of
from fl_vitlora.training.precision import best_precision, choose_attention
from fl_vitlora.training.prediction import Predictor, predictor_of
from fl_vitlora.training.product_choice import choose_library


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """The settings of a worker, without image keys, images and weights.

    Attributes:
        shards: The folder of the encrypted shards.
        class_names: The names of the run's classes, in the order of the head's outputs.
        device: The device to compute on, "cpu" or "cuda".
        config: The configuration of the experiment, which names the file with the client's keys
            only if clients need the key (`policies.clients_need_key`).
        strategy: The strategy of the run; the worker calls the strategy's methods for clients.
        fresh_order: True if a client draws the order of its images from the system's randomness,
            anew for every training. If `fresh_order` is False, the order follows from the run's
            seed.
        storage: The keys of shard files that are encrypted on disk as a whole; None if they are not
            encrypted. The program passes these keys to its workers in memory and never writes them
            to a file.
        identities: The pinned public keys of all clients, and the private identity keys of the
            clients in this process; None if clients do not sign the rosters of secure sums.
        products: The library for matrix products. The program chooses one library for all its
            workers, so that a client computes the same bits on every worker. An empty text means
            that the process chooses the library, as a deployed node does.
    """

    shards: str
    class_names: tuple[str, ...]
    device: str
    config: Config
    strategy: Strategy
    fresh_order: bool = False
    storage: StorageKeys | None = field(default=None, repr=False)
    identities: Identities | None = field(default=None, repr=False)
    products: str = ""

    def __hash__(self) -> int:  # a config holds a mapping, which has no hash
        return hash((self.shards, self.class_names, self.device))


SettingsOf = Callable[[Context], ClientSettings]


def client_of(context: Context) -> int:
    """Returns the number of the client at a node, which is also the number of its shard."""
    return int(context.node_config["partition-id"])


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """The objects that a worker process keeps between messages.

    Attributes:
        config: The configuration of the experiment.
        backbone: The model with its adapters, on the device.
        layout: The names and shapes of the tensors that clients and server exchange.
        kept: The names and shapes of the trained tensors that clients never send.
        origin: The patch embedding of the public model.
        start: The patch embedding of the server's model before the first round.
        initial: All trained tensors of the server's model before the first round.
        holder: The object that encrypts with the client's key; None if clients do not need the key.
        precision: The floating-point format of activations.
        trainer: The object that trains one client alone, or several clients in one batch.
        predictor: The object that computes the model's predictions for images at evaluation.
        shard: A function that loads a shard by its name and keeps the last loaded shards in memory.
        features: The features that clients keep; None if the method has no features.
    """

    config: Config
    backbone: backbone.Backbone
    layout: Layout
    kept: Layout
    origin: PatchReader
    start: PatchReader
    initial: State
    holder: KeyHolder | None
    precision: torch.dtype
    trainer: CohortTrainer
    predictor: Predictor
    shard: Callable[[str], Shard]
    features: FeatureCache | None

    @property
    def method(self) -> Method:
        """Returns the fine-tuning method of the run."""
        prepared = methods.prepared(self.backbone.model)
        assert prepared is not None  # `workspace` has prepared the model
        return prepared.method

    def training_shard(self, client: int, reader: PatchReader) -> Shard:
        """Returns the training images of a client, with their features if the client keeps them.

        Args:
            client: The number of the client.
            reader: The frozen part of the client's patch embedding and position embedding.
        """
        name = client_shard(client)
        shard = self.shard(name)
        if self.features is None:
            return shard
        return replace(shard, features=self.features(name, shard, reader))

    def rank_of(self, client: int) -> int | None:
        """Returns a client's own rank; None if the client has the rank of the run."""
        return rank_of(self.config, client)

    def initial_of(self, client: int) -> State:
        """Returns the tensors of a client before the first round; rows beyond its rank are zero."""
        rank = self.rank_of(client)
        return self.initial if rank is None else pad(cut(self.initial, rank), self.initial)

    def coordinates_of(self, client: int) -> Coordinates:
        """Returns the maps between a client's and the server's tensors, which depend on keys."""
        return coordinates.of_party(
            self.config,
            origin=self.origin,
            start=self.start,
            initial=self.initial,
            holder=self.holder,
            party=client_party(client),
        )


@functools.lru_cache(maxsize=1)
def workspace(settings: ClientSettings) -> Workspace:
    """Builds the model once for each process and run, and drops the model of an earlier run."""
    config, shards = settings.config, Path(settings.shards)
    built = backbone.build(config.model, settings.class_names, config.seed)
    methods.prepare(built.model, config.finetuning, config.seed, settings.strategy.adapter)
    origin = reader_of(built)
    holder = _holder(settings, built) if config.encryption.key_file else None
    if holder is not None:
        start = coordinates.server_reader(config, origin, holder)
    else:
        stored = policies.start_is_adapted(config)
        start = open_reader(shards / READER_FILE) if stored else origin
    put_reader(built.model, start)
    initial = methods.export_state(built.model)
    device = torch.device(settings.device)
    precision = best_precision(device, config.engine.precision)
    rows = config.training.batch_size * built.patches
    products.use(settings.products or choose_library(built.model, settings.device, rows))
    products.quicken(built.model)
    choose_attention(built.model, built.patches, device, precision)
    built.model.to(device)
    exchanged = policies.exchanged(config, initial, settings.strategy.personal)
    return Workspace(
        config=config,
        backbone=built,
        layout=Layout.of(exchanged),
        kept=Layout.of({n: w for n, w in initial.items() if n not in exchanged}),
        origin=origin,
        start=start,
        initial=initial,
        holder=holder,
        precision=precision,
        trainer=CohortTrainer(
            backbone=built,
            stacks=can_share_a_batch(built.model, config.training),
            config=config.training,
            precision=precision,
        ),
        predictor=predictor_of(config.evaluation.predictor),
        shard=_shelf(settings),
        features=_features(settings, built.model, precision),
    )


def _shelf(settings: ClientSettings) -> Shelf:
    """Returns a cache of loaded shards, whose labels are numbered in the order of the run."""
    names, keys = settings.class_names, settings.storage
    shards = Path(settings.shards)
    most = None if keys is None else MOST_KEPT
    return Shelf(lambda name: open_own_shard(shards / name, names, keys), most)


def _features(
    settings: ClientSettings, model: nn.Module, precision: torch.dtype
) -> FeatureCache | None:
    """Returns the cache of features; None if the method has no features.

    A model that is adapted to a key computes from ciphertext the same features as from the plain
    images. The features of an adapted model are written to files only if the files of the shards
    are sealed (encrypted on disk).
    """
    config, frozen = settings.config, frozen_of(model)
    if frozen is None:
        return None
    return FeatureCache(
        frozen=frozen,
        shards=Path(settings.shards),
        keys=settings.storage,
        most=config.engine.feature_cache_mb * UNITS["MB"],
        on_disk=settings.storage is not None or not policies.adapts(config),
        precision=precision,
    )


def _holder(settings: ClientSettings, built: backbone.Backbone) -> KeyHolder:
    """Returns the object that encrypts with a client's key; the shards state the id of the key."""
    config, keys = settings.config, settings.storage or NO_KEYS
    if is_client_key(Path(config.encryption.key_file)):
        return _holder_of_one(settings, built)
    shards = sorted(Path(settings.shards).glob(CLIENT_SHARDS))
    # A deployed node has only its own client's storage key, but may see files of other clients.
    own = (
        path for path in shards if (under := sealed_under(path)) is None or keys.can_open(*under)
    )
    readable = list(own) if config.data.shards is not None else list(itertools.islice(own, 1))
    readable = readable or shards[:1]  # reading this shard raises the error with the reason
    told = [shard_metadata(path, keys) for path in readable]
    ids = {metadata["party"]: metadata["key_id"] for metadata in told}
    ring = open_rings(Path(config.encryption.key_file))
    several = ring.secrets_of(ids) if len(set(ids.values())) > 1 else {}
    holder = key_holder(
        config,
        patch_size=built.patch_size,
        image_shape=built.image_shape,
        secret=next(iter(several.values())) if several else ring.find(told[0]["key_id"]),
    )
    # A key gives the server's patch embedding only its shape, so any secret can stand here.
    return replace(holder, secrets={"server": holder.secret, **several} if several else {})


def _holder_of_one(settings: ClientSettings, built: backbone.Backbone) -> KeyHolder:
    """Returns the object that encrypts with the exported key of one client.

    Raises:
        UserError: If the client's shard is encrypted under another secret than that of the key.
    """
    config = settings.config
    own = open_client_key(Path(config.encryption.key_file))
    shard = Path(settings.shards) / client_shard(own.client)
    name = shard_metadata(shard, settings.storage or NO_KEYS)["key_id"]
    if name != own.name:
        raise UserError(
            f"{own.source} was exported from the secret {own.name}, but {shard} is encrypted under "
            f"{name}; export the key again: fl-vitlora keys client RING NAME OUT --id {name}"
        )
    holder = key_holder(
        config,
        patch_size=built.patch_size,
        image_shape=built.image_shape,
        secret=bytes(SECRET_BYTES),
    )
    return replace(holder, own=own)

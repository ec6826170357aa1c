"""Whole federated runs in this process, in any precision: no wire, no worker, no file.

The functions are those of a real run: sampling, coordinates, local training, aggregation and
evaluation. What is missing is Flower, Ray and the files, which `test_runs` has. A run in float64
shows what is exact, where a run in float32 shows rounding too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

import strategies
from fl_vitlora import config as configuration
from fl_vitlora.adaptation import coordinates, policies
from fl_vitlora.adaptation.coordinates import Coordinates
from fl_vitlora.config import Config
from fl_vitlora.data import owner, sources
from fl_vitlora.data.partition import partition
from fl_vitlora.data.shards import Shard
from fl_vitlora.encryption.holder import TEST, KeyHolder, client_party
from fl_vitlora.encryption.keys import SECRET_BYTES
from fl_vitlora.experiment.preparation import prepare_model
from fl_vitlora.experiment.server_model import Server, make_server
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.server_method import after_round
from fl_vitlora.finetuning import shelf
from fl_vitlora.finetuning.products import quicken
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import put_reader
from fl_vitlora.population.sampling import sample
from fl_vitlora.rng import derive_seed, generator
from fl_vitlora.state import State, subtract
from fl_vitlora.strategy import Strategy, Update
from fl_vitlora.training.local import LocalTask, evaluate, scheduled_rate, train
from fl_vitlora.training.objective import terms_of

SMALL: dict[str, Any] = {"clients": 3, "rounds": 2, "fraction": 1.0, "data.limit": 36}
Spoil = Callable[[KeyHolder], KeyHolder]


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What a run came to.

    Attributes:
        initial: The server's first tensors.
        model: The server's last tensors.
        accuracy: The accuracy of the last model on the test images.
        loss: The loss of the last model on the test images.
        rates: The learning rates of all steps of a client that takes part in every round, summed.
        holder: The holder of the key.
    """

    initial: State
    model: State
    accuracy: float
    loss: float
    rates: float
    holder: KeyHolder


@contextlib.contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """Lets PyTorch make tensors of another type for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def settings(seed: int, **overrides: Any) -> Config:
    """Reads a small experiment."""
    given = {path.replace("__", "."): value for path, value in overrides.items()}
    return configuration.load(None, {**SMALL, "seed": seed, **given})


def federate(config: Config, dtype: torch.dtype, spoil: Spoil = lambda holder: holder) -> Ended:
    """Runs an experiment from its images to its last model.

    Args:
        config: The experiment; the secret of its key follows from its seed.
        dtype: The number format of all computations.
        spoil: Makes of the holder of the key the one that adapts models, to have it wrong.
    """
    with precision(dtype):
        train_images, test_images = sources.load(config.data)
        parts = partition(train_images.labels, config.clients, config.data, config.seed)
        backbone = prepare_model(config, len(train_images.class_names), "cpu")
        backbone.model.to(dtype)
        draw = np.random.default_rng(derive_seed(config.seed, "secret of a test"))
        holder = owner.key_holder(
            config,
            patch_size=backbone.patch_size,
            image_shape=backbone.image_shape,
            secret=draw.bytes(SECRET_BYTES),
        )
        server = make_server(backbone, lambda o: coordinates.server_reader(config, o, holder))
        quicken(backbone.model)

        def encrypted(images: sources.Images, places: Any, party: str, part: Any) -> Shard:
            plain = images.read(places, *backbone.image_shape[1:])
            labels = torch.from_numpy(images.labels[places])
            return Shard(images=holder.encrypt(plain, party, part), labels=labels)

        parties = [client_party(client) for client in range(config.clients)]
        shards = [
            encrypted(train_images, part, party, "train")
            for part, party in zip(parts, parties, strict=True)
        ]
        own = {
            party: _coordinates(config, server, spoil(holder), party) for party in (*parties, TEST)
        }
        model = _rounds(config, server, shards, [own[party] for party in parties])
        put_reader(backbone.model, own[TEST].base)
        test = encrypted(test_images, np.arange(len(test_images)), TEST, "test")
        accuracy, loss = evaluate(backbone, own[TEST].to_client(model), test)
    steps = -(-max(len(part) for part in parts) // config.training.batch_size)
    rates = sum(_rate(config, number) for number in range(1, config.rounds + 1))
    return Ended(
        initial=server.initial,
        model=model,
        accuracy=accuracy,
        loss=loss,
        rates=rates * steps * config.training.epochs,
        holder=holder,
    )


def _rounds(config: Config, server: Server, shards: list[Shard], own: list[Coordinates]) -> State:
    strategy = strategies.load_for(config)
    assert isinstance(strategy, Strategy)
    model, memory = GlobalModel(tensors=server.initial), dict[str, torch.Tensor]()
    method = shelf.method_of(config.finetuning)
    for number in range(1, config.rounds + 1):
        chosen = sample(range(config.clients), config.fraction, config.seed, number)
        resting = method.resting(number, model.memory, model.tensors) if method.has_rests else ()
        task = LocalTask(
            learning_rate=_rate(config, number),
            terms=terms_of(strategy, method),
            frozen=frozenset(name for name in model.tensors if name.endswith(resting)),
        )
        updates = [
            _update(
                config,
                server.backbone,
                shards[client],
                own[client],
                model.tensors,
                task=task,
                when=(number, client),
            )
            for client in chosen
        ]
        new, memory = strategy.aggregate(model.tensors, updates, memory)
        aggregated = replace(model, tensors=new)
        model = after_round(method, model, aggregated, number, config.rounds)
    return model.tensors


def _update(
    config: Config,
    backbone: Backbone,
    shard: Shard,
    own: Coordinates,
    model: State,
    *,
    task: LocalTask,
    when: tuple[int, int],
) -> Update:
    number, client = when
    start = own.to_client(model)
    put_reader(backbone.model, own.base)
    done = train(
        backbone,
        start,
        shard,
        config=config.training,
        task=task,
        generator=generator(config.seed, "batches", number, client),
    )
    moved = own.to_server(subtract(done.state, start))
    delta = {name: tensor for name, tensor in moved.items() if name not in task.frozen}
    return Update(client=client, samples=len(shard), loss=done.loss, delta=delta)


def _rate(config: Config, number: int) -> float:
    return scheduled_rate(config.training, number, config.rounds)


def _coordinates(config: Config, server: Server, holder: KeyHolder, party: str) -> Coordinates:
    return coordinates.of_party(
        config,
        origin=server.origin,
        start=server.start,
        initial=server.initial,
        holder=holder if policies.clients_turn(config) else None,
        party=party,
    )

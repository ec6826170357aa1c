"""What adversaries of a made-up run have, and the truth beside it: digits under a known secret."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_vitlora import config as configuration
from fl_vitlora.attacks.key_search.three_steps import three_steps
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Owned, Truth
from fl_vitlora.attacks.views import Public
from fl_vitlora.config import Config
from fl_vitlora.data import sources
from fl_vitlora.data.shards import Shard
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.holder import KeyHolder, Scope, client_party
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.experiment.preparation import prepare_model
from fl_vitlora.federation.observer import Sight
from fl_vitlora.finetuning import methods
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import reader_of
from fl_vitlora.rng import generator
from fl_vitlora.state import State, subtract
from fl_vitlora.strategy import Update
from fl_vitlora.training.local import LocalTask, scheduled_rate, train

BLOCK, SHAPE, CLASSES = 4, (3, 16, 16), 10
READER = PatchReader(
    weight=torch.randn(96, 48, generator=torch.Generator().manual_seed(0)),
    position=torch.randn(16, 96, generator=torch.Generator().manual_seed(1)),
)


def settings(**given: Any) -> Config:
    """Reads settings; ``training__epochs=2`` stands for ``training.epochs=2``."""
    named = {path.replace("__", "."): value for path, value in given.items()}
    return configuration.load(None, {"clients": 3, "rounds": 2, **named})


def digits(start: int, stop: int) -> Shard:
    """Returns plain training digits of 16 × 16 pixels."""
    images = sources.load(Config().data)[0]
    positions = np.arange(start, stop)
    return Shard(
        images=images.read(positions, *SHAPE[1:]), labels=torch.from_numpy(images.labels[positions])
    )


def holder(config: Config, number: int = 0) -> KeyHolder:
    """Returns the holder of a secret that follows from a number."""
    scope: Scope = config.encryption.scope
    return KeyHolder(
        cipher=Cipher(
            steps=config.encryption.steps,
            block_size=BLOCK,
            image_shape=SHAPE,
            per_block=scope == "block",
        ),
        secret=hashlib.sha256(str(number).encode()).digest(),
        scope=scope,
    )


def public(
    config: Config, known: Tensor, reader: PatchReader = READER, labels: Tensor | None = None
) -> Public:
    """Returns what everyone knows of a run whose learning rate is the same in all rounds."""
    key = three_steps(holder(config), client_party(0))
    return Public(
        settings=config,
        rates=tuple(
            scheduled_rate(config.training, number, config.rounds)
            for number in range(1, config.rounds + 1)
        ),
        classes=CLASSES,
        patch_size=BLOCK,
        cipher=holder(config).cipher,
        reader=reader,
        images=known,
        labels=labels,
        no_common_order=key if isinstance(key, str) else "",
    )


def truth(
    keys: KeyHolder, plain: Sequence[Shard], others: Tensor, others_labels: Tensor | None = None
) -> Truth:
    """Returns the secrets of clients, who hold these plain images."""
    known = torch.empty(0, dtype=torch.int64) if others_labels is None else others_labels
    found, owned = {}, {}
    labels = {client: shard.labels for client, shard in enumerate(plain)}
    for client, shard in enumerate(plain):
        party = client_party(client)
        key = three_steps(keys, party)
        if not isinstance(key, str):
            found[client] = key
        owned[client] = Owned(
            plain=shard.images,
            ciphertext=keys.encrypt(shard.images, party),
            others=others,
            others_ciphertext=keys.encrypt(others, party, "test"),
            others_labels=known,
        )
    return Truth(keys=found, labels=labels, owned=owned)


def model_of(config: Config) -> tuple[Backbone, PatchReader]:
    """Returns the bundled model, prepared for the run's method, and its patch reader."""
    backbone = prepare_model(config, CLASSES, "cpu")
    return backbone, reader_of(backbone)


def trained_round(
    config: Config, backbone: Backbone, model: State, shards: Mapping[int, Shard], number: int = 1
) -> Sight:
    """Lets clients train on what their workers have, and returns what the server then sees."""
    task = LocalTask(learning_rate=config.training.learning_rate)
    updates = []
    for client, shard in shards.items():
        draw = generator(0, "batches", number, client)
        done = train(backbone, model, shard, config=config.training, task=task, generator=draw)
        updates.append(
            Update(
                client=client,
                samples=len(shard),
                loss=done.loss,
                steps=done.steps,
                delta=subtract(done.state, model),
            )
        )
    return Sight(round=number, model=model, updates=updates)


def start_of(backbone: Backbone, *, head: bool) -> State:
    """Returns the first tensors of a model; with `head`, small random numbers in the head."""
    state = methods.export_state(backbone.model)
    if head:
        draw = torch.Generator().manual_seed(0)
        state["head.weight"] = torch.randn(state["head.weight"].shape, generator=draw) / 10
    return state


def encrypted(shard: Shard, keys: KeyHolder, client: int) -> Shard:
    """Returns what the worker of a client has."""
    return replace(shard, images=keys.encrypt(shard.images, client_party(client)))


def named(figures: Sequence[Figure]) -> dict[str, Figure]:
    """Returns figures by their names."""
    return {figure.name: figure for figure in figures}

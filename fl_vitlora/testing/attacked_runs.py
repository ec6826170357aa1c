"""Makes small made-up runs on which attacks are checked, with the view of each adversary.

The images are smooth grey patterns, with a different frequency for each class. Clients really train
on their ciphertext, with the bundled architecture and random weights. Therefore nothing is
downloaded. The owners' key is made up.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fl_vitlora import config as configuration
from fl_vitlora.attacks.key_search.three_steps import three_steps
from fl_vitlora.attacks.truth import Owned, Truth
from fl_vitlora.attacks.views import (
    HostileServerView,
    InformedServerView,
    InsiderView,
    Order,
    OutsiderView,
    Public,
    ServerView,
    ThiefView,
    UserView,
    View,
    WorkerView,
)
from fl_vitlora.config import Config
from fl_vitlora.data.shards import Shard
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.holder import KeyHolder, client_party
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.federation.observer import Sight
from fl_vitlora.finetuning import methods
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import reader_of
from fl_vitlora.rng import generator
from fl_vitlora.state import State, mean, scale, subtract
from fl_vitlora.strategy import SEVERAL, Update, averaged
from fl_vitlora.testing.made_up_sums import made_up_sum_clients
from fl_vitlora.training.local import LocalTask, train

# OWN is the number of images of a client, KNOWN the number of images that everyone has.
CLIENTS, CLASSES, OWN, KNOWN = 5, 4, 8, 120
SIDE, BLOCK, CANDIDATES = 16, 4, 240
FIXED = 14  # the number of blocks that a cipher with few keys does not move
INSIDE = 6  # the number of images of a client that an insider knows
VICTIMS = 2  # the number of clients that a worker and a thief attack
NO_SEED = 0  # the seed in the settings that adversaries see; the real seed is left out


@dataclass(frozen=True, kw_only=True)
class AttackedRun:
    """A made-up run.

    Attributes:
        name: A text for error messages that says what is special about the run.
        views: For each kind of adversary, the views, that is, what each such adversary has.
        truth: The owners' secrets.
    """

    name: str
    views: Mapping[type[View], Sequence[View]]
    truth: Truth


@functools.cache
def attacked_runs() -> tuple[AttackedRun, ...]:
    """Returns the made-up runs: the usual run, and runs with other settings or emptier views."""
    usual = _run("the default settings", OWN, {})
    return (
        usual,
        _run("an adapted model", OWN, {"encryption.adapt": True}),
        _run("secure sums", OWN, {"privacy.secure_aggregation": True}),
        _run("one image for each client", 1, {"finetuning.method": "full", **ONE_STEP}),
        _with_few_keys(usual),
        _bare(usual),
    )


ONE_STEP = {"training.optimizer": "sgd", "training.clip_norm": None}


def made_up_images(count: int, first: int = 0) -> Shard:
    """Returns smooth grey images with their labels.

    Args:
        count: The number n of images.
        first: The number of the first image. Images with different numbers differ.

    Returns:
        The images, uint8 (n, 3, 16, 16), and labels.
    """
    labels = torch.arange(first, first + count) % CLASSES
    y, x = torch.meshgrid(*[torch.arange(SIDE) / SIDE] * 2, indexing="ij")
    images = []
    for number, label in zip(range(first, first + count), labels.tolist(), strict=True):
        phases = 2 * math.pi * torch.rand(4, generator=generator(0, "image", number))
        waves = (1 + label / 2) * math.pi * torch.stack([x, y, x + y, x - y])
        images.append(torch.cos(waves + phases[:, None, None]).mean(dim=0))
    grey = (127.5 + 127.5 * torch.stack(images)).round().to(torch.uint8)
    return Shard(images=grey.unsqueeze(1).expand(-1, 3, -1, -1).clone(), labels=labels)


def _run(name: str, own: int, given: Mapping[str, Any]) -> AttackedRun:
    """Makes a run in which each client trains on its images and sends the update that it learned.

    Args:
        name: A text that says what is special about the run.
        own: The number of images of each client.
        given: Settings of the run by their dotted paths.
    """
    usual = {"clients": CLIENTS, "rounds": 2, "seed": NO_SEED, "training.epochs": 1}
    config = configuration.load(None, {**usual, **given})
    cipher = Cipher(steps=config.encryption.steps, block_size=BLOCK, image_shape=(3, SIDE, SIDE))
    holder = KeyHolder(cipher=cipher, secret=bytes(range(32)))
    built = backbone.build(replace(config.model, weights="random"), CLASSES, NO_SEED)
    methods.prepare(built.model, config.finetuning, NO_SEED)
    origin, known = reader_of(built), made_up_images(KNOWN)
    plain = [made_up_images(own, KNOWN + client * own) for client in range(CLIENTS)]
    shards = [
        replace(shard, images=holder.encrypt(shard.images, client_party(client)))
        for client, shard in enumerate(plain)
    ]
    reader = holder.adapt(origin, "server") if config.encryption.adapt else origin
    public = Public(
        settings=config,
        rates=(config.training.learning_rate,) * config.rounds,
        classes=CLASSES,
        patch_size=BLOCK,
        reader=origin,
        cipher=cipher,
        images=known.images,
        labels=known.labels,
    )
    start = methods.export_state(built.model)
    rounds = _rounds(config, built, shards)
    methods.copy_in(methods.trainable(built.model), start)  # undoes the training
    views: dict[type[View], Sequence[View]] = {
        **_views_of_the_model(public, reader, built, rounds),
        **_views_of_shards(public, reader, shards[: VICTIMS if not given else 1], plain),
        HostileServerView: [_hostile(public, reader, built, shards[0])],
    }
    truth = replace(_truth(holder, plain, known.images), updates=_first_updates(public, start))
    return AttackedRun(name=name, views=views, truth=truth)


def _views_of_shards(
    public: Public, reader: PatchReader, shards: Sequence[Shard], plain: Sequence[Shard]
) -> dict[type[View], Sequence[View]]:
    """Returns the views of the adversaries that see the shard of a client."""
    views: dict[type[View], Sequence[View]] = {
        kind: [
            kind(
                public=public,
                reader=reader,
                client=client,
                images=shard.images,
                labels=shard.labels,
            )
            for client, shard in enumerate(shards)
        ]
        for kind in (WorkerView, ThiefView)
    }
    insider = InsiderView(
        public=public,
        reader=reader,
        client=0,
        images=shards[0].images,
        labels=shards[0].labels,
        known=plain[0].images[:INSIDE],
    )
    return {**views, InsiderView: [insider]}


def _hostile(
    public: Public, reader: PatchReader, built: Backbone, shard: Shard
) -> HostileServerView:
    """Returns the view of a hostile server that can let client 0 train on the client's shard."""
    own = copy.deepcopy(built)

    def ask(order: Order) -> State:
        frozen = frozenset(name for name in order.tensors if name.endswith(order.frozen))
        task = LocalTask(learning_rate=order.rate, frozen=frozen)
        draw = generator(0, "batches", order.round, 0)
        training = public.settings.training
        done = train(own, order.tensors, shard, config=training, task=task, generator=draw)
        moved = subtract(done.state, order.tensors)
        return {name: tensor for name, tensor in moved.items() if name not in frozen}

    start = methods.export_state(built.model)
    return HostileServerView(
        public=public,
        reader=reader,
        client=0,
        model=built.model,
        start=start,
        ask=ask,
        sum_clients=made_up_sum_clients(_first_updates(public, start)),
    )


def _first_updates(public: Public, start: State) -> dict[int, State]:
    """Returns the updates that clients hide in a secure sum; none without secure sums."""
    some = CLIENTS if public.settings.privacy.secure_aggregation else 0
    return {client: scale(start, (client + 1) / 100) for client in range(some)}


def _views_of_the_model(
    public: Public, reader: PatchReader, built: Backbone, rounds: Sequence[Sight]
) -> dict[type[View], Sequence[View]]:
    """Returns the views of the adversaries that see models and updates, but no shard."""
    labels = torch.arange(CANDIDATES) % CLASSES
    logits = torch.randn(CANDIDATES, CLASSES, generator=generator(0, "answers"))
    return {
        ServerView: [ServerView(public=public, reader=reader, rounds=rounds, model=built.model)],
        InformedServerView: [
            InformedServerView(
                public=public,
                reader=reader,
                rounds=rounds,
                model=built.model,
                images=made_up_images(CANDIDATES, KNOWN).images,
                labels=labels,
                owners=torch.arange(CANDIDATES) % CLIENTS,
            )
        ],
        OutsiderView: [OutsiderView(public=public, reader=reader)],
        UserView: [UserView(public=public, logits=logits, labels=labels)],
    }


def _rounds(config: Config, built: Backbone, shards: Sequence[Shard]) -> list[Sight]:
    """Lets all clients train, and returns what the server sees in each round."""
    task = LocalTask(learning_rate=config.training.learning_rate)
    model, rounds = methods.export_state(built.model), []
    for number in range(1, config.rounds + 1):
        updates = []
        for client, shard in enumerate(shards):
            draw = generator(0, "batches", number, client)
            done = train(built, model, shard, config=config.training, task=task, generator=draw)
            updates.append(
                Update(
                    client=client,
                    samples=len(shard),
                    loss=done.loss,
                    steps=done.steps,
                    delta=subtract(done.state, model),
                )
            )
        if config.privacy.secure_aggregation:
            delta = mean([u.delta for u in updates], [u.samples for u in updates])
            updates = [replace(updates[0], client=SEVERAL, members=CLIENTS, delta=delta)]
        rounds.append(Sight(round=number, model=model, updates=tuple(updates)))
        model = averaged(model, updates)
    return rounds


def _truth(holder: KeyHolder, plain: Sequence[Shard], known: Tensor) -> Truth:
    """Returns the secrets of the owners of a made-up run."""
    parties = {client: client_party(client) for client in range(CLIENTS)}
    keys = {client: three_steps(holder, party) for client, party in parties.items()}
    return Truth(
        keys={client: key for client, key in keys.items() if not isinstance(key, str)},
        labels={client: plain[client].labels for client in parties},
        owned={
            client: Owned(
                plain=plain[client].images,
                ciphertext=holder.encrypt(plain[client].images, party),
                others=known,
                others_ciphertext=holder.encrypt(known, party, "test"),
            )
            for client, party in parties.items()
        },
        members=lambda: torch.arange(CANDIDATES) < CANDIDATES // 2,
    )


def _with_few_keys(usual: AttackedRun) -> AttackedRun:
    """Returns a run whose cipher moves two blocks of an image, with the view of one worker."""
    (worker, *_) = usual.views[WorkerView]
    assert isinstance(worker, WorkerView)
    given = {"encryption.steps": ["block_scrambling"], "encryption.fixed_blocks": FIXED}
    config = configuration.load(None, {"clients": CLIENTS, "seed": NO_SEED, **given})
    cipher = replace(worker.public.cipher, steps=config.encryption.steps, fixed_blocks=FIXED)
    holder = KeyHolder(cipher=cipher, secret=bytes(range(32)))
    plain = [made_up_images(OWN, KNOWN + client * OWN) for client in range(CLIENTS)]
    public = replace(worker.public, settings=config, cipher=cipher)
    images = holder.encrypt(plain[0].images, client_party(0))
    views: dict[type[View], Sequence[View]] = {
        WorkerView: [replace(worker, public=public, images=images)]
    }
    truth = _truth(holder, plain, made_up_images(KNOWN).images)
    return AttackedRun(name="a cipher with few keys", views=views, truth=truth)


def _bare(usual: AttackedRun) -> AttackedRun:
    """Returns the usual run with views in which each adversary has as little as possible."""
    views: dict[type[View], Sequence[View]] = {
        kind: [_emptied(view) for view in views] for kind, views in usual.views.items()
    }
    return replace(usual, name="a run in which adversaries have little", views=views)


def _emptied(view: View) -> View:
    if isinstance(view, ServerView):
        return replace(view, reader=None, rounds=(), model=None)
    if isinstance(view, HostileServerView):
        return replace(view, reader=None, model=None)
    if isinstance(view, ThiefView):
        return replace(view, reader=None, images=None, labels=None, sealed="the shard is sealed")
    if isinstance(view, UserView):
        return replace(view, logits=view.logits[:0], labels=view.labels[:0])
    return view

"""Measures how much of single images the attack `gradient_matching` finds in one update.

python -m benchmarks.attacks.gradients --cases "1 image" int4 --trials 3

Every trial draws a new key and other digits. In a first round, eight clients take one step of plain
descent on one image each, and their updates are averaged, so that the head is not zero. In the
second round the server attacks the update of one client. In the case "trained" the first round is
instead an epoch with the default settings on 200 images. In the case "sum of 3" three clients with
one image each take part in the second round, and the server sees only their sum. The program prints
one row for each case, with means over the trials. The number in brackets is the floor: the
figure of other digits of the same class under the same key. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import secrets
import statistics
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fl_vitlora import config as configuration
from fl_vitlora.attacks.gradient_matching import GradientMatching
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Owned, Truth
from fl_vitlora.attacks.views import Public, ServerView
from fl_vitlora.communication.compression import send
from fl_vitlora.communication.fixed_point import decode, encode
from fl_vitlora.communication.groups import GROUPS
from fl_vitlora.communication.lanes import Lanes, parse_lane
from fl_vitlora.communication.packing import Layout
from fl_vitlora.config import Config
from fl_vitlora.data import sources
from fl_vitlora.data.owner import key_holder
from fl_vitlora.data.shards import Shard
from fl_vitlora.encryption.holder import client_party
from fl_vitlora.encryption.keys import SECRET_BYTES
from fl_vitlora.experiment.preparation import prepare_model
from fl_vitlora.federation.observer import Sight
from fl_vitlora.finetuning import methods
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import reader_of
from fl_vitlora.rng import generator
from fl_vitlora.state import State, subtract
from fl_vitlora.strategy import SEVERAL, Update
from fl_vitlora.training.local import LocalTask, train

SHAPE, BLOCK, CLASSES = (3, 16, 16), 4, 10
CLIENTS = 8  # in the first round
BEFORE, OTHERS = 200, 200  # images of the first round, and other images, for the floor
STEP: Mapping[str, Any] = {
    "training.optimizer": "sgd",
    "training.learning_rate": 0.1,
    "training.batch_size": 100,
}
IMAGES, CODEC, TRAINED, SUM = "images", "codec", "trained", "sum"
OF_A_CASE = (IMAGES, CODEC, TRAINED, SUM)  # these are not settings of a run
CASES: Mapping[str, Mapping[str, Any]] = {
    "1 image": {},
    "2 images": {IMAGES: 2},
    "4 images": {IMAGES: 4},
    "8 images": {IMAGES: 8},
    "72 images": {IMAGES: 72},
    "trained": {TRAINED: True},
    "2 steps": {"training.epochs": 2},
    "4 steps": {"training.epochs": 4},
    "AdamW": {"training.optimizer": "adamw", "training.learning_rate": 0.02},
    "rank 1": {"finetuning.rank": 1},
    "rank 16": {"finetuning.rank": 16},
    "head+patch_embed": {"finetuning.method": "patch_embed"},
    "bfloat16": {CODEC: "bfloat16"},
    "int8": {CODEC: "int8"},
    "int4": {CODEC: "int4"},
    "clipped": {"privacy.clipping_norm": 1.0},
    "sum of 3": {IMAGES: 3, SUM: True, "privacy.secure_aggregation": True},
}
Given = Mapping[str, Any]


def main() -> None:
    """Attacks some cases, and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks.gradients")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--steps", type=int, default=GradientMatching.steps)
    parser.add_argument("--published-steps", type=int, default=GradientMatching.published_steps)
    arguments = parser.parse_args()
    attack = GradientMatching(steps=arguments.steps, published_steps=arguments.published_steps)
    first = True
    for name in arguments.cases:
        started = time.process_time()
        found = [trial(CASES[name], attack, number) for number in range(arguments.trials)]
        if first:
            print(f"| case | {' | '.join(f.name for f in found[0])} | processor seconds |")
            print("|---" * (len(found[0]) + 2) + "|")
            first = False
        cells = [shown([figures[n] for figures in found]) for n in range(len(found[0]))]
        spent = (time.process_time() - started) / arguments.trials
        print(f"| {name} | {' | '.join(cells)} | {spent:.0f} |", flush=True)


def shown(figures: list[Figure]) -> str:
    """Returns the mean of a figure, and in brackets its floor."""
    value = statistics.mean(figure.value for figure in figures)
    floors = [figure.floor for figure in figures if figure.floor is not None]
    return f"{value:.1f}" + (f" ({statistics.mean(floors):.1f})" if floors else "")


def trial(case: Given, attack: GradientMatching, number: int) -> list[Figure]:
    """Attacks one client under a new key, and returns the figures of the attack.

    Args:
        case: The settings that differ from one step of plain descent on one image.
        attack: The attack.
        number: The number of the trial, which decides which images are used.
    """
    given = {path: value for path, value in case.items() if path not in OF_A_CASE}
    clients = case[IMAGES] if SUM in case else 1
    config = configuration.load(None, {"clients": clients, "rounds": 2, **STEP, **given})
    keys = key_holder(
        config, patch_size=BLOCK, image_shape=SHAPE, secret=secrets.token_bytes(SECRET_BYTES)
    )
    source, _ = sources.load(config.data)
    order = np.random.default_rng(number).permutation(len(source))
    places = np.split(order, [BEFORE, BEFORE + OTHERS, BEFORE + OTHERS + case.get(IMAGES, 1)])
    before, others, own = (
        Shard(images=source.read(p, *SHAPE[1:]), labels=torch.from_numpy(source.labels[p]))
        for p in places[:3]
    )
    party = client_party(0)

    def encrypted(shard: Shard) -> Shard:
        return replace(shard, images=keys.encrypt(shard.images, party))

    backbone = prepare_model(config, CLASSES, "cpu")
    reader = reader_of(backbone)
    first = after_defaults if case.get(TRAINED) else after_single_images
    start = first(backbone, encrypted(before))
    update = summed if SUM in case else updated
    sight = update(config, backbone, start, encrypted(own), case.get(CODEC))
    known = Public(
        settings=config,
        rates=(config.training.learning_rate,) * 2,
        classes=CLASSES,
        patch_size=BLOCK,
        cipher=keys.cipher,
        reader=reader,
        images=others.images,
    )
    owned = Owned(
        plain=own.images,
        ciphertext=encrypted(own).images,
        others=others.images,
        others_ciphertext=encrypted(others).images,
        others_labels=others.labels,
    )
    view = ServerView(public=known, rounds=[sight], model=backbone.model)
    assert attack.lacks(view) == ""
    truth = Truth(labels={0: own.labels}, owned={0: owned})
    return list(attack.score(attack.guess(view), truth))


def after_single_images(backbone: Backbone, shard: Shard) -> State:
    """Returns the tensors after a round of clients with one image each."""
    config = configuration.load(None, {"clients": CLIENTS, **STEP})
    start = methods.export_state(backbone.model)
    sights = [
        updated(config, backbone, start, shard.take(torch.tensor([n])), None)
        for n in range(CLIENTS)
    ]
    changes = [sight.updates[0].delta for sight in sights]
    return {
        name: tensor + torch.stack([change[name] for change in changes]).mean(dim=0)
        for name, tensor in start.items()
    }


def after_defaults(backbone: Backbone, shard: Shard) -> State:
    """Returns the tensors after an epoch with the default settings."""
    config = configuration.load(None, {}).training
    start = methods.export_state(backbone.model)
    return train(
        backbone,
        start,
        shard,
        config=config,
        task=LocalTask(learning_rate=config.learning_rate),
        generator=generator_of(0),
    ).state


def updated(
    config: Config, backbone: Backbone, start: State, shard: Shard, codec: str | None
) -> Sight:
    """Returns what the server sees when a client has trained on its images."""
    task = LocalTask(learning_rate=config.training.learning_rate)
    done = train(
        backbone, start, shard, config=config.training, task=task, generator=generator_of(1)
    )
    delta: Mapping[str, Tensor] = subtract(done.state, start)
    if codec is not None:
        lanes = Lanes(by_group=dict.fromkeys(GROUPS, parse_lane(codec)))
        delta = send(dict(delta), Layout.of(delta), lanes, np.random.default_rng(0))[1]
    update = Update(
        client=0, samples=len(shard), loss=done.loss, steps=done.steps, delta=dict(delta)
    )
    return Sight(round=1, model=start, updates=[update])


def summed(
    config: Config, backbone: Backbone, start: State, shard: Shard, codec: str | None
) -> Sight:
    """Returns what the server sees of a secure sum of clients with one image of a shard each."""
    share, limit, words = 1 / len(shard), config.privacy.range, []
    for place in range(len(shard)):
        own = shard.take(torch.tensor([place]))
        (update,) = updated(config, backbone, start, own, codec).updates
        words.append(encode(update.delta, {}, update.loss, limit=limit, share=share))
    total = np.sum(words, axis=0, dtype=np.uint32)
    found = decode(total, Layout.of(start), limit=limit, share=1.0)
    summary = Update(
        client=SEVERAL,
        samples=len(shard),
        loss=found.loss,
        steps=update.steps,
        delta=found.delta,
        members=len(shard),
    )
    return Sight(round=1, model=start, updates=[summary])


def generator_of(number: int) -> torch.Generator:
    """Returns the random generator of the order of images."""
    return generator(number, "batches")


if __name__ == "__main__":
    main()

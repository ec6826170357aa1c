"""Lets a hostile server attack one client of the default job, without and with a guard.

python -m benchmarks.attacks.hostile                  one, eight and sixty images of the client
python -m benchmarks.attacks.hostile --images 8 --set training.optimizer=sgd

The client's own code answers every message on its own encrypted digits, of which none is a 3. Ray
is not started. With privacy.secure_aggregation=true two more clients take part in each sum, and the
server gives them almost no weight. Each trial draws a new key, so the numbers differ a little from
run to run. With a guard, the server goes on with messages that the guard accepts, in the last
round.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import strategies
from benchmarks.attacks.trials import BLOCK, fresh_holder, pixels
from fl_vitlora import config as configuration
from fl_vitlora.attacks.crafted_embedding import CraftedEmbedding
from fl_vitlora.attacks.results import Figure, averaged
from fl_vitlora.attacks.truth import Owned, Truth
from fl_vitlora.attacks.views import HostileServerView, Public
from fl_vitlora.config import Config
from fl_vitlora.data import owner, sources
from fl_vitlora.encryption.holder import KeyHolder, client_party
from fl_vitlora.experiment.hostile_server import asking, bounding, sum_clients
from fl_vitlora.experiment.preparation import prepare_model
from fl_vitlora.finetuning import methods
from fl_vitlora.flower.client.workspace import ClientSettings
from fl_vitlora.models.reading import reader_of
from fl_vitlora.privacy.secure_sum import FEWEST
from fl_vitlora.strategy import Strategy
from fl_vitlora.training.local import scheduled_rate

LACKING = 3  # the digit that the client does not have
OF_OTHERS = 20  # digits of each other client of a secure sum
OTHERS = 200  # digits that the server knows, under no key


def main() -> None:
    """Attacks one client for each case, and prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attacks.hostile",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--images", type=int, nargs="+", default=[1, 8, 60])
    parser.add_argument(
        "--wanted", type=int, default=4, help="images that the server asks for, at most 4"
    )
    parser.add_argument("--trials", type=int, default=1, help="new keys for each case")
    parser.add_argument(
        "--guards", type=int, nargs="+", default=[0, 16], help="privacy.guard_steps; 0 for no guard"
    )
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    arguments = parser.parse_args()
    given = dict(one.split("=", 1) for one in arguments.set)
    settings = {name: yaml.safe_load(value) for name, value in given.items()}
    print(f"| images | guard | {' | '.join(CraftedEmbedding.figures)} |")
    print("|--:|---" + "|--:" * len(CraftedEmbedding.figures) + "|")
    for images in arguments.images:
        for guard in arguments.guards:
            scores = [
                attacked(images, arguments.wanted, guard, settings) for _ in range(arguments.trials)
            ]
            cells = [figure.shown(figure.value) for figure in averaged(scores)]
            print(f"| {images} | {guard or 'none'} | {' | '.join(cells)} |", flush=True)


def attacked(images: int, wanted: int, guard: int, given: dict[str, Any]) -> Sequence[Figure]:
    """Attacks a client with a number of images under a new key, and returns the figures."""
    config = configuration.load(None, {"clients": 1, "encryption.at_rest": "none", **given})
    if config.privacy.secure_aggregation:
        config = replace(config, clients=FEWEST)
    if guard:
        config = replace(config, privacy=replace(config.privacy, guard_steps=guard))
    holder = fresh_holder(config)
    train, test = sources.load(config.data)
    places = np.flatnonzero(train.labels != LACKING)[:images]
    others = np.arange(len(train) - OF_OTHERS * (config.clients - 1), len(train))
    parts = [places, *np.split(others, config.clients - 1)] if config.clients > 1 else [places]
    with tempfile.TemporaryDirectory() as folder:
        owner.write_encrypted_shards(
            Path(folder),
            train=train,
            test=test,
            parts=parts,
            test_parts=[np.arange(1)] * config.clients,
            holder=holder,
            metadata={},
            storage=None,
        )
        attack = CraftedEmbedding(images=wanted)
        view = view_of(config, folder, holder, pixels(test)[:OTHERS], train.class_names)
        if reason := attack.lacks(view):
            raise SystemExit(reason)
        guess = attack.guess(view)
    party, known = client_party(0), pixels(test)[:OTHERS]
    plain = pixels(train, places)
    owned = Owned(
        plain=plain,
        ciphertext=holder.encrypt(plain, party),
        others=known,
        others_ciphertext=holder.encrypt(known, party, "test"),
    )
    return attack.score(guess, Truth(owned={0: owned}))


def view_of(
    config: Config, folder: str, holder: KeyHolder, known: torch.Tensor, names: tuple[str, ...]
) -> HostileServerView:
    """Returns what the hostile server has, with a client that answers its messages."""
    strategy = strategies.load_for(config)
    assert isinstance(strategy, Strategy)
    keyless = replace(config, encryption=replace(config.encryption, key_file=""))
    client = ClientSettings(
        shards=folder, class_names=names, device="cpu", config=keyless, strategy=strategy
    )
    backbone = prepare_model(config, len(names), "cpu")
    start = methods.export_state(backbone.model)
    return HostileServerView(
        public=Public(
            settings=config,
            rates=tuple(
                scheduled_rate(config.training, number, config.rounds)
                for number in range(1, config.rounds + 1)
            ),
            classes=len(names),
            patch_size=BLOCK,
            cipher=holder.cipher,
            reader=reader_of(backbone),
            images=known,
        ),
        reader=reader_of(backbone),
        client=0,
        model=backbone.model,
        start=start,
        ask=asking(client, 0),
        sum_clients=lambda: sum_clients(client),
        accepted=bounding(config, strategy, start, methods.rates(backbone.model)),
    )


if __name__ == "__main__":
    main()

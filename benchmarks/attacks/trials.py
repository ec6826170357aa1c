"""Trials of the attacks on the default job's images; each function attacks one new key.

Nothing is downloaded, and no key ring of a user is used: every trial draws its own secret.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import Tensor

from benchmarks.attacks.curious_server import CuriousFedAvg
from fl_vitlora import config as configuration
from fl_vitlora.attacks.invariants import features, masks_of
from fl_vitlora.attacks.key_search import measures
from fl_vitlora.attacks.key_search.from_changes import key_from_embedding
from fl_vitlora.attacks.key_search.from_ciphertext import key_from_ciphertext
from fl_vitlora.attacks.key_search.from_pairs import key_from_pairs
from fl_vitlora.attacks.key_search.prior import Prior
from fl_vitlora.config import Config
from fl_vitlora.data import sources
from fl_vitlora.data.owner import key_holder
from fl_vitlora.data.sources import Images, Indices
from fl_vitlora.encryption.holder import TEST, KeyHolder, client_party
from fl_vitlora.encryption.image_blocks import to_blocks
from fl_vitlora.encryption.keys import SECRET_BYTES
from fl_vitlora.experiment.preparation import prepare_holder, prepare_model
from fl_vitlora.experiment.runner import run
from fl_vitlora.flower.simulation.engine import Engine

BLOCK, SHAPE = 4, (3, 16, 16)  # of the default job
Shares = dict[str, float]


def fresh_holder(config: Config) -> KeyHolder:
    """Makes the key holder of a default job, with a new secret that is not stored."""
    secret = secrets.token_bytes(SECRET_BYTES)
    return key_holder(config, patch_size=BLOCK, image_shape=SHAPE, secret=secret)


def pixels(images: Images, positions: Indices | None = None) -> Tensor:
    """Returns images in the default job's size; all images if `positions` is None."""
    chosen = np.arange(len(images)) if positions is None else positions
    return images.read(chosen, *SHAPE[1:])


def from_ciphertext(counts: list[int], seed: int) -> dict[int, Shares]:
    """Attacks one new key of the default job from ciphertext alone.

    The seed divides the training images into two halves. The attacker knows one half in plain, and
    gets ciphertext of the other half. The key that is found decrypts the encrypted test images.
    Each decrypted test image gets the label of its nearest neighbour among the plain images that
    the attacker knows.

    Args:
        counts: Numbers n of ciphertexts to try.
        seed: Seed of the division into halves.

    Returns:
        For each n, the shares of the key, the test images and the labels that are found.
    """
    train, test = sources.load(Config().data)
    order = np.random.default_rng(seed).permutation(len(train))
    known, victims = np.array_split(order, 2)
    plain = pixels(train, known)
    prior = Prior.of(plain, BLOCK)
    reader = KNeighborsClassifier(1).fit(plain.flatten(1).numpy(), train.labels[known])
    holder = fresh_holder(Config())
    truth, there = holder.key(TEST), pixels(test)
    found = {}
    for count in counts:
        ciphertext = holder.encrypt(pixels(train, victims[:count]), TEST)
        guess = key_from_ciphertext(ciphertext, prior, seed)
        decrypted = holder.cipher.decrypt(holder.encrypt(there, TEST), guess)
        exact = (decrypted == there).flatten(1).all(dim=1).double().mean()
        found[count] = {
            "mask": measures.share_of_mask(guess, truth),
            "places": measures.share_of_places(guess, truth, BLOCK),
            "blocks": measures.share_of_blocks(guess, truth),
            "test images bit-exact": float(exact),
            "labels read": float(reader.score(decrypted.flatten(1).numpy(), test.labels)),
        }
    return found


def from_pairs(counts: list[int], seed: int) -> dict[int, Shares]:
    """Attacks one new key of the default job from known images and their ciphertext.

    The key that is found decrypts the encrypted test images.

    Args:
        counts: Numbers of pairs to try.
        seed: Seed that chooses the known images among the training images.

    Returns:
        For each number of pairs, the shares of the mask and of test images that are found.
    """
    train, test = sources.load(Config().data)
    order = np.random.default_rng(seed).permutation(len(train))
    holder, there = fresh_holder(Config()), pixels(test)
    found = {}
    for count in counts:
        plain = pixels(train, order[:count])
        guess = key_from_pairs(plain, holder.encrypt(plain, TEST), BLOCK)
        decrypted = holder.cipher.decrypt(holder.encrypt(there, TEST), guess)
        exact = (decrypted == there).flatten(1).all(dim=1).double()
        found[count] = {
            "mask": measures.share_of_mask(guess, holder.key(TEST)),
            "test images bit-exact": float(exact.mean()),
            "keys that decrypt all test images": float(exact.min()),
        }
    return found


def from_embedding(
    settings: Mapping[str, Any], rounds: list[int], seed: int, engine: Engine
) -> dict[int, Shares]:
    """Runs a federation, and attacks its key from the aggregated patch embedding alone.

    Args:
        settings: Settings that differ from the default job.
        rounds: Rounds after which the attack is tried.
        seed: Seed of the run.
        engine: The engine that keeps Ray running.

    Returns:
        For each round, the shares of the key that are found in two ways. The first uses the changes
        of all rounds so far, which the server and every client see. The second uses only the change
        since the public model, which everyone who has the trained model can compute.
    """
    server, holder, accuracy = observed(settings, seed, engine)
    truth, steps = holder.key(TEST), server.notes.steps
    found = {}
    for count in rounds:
        change = torch.stack(steps[:count]).sum(dim=0)
        shares = {"accuracy at the end": accuracy}
        for name, seen in {"all rounds": steps[:count], "the model alone": [change]}.items():
            guess = key_from_embedding(seen, BLOCK, grey=True)
            shares |= of_embedding(guess, truth, name)
        found[count] = shares
    return found


def from_uploads(rounds: list[int], seed: int, engine: Engine) -> dict[int, Shares]:
    """Attacks each client's own key from the updates of that client (`encryption.scope=client`)."""
    settings = {"encryption.scope": "client", "rounds": max(rounds)}
    server, holder, accuracy = observed(settings, seed, engine)
    keys = {client: holder.key(client_party(client)) for client in server.notes.uploads[0]}
    found = {}
    for count in rounds:
        shares = []
        for client, truth in keys.items():
            sent = [update[client] for update in server.notes.uploads[:count]]
            shares.append(of_embedding(key_from_embedding(sent, BLOCK, grey=True), truth, "own"))
        mean = {name: float(np.mean([one[name] for one in shares])) for name in shares[0]}
        whole = float(np.mean([min(one.values()) == 1 for one in shares]))
        found[count] = mean | {"clients whose key is found": whole, "accuracy at the end": accuracy}
    return found


def of_embedding(guess: Mapping[str, Tensor], truth: Mapping[str, Tensor], name: str) -> Shares:
    """Returns the shares of a guess that are right, up to the common sign and mirror images."""
    return {
        f"mask, {name}": measures.share_of_mask(guess, truth, up_to_all=True),
        f"places, {name}": measures.share_of_places(guess, truth, BLOCK, up_to_mirrored=True),
    }


def observed(
    settings: Mapping[str, Any], seed: int, engine: Engine
) -> tuple[CuriousFedAvg, KeyHolder, float]:
    """Runs the default job with a server that takes notes.

    Returns:
        The server with its notes, the owners' key holder, and the accuracy at the end.
    """
    server = CuriousFedAvg()
    with tempfile.TemporaryDirectory() as folder:
        paths = {"out": f"{folder}/run", "encryption.key_file": f"{folder}/owner.key"}
        config = configuration.load(None, {**paths, "seed": seed, **settings})
        result, _ = run(config, server, engine=engine)
        model = prepare_model(config, 10, "cpu")
        return server, prepare_holder(config, model), float(result["accuracy"])


def with_key_per_image() -> Shares:
    """Reads labels from ciphertext in which every image has its own key.

    The classifier is a support vector machine on `invariants.features`. It is trained on the
    ciphertext of the training images, whose labels are public, and predicts the labels of the test
    images.
    """
    train, test = sources.load(Config().data)
    scope = replace(Config().encryption, scope="image")
    holder = fresh_holder(replace(Config(), encryption=scope))
    images = [
        holder.encrypt(pixels(train), client_party(0)),
        holder.encrypt(pixels(test), TEST, "test"),
    ]
    learnt, read = (features(some, BLOCK) for some in images)
    classifier = make_pipeline(StandardScaler(), SVC(C=10)).fit(learnt, train.labels)
    black = to_blocks(holder.encrypt(torch.zeros_like(images[1]), TEST, "test"), BLOCK)
    masks = (masks_of(images[1], BLOCK) == (black[:, 0] > 0)).all(dim=1).double()
    return {
        "labels read": float(classifier.score(read, test.labels)),
        "whole masks found": float(masks.mean()),
    }

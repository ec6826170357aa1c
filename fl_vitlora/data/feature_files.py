"""Writes and reads files of features, which are protected in the same way as the client's shard.

Features are the outputs of the frozen backbone (`finetuning.features`) for the images of a shard.
If the run encrypts images, the features are computed from ciphertext. If the file of the shard is
sealed, the file of the features is sealed with the same storage key of the same party. If the file
of the shard is not sealed, each of the two files has only a digest, which shows damage.

Features reveal the number of images and which images are similar. With a trained head, features
also reveal the classes of the images. Features that are computed from ciphertext reveal no more
than the shard and the model do. An adapted model computes from ciphertext the same features as from
plain images, and an image can be partly reconstructed from the features of an adapted model.

Every file contains a digest of everything from which the features were computed. This digest is
called the origin. Features of another origin are never returned, because such features belong to an
older model, to images under an older key, or to another method. In a sealed file the origin is also
encrypted, because a person who guesses all images could confirm the guess with the origin.

Letters in shapes: n images.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fl_vitlora.encryption.at_rest import seal, sealed_under, unseal
from fl_vitlora.encryption.storage_keys import PartyKey, StorageKeys
from fl_vitlora.errors import UserError
from fl_vitlora.storage.checksummed import read_sealed, write_sealed
from fl_vitlora.storage.files import PRIVATE, write_parts

FEATURES = "features"  # the folder beside the shards, and the name of the tensor in a file
ORIGIN = "origin"


def write_features(
    path: Path, features: Tensor, origin: str, shard: Path, keys: StorageKeys
) -> None:
    """Writes the features of a shard; the file is sealed if the file of the shard is sealed.

    Args:
        path: The path of the file. The folder of the file must exist.
        features: The features, (n, ...), on the CPU.
        origin: The digest of everything from which the features were computed.
        shard: The path of the shard.
        keys: The storage keys that can open the shard.

    Raises:
        WriteError: If the system cannot write the file.
        UserError: If the shard is sealed and its key is missing.
    """
    under = sealed_under(shard)
    if under is None:
        write_sealed(path, {FEATURES: features}, {ORIGIN: origin}, durable=False)
        return
    name, party = under
    key = PartyKey(name, party, keys.find(name, party, shard))
    kind = str(features.dtype).removeprefix("torch.")
    text = json.dumps({ORIGIN: origin, "dtype": kind, "shape": list(features.shape)})
    body = features.contiguous().flatten().view(torch.uint8).numpy().data
    write_parts(path, seal(text.encode(), body, key, party), durable=False, mode=PRIVATE)


def read_features(path: Path, origin: str, shard: Path, keys: StorageKeys) -> Tensor | None:
    """Reads the features that `write_features` wrote.

    Args:
        path: The path of the file.
        origin: The origin that the features must have.
        shard: The path of the shard.
        keys: The storage keys that can open the shard.

    Returns:
        The features, (n, ...), or None if the file is missing or damaged, has features of another
        origin, or is not protected in the same way as the shard.
    """
    try:
        under = sealed_under(path)
        if under != sealed_under(shard):
            return None
        if under is None:
            tensors, metadata = read_sealed(path)
            return tensors.get(FEATURES) if metadata.get(ORIGIN) == origin else None
        text, body = unseal(path, keys)
    except UserError:  # the features can be computed again
        return None
    told: dict[str, Any] = json.loads(text)
    if told.get(ORIGIN) != origin:
        return None
    flat = torch.frombuffer(body, dtype=getattr(torch, told["dtype"]))
    return flat.view(told["shape"])

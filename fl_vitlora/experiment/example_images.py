"""Draws training images of one client, plain and encrypted, if the owner asks for the picture.

The ciphertext is read from the shard of the client, and then decrypted to get the plain images.
Therefore the picture shows exactly the images on which the client trains. The setting
`plain_examples` says how many images are drawn. By default no image is drawn, because no other
file of a run on encrypted images shows a plain image.

Letters in shapes: n images, m images of a piece, C channels, H × W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fl_vitlora.config import Config
from fl_vitlora.data.shard_pieces import open_pieces
from fl_vitlora.data.shards import client_shard
from fl_vitlora.encryption.holder import KeyHolder, client_party
from fl_vitlora.encryption.storage_keys import StorageKeys
from fl_vitlora.errors import UserError
from fl_vitlora.reporting.run_folder import RunFolder

CLIENT = 0  # the client whose images are drawn


def check(config: Config, *, deployed: bool = False) -> None:
    """Raises an error if the user asks for the picture, but this program has no plain images.

    Args:
        config: The configuration of the experiment.
        deployed: True if the program is a server or a node of a deployment. A simulation has the
            owners' images, unless the owners made the shards elsewhere.

    Raises:
        UserError: If `plain_examples` asks for the picture, and this program has no plain images.
    """
    if not config.plain_examples or not (deployed or config.data.shards):
        return
    why = "a deployed server or node has none"
    if config.data.shards is not None:
        why = "with data.shards a run has none"
    raise UserError(
        f"plain_examples {config.plain_examples}: the picture needs plain images, and {why}; leave "
        "this setting out, or set it to 0"
    )


def draw_examples(
    config: Config, folder: RunFolder, holder: KeyHolder, keys: StorageKeys, names: Sequence[str]
) -> None:
    """Draws plain images of a client and their ciphertext into the plots of a run.

    Args:
        config: The configuration of the experiment, with the number of images.
        folder: The run folder, which has its shards.
        holder: The key holder that encrypted the shards.
        keys: The storage keys that open the shards.
        names: The names of the classes, in the order of the labels.
    """
    if not config.plain_examples:
        return
    from fl_vitlora.reporting.example_images import plot_examples  # imports matplotlib

    path = folder.shards / client_shard(CLIENT)
    plain, cipher, labels = examples_of(path, holder, keys, config.plain_examples)
    below = "encrypted" if config.encryption.steps else "not encrypted"
    plot_examples(folder.plots, plain, cipher, [names[label] for label in labels], below)


def examples_of(
    path: Path, holder: KeyHolder, keys: StorageKeys, number: int
) -> tuple[Tensor, Tensor, list[int]]:
    """Returns images of a client's training shard, from as many different classes as possible.

    Args:
        path: The shard of the client with the number `CLIENT`.
        holder: The key holder that encrypted the shard.
        keys: The storage keys that open the shard.
        number: The largest number of images.

    Returns:
        The plain images, their ciphertext, both uint8 (n, C, H, W), and their labels.
    """
    opened = open_pieces(path, keys)
    labels = opened.labels.tolist()
    earlier = _earlier(labels)
    chosen = sorted(range(len(labels)), key=lambda at: (earlier[at], labels[at]))[:number]
    cipher = _images_at(opened.pieces, chosen)
    plain = [
        holder.decrypt(cipher[place : place + 1], client_party(CLIENT), "train", at)
        for place, at in enumerate(chosen)
    ]
    return torch.cat(plain), cipher, [labels[at] for at in chosen]


def _images_at(pieces: Iterable[Tensor], positions: Sequence[int]) -> Tensor:
    """Returns the images at some positions of a shard; only one piece at a time is in memory.

    Args:
        pieces: The images of the shard in their order, each piece (m, C, H, W).
        positions: The positions, in any order.

    Returns:
        The images in the order of the positions, (n, C, H, W).
    """
    found, first = dict[int, Tensor](), 0
    for piece in pieces:
        here = [at for at in positions if first <= at < first + len(piece)]
        found |= {at: piece[at - first].clone() for at in here}
        first += len(piece)
        if len(found) == len(positions):
            break
    return torch.stack([found[at] for at in positions])


def _earlier(labels: Sequence[int]) -> list[int]:
    """Returns for each image how many images of its class come before it.

    Example:
        >>> _earlier([7, 7, 3, 7])
        [0, 1, 0, 2]
    """
    seen, found = Counter[int](), []
    for label in labels:
        found.append(seen[label])
        seen[label] += 1
    return found

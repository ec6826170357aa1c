"""Does the work of the data owner, who encrypts plain images and writes them as shards.

A shard is a file with the encrypted images of one party. A party is a client, or the owner of
common test images. Only this module and `data.reencryption` use plain images together with a key.
Workers and the server see only the files that these two modules write. The files contain encrypted
images and their labels, and the whole files are also encrypted on disk ("sealed"). The metadata of
a shard contain the id of its key and the name of its party. With these two names, the owner of the
key ring can decrypt the shard or encrypt the shard under a new key.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from fl_vitlora.config import Config
from fl_vitlora.data.class_names import CLASS_NAMES, write_names
from fl_vitlora.data.shards import (
    CLIENT_SHARDS,
    TEST_SHARD,
    VALIDATION_SHARD,
    Shard,
    client_shard,
    is_shard,
    write_shard,
)
from fl_vitlora.data.sources import Images, Indices
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.holder import TEST, KeyHolder, Part, client_party
from fl_vitlora.encryption.storage_keys import (
    StorageKey,
)
from fl_vitlora.errors import UserError
from fl_vitlora.rng import generator

BYTES_AT_ONCE = 2**26  # the largest number of bytes of plain images in memory at the same time
LEARNABLE_BLOCK = 4  # the side of a block of LE and ELE in pixels, for every patch size
RIGHT_KEY, WRONG_KEY, NO_KEY = "right_key", "wrong_key", "no_key"


def key_holder(
    config: Config, *, patch_size: int, image_shape: tuple[int, int, int], secret: bytes
) -> KeyHolder:
    """Makes the key holder, which encrypts the images for a model and adapts the model to keys.

    Args:
        config: The settings of the experiment. Only the encryption and the seed are used.
        patch_size: The side of the model's patches in pixels.
        image_shape: The shape (C, H, W) of the model's input images: channels, height and width.
        secret: The owner's secret of 32 bytes, from which the keys are derived.

    Returns:
        The key holder, for images of the given shape.

    Raises:
        UserError: When the images cannot be divided into whole blocks, or when the settings fix
            more blocks or entries than exist.
    """
    encryption = config.encryption
    learnable = any("nibble" in step for step in encryption.steps)
    cipher = Cipher(
        steps=encryption.steps,
        block_size=encryption.block_size or (LEARNABLE_BLOCK if learnable else patch_size),
        image_shape=image_shape,
        fixed_blocks=encryption.fixed_blocks,
        fixed_entries=encryption.fixed_entries,
        per_block=encryption.scope == "block",
    )
    try:
        _ = cipher.geometry  # raises an error when the blocks do not fit the images
    except UserError as error:
        setting = f"encryption.block_size {cipher.block_size}: " if encryption.block_size else ""
        raise UserError(f"{setting}{error}") from None
    return KeyHolder(cipher=cipher, secret=secret, scope=encryption.scope, seed=config.seed)


def write_encrypted_shards(
    folder: Path,
    *,
    train: Images,
    test: Images,
    parts: Sequence[Indices],
    test_parts: Sequence[Indices],
    validation: Sequence[Indices] = (),
    holder: KeyHolder,
    metadata: Mapping[str, str],
    storage: StorageKey | None = None,
    at_once: int = BYTES_AT_ONCE,
) -> None:
    """Encrypts the images of all clients and the test images, and writes the shards to disk.

    The function does not wait until each file is on the disk, because waiting would take most of
    the time. If a shard is lost in a power failure, the owner can make the shard again.

    Args:
        folder: The folder of the shards, which must exist.
        train: The plain training images of all clients.
        test: The plain test images.
        parts: The positions of each client's images in `train`, one array for each client.
        test_parts: The positions of each client's images in `test`, one array for each client. The
            list is empty if all test images are in one common shard.
        validation: The positions of the validation images in `train`: one array for each client if
            there are `test_parts`, otherwise one array for all. The list may be empty.
        holder: The key holder that encrypts the images. Its keys are not written to disk.
        metadata: Names and texts that are written into every shard. No text may be a secret.
        storage: The storage key that seals (encrypts) the files on disk; None to write files that
            are not sealed.
        at_once: The largest number of bytes of plain images in memory at the same time. A larger
            shard is read alone.
    """
    common = {**metadata, **describe(holder)}

    def write(images: Images, part: Part, owned: Mapping[str, tuple[str, Indices]]) -> None:
        parties = [party for party, _ in owned.values()]
        places = [positions for _, positions in owned.values()]
        names = write_names(images.class_names)
        shards = _encrypted(images, places, parties, part, holder=holder, at_once=at_once)
        for name, party, shard in zip(owned, parties, shards, strict=True):
            described = {**common, CLASS_NAMES: names, "party": party, "part": part}
            write_shard(folder / name, shard, described, storage, durable=False)

    write(train, "train", _shards_of_clients("train", parts))
    own = _shards_of_clients("test", test_parts)
    write(test, "test", own or {TEST_SHARD: (TEST, np.arange(len(test)))})
    write(train, "validation", _validation_shards(validation, own=bool(test_parts)))


def pieces(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Puts neighbouring items into groups whose total size is at most `most`.

    An item that is larger than `most` is alone in its group.

    Args:
        sizes: The size of each item, in any unit.
        most: The largest total size of a group.

    Yields:
        The groups as slices of the items, in order. Each item is in exactly one group.

    Example:
        >>> list(pieces([1, 2, 9, 1], most=3))
        [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    start = total = 0
    for end, size in enumerate(sizes):
        if end > start and total + size > most:
            yield slice(start, end)
            start, total = end, 0
        total += size
    if sizes:
        yield slice(start, len(sizes))


def divide_test_images(images: int, clients: int, seed: int, part: Part = "test") -> list[Indices]:
    """Divides the test or validation images among the clients at random, as evenly as possible.

    Args:
        images: The number of images.
        clients: The number K of clients.
        seed: The run's seed, which decides how the images are divided.
        part: The use of the images: "test" or "validation".

    Returns:
        A list of K arrays of positions, one for each client. Each image is in exactly one array.

    Raises:
        UserError: When there are fewer images than clients.

    Example:
        >>> [len(part) for part in divide_test_images(10, 3, seed=0)]
        [4, 3, 3]
    """
    if images < clients:
        raise UserError(
            f"evaluation.by clients: expected at least one {part} image for each client, got "
            f"{images} {part} images for {clients} clients"
        )
    order = torch.randperm(images, generator=generator(seed, f"{part} images")).numpy()
    return [np.sort(part) for part in np.array_split(order, clients)]


def views_of(shard: Shard, holder: KeyHolder, party: str) -> dict[str, Shard]:
    """Returns a test shard in three forms: encrypted, under a wrong key, and decrypted.

    Args:
        shard: The test shard, encrypted with the key of the party.
        holder: The key holder that encrypted the shard.
        party: The name of the party that owns the shard, for example "client 3".

    Returns:
        A dictionary with three entries. `RIGHT_KEY` is the given shard, `WRONG_KEY` has the images
        encrypted with a wrong key, and `NO_KEY` has the plain images.
    """
    plain = holder.decrypt(shard.images, party, "test")
    wrong = holder.impostor().encrypt(plain, party, "test")
    return {
        RIGHT_KEY: shard,
        WRONG_KEY: Shard(images=wrong, labels=shard.labels),
        NO_KEY: Shard(images=plain, labels=shard.labels),
    }


def find_shards(place: Path) -> list[Path]:
    """Finds shards: the file at a path, or all shards in a folder or a run folder.

    Args:
        place: The path of a shard, of a folder of shards, or of a run folder.

    Returns:
        The paths of the shards, sorted by name.

    Raises:
        UserError: When there is no shard at the path or in the folder.
    """
    folder = place / "shards" if (place / "shards").is_dir() else place
    found = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [place]
    shards = [path for path in found if path.is_file() and is_shard(path)]
    if not shards:
        raise UserError(f"{place}: expected shards, found no file such as {client_shard(0)}")
    return shards


def check_all_described(places: Iterable[Path], shards: Iterable[Path]) -> None:
    """Checks that `find_shards` has found all files whose names are names of shards.

    The function `find_shards` does not find a shard whose metadata do not name the party.

    Args:
        places: The folders or run folders that were searched.
        shards: The paths of the shards that were found.

    Raises:
        UserError: When a file has the name of a shard but was not found. The message names the
            file.
    """
    known = {path.resolve() for path in shards}
    for folder in (path for place in places for path in (place, place / "shards")):
        common = (TEST_SHARD, VALIDATION_SHARD)
        named = [path for name in (CLIENT_SHARDS, *common) for path in folder.glob(name)]
        for path in sorted(named):
            if path.resolve() not in known:
                raise UserError(
                    f"shard {path}: the field party is missing in the metadata; write the shard "
                    "again"
                )


def _shards_of_clients(part: Part, positions: Sequence[Indices]) -> dict[str, tuple[str, Indices]]:
    """Returns a dictionary from names of clients' shards to the party and its images' positions."""
    return {client_shard(c, part): (client_party(c), own) for c, own in enumerate(positions)}


def _validation_shards(
    validation: Sequence[Indices], *, own: bool
) -> dict[str, tuple[str, Indices]]:
    """Returns a dictionary from names of validation shards to the party and the positions.

    Args:
        validation: The positions of the validation images, one array for each shard.
        own: True if each client has its own validation shard.
    """
    if own:
        return _shards_of_clients("validation", validation)
    return {VALIDATION_SHARD: (TEST, validation[0])} if validation else {}


def _encrypted(
    images: Images,
    places: Sequence[Indices],
    parties: Sequence[str],
    part: Part,
    *,
    holder: KeyHolder,
    at_once: int,
) -> Iterator[Shard]:
    """Yields the encrypted shard of each party; several small shards are encrypted together."""
    shape = holder.cipher.image_shape
    for piece in pieces([len(positions) for positions in places], at_once // math.prod(shape)):
        together = np.concatenate(places[piece])
        sizes = [len(positions) for positions in places[piece]]
        plain, labels = images.read(together, *shape[1:]), torch.from_numpy(images.labels[together])
        encrypted = holder.encrypt_all(plain, parties[piece], sizes, part)
        yield from map(Shard, encrypted, torch.split(labels, sizes))


def describe(holder: KeyHolder) -> dict[str, str]:
    """Returns a dictionary with the metadata that describe the encryption, without any secret."""
    cipher = holder.cipher
    return {
        "steps": ",".join(cipher.steps),
        "block_size": str(cipher.block_size),
        "fixed_blocks": str(cipher.fixed_blocks),
        "fixed_entries": str(cipher.fixed_entries),
        "scope": holder.scope,
        "seed": str(holder.seed),
        "key_id": holder.key_id if cipher.steps else "",
    }

"""The data owner's side: plain images go in, encrypted shards come out.

This is the only place where plain images and a key meet. What it writes is all that workers and
server will ever see: ciphertext and labels, in files that are sealed at rest. A shard's metadata
say under which key and for which party it was encrypted, so that who holds the key ring can open
it, or encrypt it anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from fl_vitlora.config import Config
from fl_vitlora.data.class_names import CLASS_NAMES, write_names
from fl_vitlora.data.descriptions import read_description
from fl_vitlora.data.shards import (
    CLIENT_SHARDS,
    TEST_SHARD,
    Shard,
    client_shard,
    client_test_shard,
    is_shard,
    read_shard,
    write_shard,
)
from fl_vitlora.data.sources import Images, Indices
from fl_vitlora.encryption.at_rest import sealed_under
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.holder import TEST, KeyHolder, Part, client_party
from fl_vitlora.encryption.keys import KeyRing, key_id
from fl_vitlora.encryption.storage_keys import (
    BY_PASSPHRASE,
    StorageKey,
    of_ring,
    of_secret,
    root_of_passphrase,
)
from fl_vitlora.errors import UserError
from fl_vitlora.rng import generator

BYTES_AT_ONCE = 2**26  # of plain images
LEARNABLE_BLOCK = 4  # pixels a side of the blocks of LE and ELE, whatever the model's patches
RIGHT_KEY, WRONG_KEY, NO_KEY = "right_key", "wrong_key", "no_key"


def key_holder(
    config: Config, *, patch_size: int, image_shape: tuple[int, int, int], secret: bytes
) -> KeyHolder:
    """Makes what encrypts the images of a model, and adapts it.

    Args:
        config: Steps, scope and restrictions of the cipher, and the seed.
        patch_size: Of the model, pixels a side.
        image_shape: (C, H, W) that it takes.
        secret: 32 bytes.

    Returns:
        The holder.

    Raises:
        UserError: When blocks do not divide the images, or more is to stay than there is.
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
        _ = cipher.geometry  # refuses what does not fit the images
    except UserError as error:
        given = f"encryption.block_size {cipher.block_size}: " if encryption.block_size else ""
        raise UserError(f"{given}{error}") from None
    return KeyHolder(cipher=cipher, secret=secret, scope=encryption.scope, seed=config.seed)


def write_encrypted_shards(
    folder: Path,
    *,
    train: Images,
    test: Images,
    parts: Sequence[Indices],
    test_parts: Sequence[Indices],
    holder: KeyHolder,
    metadata: Mapping[str, str],
    storage: StorageKey | None = None,
    at_once: int = BYTES_AT_ONCE,
) -> None:
    """Encrypts the shard of every client and the test images, and stores them.

    No file waits for the disk, which takes longer than all else where clients are many: from the
    images, which their owner has, it can be made again.

    Args:
        folder: Where to; it must exist.
        train: Training images.
        test: Test images.
        parts: Positions of each client's training images.
        test_parts: Positions of each client's test images; none where one party has them all.
        holder: Of the keys; they are not stored.
        metadata: What may be written beside the images: no secret.
        storage: What the shards are sealed under at rest; without it they are in the clear.
        at_once: Bytes of plain images that are in memory together, unless one shard has more.
    """
    everywhere = {**metadata, **_describe(holder)}

    def write(images: Images, part: Part, owned: Mapping[str, tuple[str, Indices]]) -> None:
        parties = [party for party, _ in owned.values()]
        places = [positions for _, positions in owned.values()]
        names = write_names(images.class_names)
        shards = _encrypted(images, places, parties, part, holder=holder, at_once=at_once)
        for name, party, shard in zip(owned, parties, shards, strict=True):
            described = {**everywhere, CLASS_NAMES: names, "party": party, "part": part}
            write_shard(folder / name, shard, described, storage, durable=False)

    write(train, "train", {client_shard(c): (client_party(c), p) for c, p in enumerate(parts)})
    own = {client_test_shard(c): (client_party(c), p) for c, p in enumerate(test_parts)}
    write(test, "test", own or {TEST_SHARD: (TEST, np.arange(len(test)))})


def pieces(sizes: Sequence[int], most: int) -> Iterator[slice]:
    """Groups neighbours of which no group exceeds a sum, unless a single one does.

    Args:
        sizes: Of each.
        most: Of a group.

    Yields:
        The groups, in order; together all.

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


def divide_test_images(images: int, clients: int, seed: int) -> list[Indices]:
    """Gives every client test images of its own, at random and as equal in number as can be.

    Args:
        images: How many there are.
        clients: K.
        seed: The run's seed.

    Returns:
        K arrays of positions, disjoint, together all.

    Raises:
        UserError: When they do not suffice.

    Example:
        >>> [len(part) for part in divide_test_images(10, 3, seed=0)]
        [4, 3, 3]
    """
    if images < clients:
        raise UserError(
            f"evaluation.by clients: {images} test images do not suffice for {clients} clients"
        )
    order = torch.randperm(images, generator=generator(seed, "test images")).numpy()
    return [np.sort(part) for part in np.array_split(order, clients)]


def views_of(shard: Shard, holder: KeyHolder, party: str) -> dict[str, Shard]:
    """Shows a test shard as who has the right key sees it, a wrong one, or none.

    Args:
        shard: Encrypted for the party.
        holder: Of its key.
        party: Whose it is.

    Returns:
        The shard as it is; the same images under a wrong key; and plain.
    """
    plain = holder.decrypt(shard.images, party, "test")
    wrong = holder.impostor().encrypt(plain, party, "test")
    return {
        RIGHT_KEY: shard,
        WRONG_KEY: replace(shard, images=wrong),
        NO_KEY: replace(shard, images=plain),
    }


def find_shards(place: Path) -> list[Path]:
    """Finds the shards at a place: one file, all of a folder, or all of a run folder.

    Raises:
        UserError: When there is none.
    """
    folder = place / "shards" if (place / "shards").is_dir() else place
    found = sorted(folder.glob("*.safetensors")) if folder.is_dir() else [place]
    shards = [path for path in found if path.is_file() and is_shard(path)]
    if not shards:
        raise UserError(f"{place}: no shard there; expected a file such as {client_shard(0)}")
    return shards


def check_all_described(places: Iterable[Path], shards: Iterable[Path]) -> None:
    """Checks that no shard in a folder was passed over because it does not say whose it is.

    Raises:
        UserError: When one was, by its name.
    """
    known = {path.resolve() for path in shards}
    for folder in (path for place in places for path in (place, place / "shards")):
        named = [*folder.glob(CLIENT_SHARDS), *folder.glob(TEST_SHARD)]
        for path in sorted(named):
            if path.resolve() not in known:
                raise UserError(f"shard {path} does not say its party; write the shard anew")


def holders_of(shards: Iterable[Path], ring: KeyRing) -> dict[Path, KeyHolder]:
    """Finds the key that the images of each shard were encrypted under.

    Returns:
        The key holders; one without steps where only the file is sealed.

    Raises:
        UserError: When a shard is plain and in the clear, or damaged, or the ring lacks its key.
    """
    return {path: _holder_of(path, ring) for path in shards}


def encrypt_anew(shards: Iterable[Path], ring: KeyRing) -> list[Path]:
    """Encrypts shards under the ring's current secret, whatever secret of it they were under.

    What was sealed at rest under a secret of the ring is sealed under the current one as well; what
    was sealed under a passphrase stays so. Each file is verified before one is touched, and
    replaced whole; should this be broken off, every shard is still under keys of the ring, and says
    which.

    Args:
        shards: Files.
        ring: With the old secrets.

    Returns:
        The files that were under another secret.

    Raises:
        UserError: When a shard is plain and in the clear, or damaged, or the ring lacks its key;
            before any file is touched.
    """
    holders, current = holders_of(shards, ring), key_id(ring.current)
    keys = of_ring(ring)
    changed = []
    for path, holder in holders.items():
        new, storage = replace(holder, secret=ring.current), _storage_anew(path, ring)
        encrypted = bool(holder.cipher.steps)
        if holder.key_id == current and not _is_under_another(path, storage):
            continue
        shard, metadata = read_shard(path, keys)
        if encrypted:
            party, part = metadata["party"], _part(metadata)
            plain = holder.decrypt(shard.images, party, part)
            shard = replace(shard, images=new.encrypt(plain, party, part))
            metadata = {**metadata, "key_id": current}
        write_shard(path, shard, metadata, storage)
        changed.append(path)
    return changed


def _is_under_another(path: Path, storage: StorageKey | None) -> bool:
    """Tells whether a file is sealed under another key than one."""
    under = sealed_under(path)
    return under is not None and storage is not None and under[0] != storage.name


def _storage_anew(path: Path, ring: KeyRing) -> StorageKey | None:
    """Finds what a shard is to be sealed under when it is written anew, as it was before."""
    under = sealed_under(path)
    if under is None:
        return None
    if under[0].startswith(BY_PASSPHRASE):
        return root_of_passphrase(under[0], f"{path} is sealed under a passphrase")
    return of_secret(ring.current)


def _encrypted(
    images: Images,
    places: Sequence[Indices],
    parties: Sequence[str],
    part: Part,
    *,
    holder: KeyHolder,
    at_once: int,
) -> Iterator[Shard]:
    """Reads and encrypts the images of each party, those of many small parties together."""
    shape = holder.cipher.image_shape
    for piece in pieces([len(positions) for positions in places], at_once // math.prod(shape)):
        every = np.concatenate(places[piece])
        sizes = [len(positions) for positions in places[piece]]
        plain, labels = images.read(every, *shape[1:]), torch.from_numpy(images.labels[every])
        encrypted = holder.encrypt_all(plain, parties[piece], sizes, part)
        yield from map(Shard, encrypted, torch.split(labels, sizes))


def _describe(holder: KeyHolder) -> dict[str, str]:
    """Says how images are encrypted, without a secret."""
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


def _holder_of(path: Path, ring: KeyRing) -> KeyHolder:
    """Finds the key that a shard was encrypted under; inverts `_describe`."""
    shard, metadata = read_shard(path, of_ring(ring))
    under, name = sealed_under(path), metadata.get("key_id", "")
    if not name and (under is None or under[0].startswith(BY_PASSPHRASE)):
        raise UserError(f"shard {path} is not encrypted under a key ring")
    told = read_description(path, metadata, tuple(shard.images.shape[1:]))
    if told.cipher.steps and not name:
        raise UserError(f"shard {path} does not say its key_id; write the shard anew")
    try:
        secret = ring.find(name or (under or ("",))[0])
    except UserError as error:
        raise UserError(f"shard {path}: {error}") from None
    return KeyHolder(cipher=told.cipher, secret=secret, scope=told.scope, seed=told.seed)


def _part(metadata: Mapping[str, str]) -> Part:
    return "test" if metadata["part"] == "test" else "train"

"""Writes the images of an owner's shards as PNG files, decrypted with the key ring or encrypted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from torch import Tensor

from fl_vitlora.config import Config
from fl_vitlora.data.descriptions import read_description
from fl_vitlora.data.png_files import names_by_class, names_of_files, write_pngs
from fl_vitlora.data.shard_pieces import decrypted, open_pieces
from fl_vitlora.data.shards import class_names_of
from fl_vitlora.encryption.holder import KeyHolder
from fl_vitlora.encryption.keys import SECRET_BYTES, open_ring
from fl_vitlora.encryption.storage_keys import of_ring
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.owner_shards import COPIES, OwnedShard
from fl_vitlora.experiment.preparation import storage_keys
from fl_vitlora.storage.files import WriteError, make_private_folder

PNGS = "png"  # the folder of the encrypted PNG files, beside the shards


def decrypt_shard(
    shard: Path, out: Path, ring: Path, advance: Callable[[int], None] = lambda images: None
) -> int:
    """Decrypts a shard into PNG files, in a folder for each class.

    The pixels are those that were encrypted: resized to the model's size, and with all copies. Only
    the current user can read the files.

    Args:
        shard: The path of the shard.
        out: The folder for the files, which must be new or empty.
        ring: The path of the owner's key ring.
        advance: A function that is called with the number of images of each piece.

    Returns:
        The number of images.

    Raises:
        UserError: If the shard cannot be read, its key is not in the ring, or the folder is not
            empty.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: expected a new or an empty folder")
    secrets = open_ring(ring)
    opened = open_pieces(shard, of_ring(secrets))
    described = read_description(shard, opened.metadata, opened.shape)
    secret = bytes(SECRET_BYTES)
    if described.cipher.steps:
        secret = secrets.find(opened.metadata.get("key_id", ""))
    holder = KeyHolder(
        cipher=described.cipher, secret=secret, scope=described.scope, seed=described.seed
    )
    names = names_by_class(opened.labels.tolist(), class_names_of(opened.metadata, shard))
    plain = decrypted(opened, holder, described.party, described.part)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        make_private_folder(out)
        return write_pngs(out, _named(names, plain, advance), private=True)
    except WriteError as error:
        raise UserError(str(error)) from None


def write_ciphertext(
    config: Config,
    shards: Sequence[OwnedShard],
    folder: Path,
    advance: Callable[[int], None] = lambda images: None,
) -> int:
    """Writes the ciphertext of shards as PNG files that have the names of the images.

    A changed copy of an image (`data.copies`) gets no file.

    Args:
        config: The settings of the experiment, with the path of the key ring and of the images.
        shards: The shards, as `encrypt_images` returns them.
        folder: The folder for the files.
        advance: A function that is called with the number of images of each piece.

    Returns:
        The number of files.
    """
    keys, root, written = storage_keys(config), Path(config.data.name), 0
    for shard in shards:
        opened, content = open_pieces(shard.path, keys), shard.content
        originals = content.positions[: len(content) // int(opened.metadata[COPIES])]
        names = names_of_files(content.images, originals, root, content.part)
        try:
            written += write_pngs(folder, _named(names, opened.pieces, advance), private=False)
        except WriteError as error:
            raise UserError(str(error)) from None
    return written


def _named(
    names: Sequence[str], pieces: Iterator[Tensor], advance: Callable[[int], None]
) -> Iterator[tuple[str, Tensor]]:
    """Yields the name and the pixels of each image that has a name, and reads all pieces."""
    number = 0
    for piece in pieces:
        for image in piece:
            if number < len(names):
                yield names[number], image
            number += 1
        advance(len(piece))

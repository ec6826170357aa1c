"""The request of an owner to encrypt images, and the division of these images into shards."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fl_vitlora.config import Config
from fl_vitlora.data import sources
from fl_vitlora.data.augmentation import positions_of_copies, with_copies
from fl_vitlora.data.class_names import disagreement, read_names
from fl_vitlora.data.holding_out import hold_out_of_each
from fl_vitlora.data.images import Images, Indices
from fl_vitlora.data.shard_pieces import ShardContent
from fl_vitlora.data.shards import TEST_SHARD, VALIDATION_SHARD, client_shard
from fl_vitlora.encryption.holder import TEST, Part, client_party
from fl_vitlora.errors import UserError


@dataclass(frozen=True, kw_only=True)
class OwnerRequest:
    """A request to encrypt the images of one owner.

    Attributes:
        config: The settings of the experiment; `data.name` is the folder of the owner's images.
        client: The number of the client, from 0, that the training site has given to this owner.
        out: The folder for the shards.
        holds_out: True to hold out the share `data.test_fraction` for testing, if the images have
            no test split.
        common_test: True if the images for testing and validation are for the server, and not for
            this client.
        class_names: The names of the classes of the whole experiment; None if the owner's images
            have all classes.
        replaces: True to replace other shards that already have the same file names.
        storage_key: The file for the storage key of this client; None to write no such file.
    """

    config: Config
    client: int
    out: Path
    holds_out: bool = False
    common_test: bool = False
    class_names: tuple[str, ...] | None = None
    replaces: bool = False
    storage_key: Path | None = None


def read_classes(file: Path) -> tuple[str, ...]:
    """Reads the names of all classes of an experiment from a file with a JSON list.

    Raises:
        UserError: If the file cannot be read, or is no list of names.
    """
    try:
        return read_names(file.read_text(encoding="utf-8"), f"classes {file}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"classes {file} cannot be read: {error}") from None


def divide(request: OwnerRequest, source: sources.Source) -> dict[str, ShardContent]:
    """Divides the images of an owner among the owner's shards.

    Args:
        request: The request of the owner.
        source: The owner's images.

    Returns:
        The images of each shard, by the file name of the shard.

    Raises:
        UserError: If an image has a class that the experiment's list does not name, or too few
            images would be left for training.
    """
    config, own = request.config, client_party(request.client)
    train, test = (_with_classes(i, request) for i in (source.train, source.test))
    kept, held = np.arange(len(train)), np.arange(0)
    if config.data.validation_fraction:
        trained, drawn = hold_out_of_each(train.labels, [kept], config.data, config.seed)
        kept, held = trained[0], drawn[0]
    copies = config.data.copies
    images = with_copies(train, copies, config.data.augment, config.seed) if copies > 1 else train
    positions = positions_of_copies(kept, len(train), copies)
    content = ShardContent(images=images, positions=positions, party=own, part="train")
    found = {client_shard(request.client): content}
    if source.validation is not None:
        train = _with_classes(source.validation, request)
        held = np.arange(len(train))
    found |= _held_out(request, test, np.arange(len(test)), "test")
    return found | _held_out(request, train, held, "validation")


def _held_out(
    request: OwnerRequest, images: Images, positions: Indices, part: Part
) -> dict[str, ShardContent]:
    """Returns the images for testing or validation, by file name of their shard, or {}."""
    if not len(positions):
        return {}
    name, party = client_shard(request.client, part), client_party(request.client)
    if request.common_test:
        name, party = TEST_SHARD if part == "test" else VALIDATION_SHARD, TEST
    return {name: ShardContent(images=images, positions=positions, party=party, part=part)}


def _with_classes(images: Images, request: OwnerRequest) -> Images:
    """Returns images whose labels are positions in the experiment's list of classes.

    Raises:
        UserError: If an image has a class that the list does not name.
    """
    names = request.class_names
    if names is None or names == images.class_names:
        return images
    if strange := set(images.class_names) - set(names):
        told = disagreement(sorted(strange), names).partition(";")[0]
        raise UserError(
            f"{request.config.data.name} has classes that the list of classes lacks ({told})"
        )
    place = {name: label for label, name in enumerate(names)}
    mapped = np.array([place[name] for name in images.class_names], dtype=np.int64)
    return replace(images, labels=mapped[images.labels], class_names=names)

"""The owner's preparations: images, model, partition, cipher and key; then the encrypted shards.

Whatever can be wrong with an experiment is found out here, before anything is written.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fl_vitlora import policies
from fl_vitlora.config import Config
from fl_vitlora.data import owner, sources
from fl_vitlora.data.partition import label_counts, partition
from fl_vitlora.data.sources import Images, Indices
from fl_vitlora.encryption.holder import KeyHolder
from fl_vitlora.encryption.keys import SECRET_BYTES, key_id, open_or_create_ring, open_ring
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import READER_FILE, adapted_to
from fl_vitlora.reporting.plots import plot_labels
from fl_vitlora.reporting.run_folder import (
    SHARDS,
    RunFolder,
    begun_in,
    is_under_way,
    with_ring_of,
)


@dataclass(frozen=True, kw_only=True)
class OwnedImages:
    """The owners' plain images, and who holds which.

    Attributes:
        train: Training images.
        test: Test images.
        parts: Positions of each client's training images.
        test_parts: Positions of each client's test images; none where clients do not evaluate.
    """

    train: Images
    test: Images
    parts: list[Indices]
    test_parts: list[Indices]

    @property
    def classes(self) -> int:
        """Counts the classes."""
        return len(self.train.class_names)


def prepare_images(config: Config) -> OwnedImages:
    """Loads the images and divides them.

    Raises:
        UserError: When the source or the partition cannot work, or test images do not suffice.
    """
    train, test = sources.load(config.data)
    parts = partition(train.labels, config.clients, config.data, config.seed)
    test_parts = (
        owner.divide_test_images(len(test), config.clients, config.seed)
        if policies.clients_evaluate(config)
        else []
    )
    return OwnedImages(train=train, test=test, parts=parts, test_parts=test_parts)


def prepare_model(config: Config, classes: int, device: str, *, sandwich: bool = False) -> Backbone:
    """Builds the model with what the method adds, and checks that all of it is trained.

    Raises:
        UserError: When the model or the method cannot work.
    """
    built = backbone.build(config.model, classes, config.seed)
    methods.prepare(built.model, config.finetuning, config.seed, sandwich=sandwich)
    methods.check_gradients(built.model, built.image_shape)
    built.model.to(device)
    return built


def prepare_holder(config: Config, model: Backbone, key: str = "") -> KeyHolder:
    """Opens the owners' key ring, or makes it if it is missing; plain images need none.

    Args:
        config: It names the key ring.
        model: The blocks of the cipher are its patches.
        key: Id of the secret that is wanted; the current one's if not given.

    Raises:
        UserError: When blocks do not divide the images, or the key ring is not in order.
    """
    holder = owner.key_holder(
        config,
        patch_size=model.patch_size,
        image_shape=model.image_shape,
        secret=bytes(SECRET_BYTES),  # until it is known that the cipher fits
    )
    if not config.encryption.steps:
        return holder
    path = Path(config.encryption.key_file)
    secret = open_ring(path).find(key) if key else open_or_create_ring(path).current
    return replace(holder, secret=secret)


def holds_shards(run: Path) -> bool:
    """Tells whether a run has any shards yet."""
    return any((run / SHARDS).glob("*.safetensors"))


def shards_of(run: Path) -> tuple[int, str]:
    """Reads off the shards of a run what they are of.

    Returns:
        The number of classes, and the id of their key.

    Raises:
        UserError: When there are none, or their keys differ.
    """
    told = owner.find_shards(run)
    first, *others = ((path, one.get("key_id", "")) for path, one in told.items())
    for path, key in others:
        if key != first[1]:
            raise UserError(
                f"shards of a run are under one key: {path} is under {key or 'none'}, {first[0]} "
                f"under {first[1] or 'none'}"
            )
    return int(told[first[0]]["classes"]), first[1]


def describe_encryption(config: Config, holder: KeyHolder) -> dict[str, object]:
    """Says how the shards are encrypted, without a secret."""
    return {
        "steps": list(holder.cipher.steps),
        "scope": holder.scope,
        "key_id": holder.key_id if holder.cipher.steps else None,
        "key_space_bits": round(holder.key_space_bits, 1),
        "adapted": policies.adapts(config),
        "patch_embedding": policies.what_becomes_of_reader(config),
    }


def rotate_key(config: Config, places: Sequence[Path]) -> tuple[str, list[Path]]:
    """Draws a new secret and encrypts shards under it; the key ring keeps the old ones.

    Args:
        config: It names the key ring.
        places: Shards, or folders of them.

    Returns:
        The new key id, and the shards.

    Raises:
        UserError: When there is no shard, one of them cannot be opened with the ring, a model
            beside them is adapted to the old key, or a run with them is not at its end; before
            anything is changed.
    """
    found = [path for place in places for path in owner.find_shards(place)]
    shards = list({path.resolve(): path for path in found}.values())  # each once, however named
    owner.check_all_described(places, shards)
    for folder in {path.parent for path in shards}:
        if is_under_way(folder.parent):
            raise UserError(
                f"{folder.parent} is not at its end, and a run goes on with its key only; finish "
                f"it first, --resume {shlex.quote(str(folder.parent))}, or move its shards "
                "elsewhere"
            )
        if adapted_to(folder / READER_FILE):
            raise UserError(
                f"{folder / READER_FILE} is adapted to the key of these shards and would not read "
                "them any more; run the experiment again with the new secret instead"
            )
    config = with_ring_of(config, [begun_in(path.parent.parent) for path in shards])
    ring = open_ring(Path(config.encryption.key_file))
    owner.holders_of(shards, ring)
    ring = ring.rotated()
    return key_id(ring.current), owner.encrypt_anew(shards, ring)


def write_shards(config: Config, images: OwnedImages, holder: KeyHolder, folder: RunFolder) -> None:
    """Encrypts and stores all shards, and draws who holds which labels."""
    owner.write_encrypted_shards(
        folder.shards,
        train=images.train,
        test=images.test,
        parts=images.parts,
        test_parts=images.test_parts,
        holder=holder,
        metadata={"data": config.data.name, "classes": str(images.classes)},
    )
    counts = label_counts(images.train.labels, images.parts, images.classes)
    plot_labels(folder.plots, counts, images.train.class_names)

"""The owner's preparations: images, model, partition, cipher and key; then the encrypted shards.

Whatever can be wrong with an experiment is found out here, before anything is written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fl_vitlora.config import Config
from fl_vitlora.data import owner, sources
from fl_vitlora.data.partition import label_counts, partition
from fl_vitlora.data.sources import Images, Indices
from fl_vitlora.encryption.cipher import Cipher, CipherKey
from fl_vitlora.encryption.keys import key_id, load_or_create_secret
from fl_vitlora.encryption.reader import Reader
from fl_vitlora.finetuning import methods
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import put_reader, reader_of
from fl_vitlora.reporting.plots import plot_labels
from fl_vitlora.reporting.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class OwnedImages:
    """The owners' plain images, and who holds which.

    Attributes:
        train: Training images.
        test: Test images.
        parts: Positions of each client's training images.
    """

    train: Images
    test: Images
    parts: list[Indices]

    @property
    def classes(self) -> int:
        """Counts the classes."""
        return len(self.train.class_names)


@dataclass(frozen=True, kw_only=True)
class OwnedKey:
    """The owners' cipher and key.

    Attributes:
        cipher: For the images that the model takes.
        key: Common to all owners; empty where nothing is encrypted.
        key_id: The name of the secret it comes from; none where nothing is encrypted.
    """

    cipher: Cipher
    key: CipherKey
    key_id: str | None

    def describe(self) -> dict[str, object]:
        """Says how the shards are encrypted, without a secret."""
        return {
            "steps": list(self.cipher.steps),
            "key_id": self.key_id,
            "key_space_bits": round(self.cipher.key_space_bits, 1),
        }


def prepare_images(config: Config) -> OwnedImages:
    """Loads the images and divides them.

    Raises:
        UserError: When the source or the partition cannot work.
    """
    train, test = sources.load(config.data)
    parts = partition(train.labels, config.clients, config.data, config.seed)
    return OwnedImages(train=train, test=test, parts=parts)


def prepare_model(config: Config, classes: int, device: str) -> Backbone:
    """Builds the model with what the method adds, and checks that all of it is trained.

    Raises:
        UserError: When the model or the method cannot work.
    """
    built = backbone.build(config.model, classes, config.seed)
    methods.prepare(built.model, config.finetuning, config.seed)
    methods.check_gradients(built.model, built.image_shape)
    built.model.to(device)
    return built


def prepare_key(config: Config, model: Backbone) -> OwnedKey:
    """Derives the key for the images of a model; makes the owner's key file if it is missing.

    Raises:
        UserError: When the patch size does not divide the image, or the key file is not in order.
    """
    cipher = Cipher(
        steps=config.encryption.steps,
        block_size=model.patch_size,
        image_shape=model.image_shape,
        fixed_blocks=config.encryption.fixed_blocks,
        fixed_entries=config.encryption.fixed_entries,
    )
    _ = cipher.geometry  # refuses what does not fit the images
    if not cipher.steps:
        return OwnedKey(cipher=cipher, key={}, key_id=None)
    secret = load_or_create_secret(Path(config.encryption.key_file))
    key = cipher.key(secret, f"shared/seed {config.seed}")
    return OwnedKey(cipher=cipher, key=key, key_id=key_id(secret))


def adapt_model(config: Config, model: Backbone, key: OwnedKey) -> Reader | None:
    """Adapts the model to the key, in place, if that is asked for.

    Returns:
        What the workers need to do the same without the key; none if it is not asked for.

    Raises:
        UserError: When a step has no adaptation for this model.
    """
    if not config.encryption.adapt:
        return None
    reader = key.cipher.adapt(reader_of(model), key.key)
    put_reader(model.model, reader)
    return reader


def write_shards(config: Config, images: OwnedImages, key: OwnedKey, folder: RunFolder) -> None:
    """Encrypts and stores all shards, and draws who holds which labels."""
    owner.write_encrypted_shards(
        folder.shards,
        train=images.train,
        test=images.test,
        parts=images.parts,
        cipher=key.cipher,
        key=key.key,
        metadata={
            "data": config.data.name,
            "steps": ",".join(key.cipher.steps),
            "block_size": str(key.cipher.block_size),
            "classes": str(images.classes),
            "key_id": key.key_id or "",
        },
    )
    counts = label_counts(images.train.labels, images.parts, images.classes)
    plot_labels(folder.plots, counts, images.train.class_names)

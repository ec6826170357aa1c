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
from fl_vitlora.finetuning import methods
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.reporting.plots import plot_labels
from fl_vitlora.reporting.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What stands ready before anything is written.

    Attributes:
        train: Training images, plain; they stay with the owner.
        test: Test images, plain; they stay with the owner.
        parts: Positions of each client's training images.
        backbone: With what the method adds, on the server's device.
        cipher: For the model's images.
        key: The owners' common key; empty where nothing is encrypted.
        key_id: The name of the owner's secret; none where nothing is encrypted.
    """

    train: Images
    test: Images
    parts: list[Indices]
    backbone: Backbone
    cipher: Cipher
    key: CipherKey
    key_id: str | None

    @property
    def classes(self) -> int:
        """Counts the classes."""
        return len(self.train.class_names)

    def encryption(self) -> dict[str, object]:
        """Says how the shards are encrypted, without a secret."""
        return {
            "steps": list(self.cipher.steps),
            "key_id": self.key_id,
            "key_space_bits": round(self.cipher.key_space_bits, 1),
        }


def prepare(config: Config, device: str) -> Prepared:
    """Loads and checks everything; writes nothing but the owner's key file, if it is missing.

    Args:
        config: The experiment.
        device: Where the server evaluates.

    Returns:
        Everything a run needs.

    Raises:
        UserError: When something cannot work.
    """
    train, test = sources.load(config.data)
    built = backbone.build(config.model, len(train.class_names), config.seed)
    cipher = Cipher(
        steps=config.encryption.steps, block_size=built.patch_size, image_shape=built.image_shape
    )
    _ = cipher.geometry  # refuses a patch size that does not divide the image
    parts = partition(train.labels, config.clients, config.data, config.seed)
    methods.prepare(built.model, config.finetuning, config.seed)
    methods.check_gradients(built.model, built.image_shape)
    built.model.to(device)
    secret = load_or_create_secret(Path(config.encryption.key_file)) if cipher.steps else None
    return Prepared(
        train=train,
        test=test,
        parts=parts,
        backbone=built,
        cipher=cipher,
        key={} if secret is None else cipher.key(secret, f"shared/seed {config.seed}"),
        key_id=None if secret is None else key_id(secret),
    )


def write_shards(prepared: Prepared, config: Config, folder: RunFolder) -> None:
    """Encrypts and stores all shards, and draws who holds which labels."""
    owner.write_encrypted_shards(
        folder.shards,
        train=prepared.train,
        test=prepared.test,
        parts=prepared.parts,
        cipher=prepared.cipher,
        key=prepared.key,
        metadata={
            "data": config.data.name,
            "steps": ",".join(config.encryption.steps),
            "block_size": str(prepared.cipher.block_size),
            "classes": str(prepared.classes),
            "key_id": prepared.key_id or "",
        },
    )
    counts = label_counts(prepared.train.labels, prepared.parts, prepared.classes)
    plot_labels(folder.plots, counts, prepared.train.class_names)

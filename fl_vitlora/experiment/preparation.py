"""Prepares the images, their partition, the model, the key, and the encrypted shards at the owner.

`validation` has already checked everything that does not need the images. The functions of this
module find mistakes in the images, the model or the key, before any file is written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from fl_vitlora.adaptation import policies
from fl_vitlora.config import Config
from fl_vitlora.data import owner, sources
from fl_vitlora.data.class_names import disagreement
from fl_vitlora.data.partition import (
    divide_by_owner,
    label_counts,
    natural_partition,
    partition,
)
from fl_vitlora.data.shards import TEST_SHARD, class_names_of, shard_metadata
from fl_vitlora.data.sources import Images, Indices
from fl_vitlora.encryption.at_rest import sealed_under
from fl_vitlora.encryption.holder import KeyHolder
from fl_vitlora.encryption.keys import SECRET_BYTES, open_or_create_ring, open_ring
from fl_vitlora.encryption.storage_keys import (
    StorageKey,
    StorageKeys,
    of_new_passphrase,
    of_ring,
    of_secret,
    open_party_keys,
)
from fl_vitlora.encryption.withstands import falls_to_ciphertexts
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods, shelf
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.reporting.run_folder import (
    SHARDS,
    RunFolder,
)


@dataclass(frozen=True, kw_only=True)
class OwnedImages:
    """The plain images, and how they are divided among the clients.

    Attributes:
        train: The training images.
        test: The test images.
        parts: The positions of each client's training images.
        test_parts: The positions of each client's test images; empty if clients do not evaluate.
        summary: One line of text about the images that exist and those that are used.
    """

    train: Images
    test: Images
    parts: list[Indices]
    test_parts: list[Indices]
    summary: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """Returns the names of the classes; label i means the class at position i."""
        return self.train.class_names


def prepare_images(config: Config) -> OwnedImages:
    """Loads the images and divides them among the clients.

    Raises:
        UserError: If the source or the partition cannot be used, or there are too few test images.
    """
    source = sources.load_source(config.data)
    train, test = source.train, source.test
    evaluate, test_parts = policies.clients_evaluate(config), list[Indices]()
    if train.owners is not None and config.data.partition == "natural":
        parts, order = natural_partition(train.owners, config.clients, config.data)
        if evaluate:
            test_parts = divide_by_owner(test.owners, order)
    else:
        parts = partition(train.labels, config.clients, config.data, config.seed)
        if evaluate:
            test_parts = owner.divide_test_images(len(test), config.clients, config.seed)
    summary = _summary(source, config)
    return OwnedImages(train=train, test=test, parts=parts, test_parts=test_parts, summary=summary)


def _summary(source: sources.Source, config: Config) -> str:
    """Returns one line about the images, which also says if the clients' folders are pooled."""
    if source.train.owners is None or config.data.partition == "natural":
        return source.told
    return (
        f"{source.told}; the images of all clients' folders are pooled and dealt anew "
        f"({config.data.partition}; data.partition=natural keeps them apart)"
    )


def prepare_model(config: Config, classes: int, device: str, adapter: str = "lora") -> Backbone:
    """Builds the model with its trained tensors, and checks that each gets a gradient.

    Args:
        config: The configuration of the experiment.
        classes: The number of classes.
        device: The device of the model.
        adapter: The kind of low-rank adapter that the strategy needs.

    Raises:
        UserError: If the model or the method cannot work.
    """
    built = backbone.build(config.model, classes, config.seed)
    method = shelf.method_of(config.finetuning, adapter)
    methods.attach(built.model, method, config.seed)
    methods.check_gradients(built.model, built.image_shape)
    built.model.to(device)
    return replace(built, notes=(*built.notes, *method.notes))


def prepare_holder(config: Config, model: Backbone, key: str = "") -> KeyHolder:
    """Opens the owners' key ring, or makes a new one if it is missing.

    Images that are not encrypted need no key ring.

    Args:
        config: The configuration of the experiment, with the path of the key ring.
        model: The model. Each block of the cipher is one patch of the model.
        key: The id of the secret to use. If it is empty, the current secret is used.

    Returns:
        The holder of the secret.

    Raises:
        UserError: If the blocks do not divide the images, or the key ring cannot be used.
    """
    holder = owner.key_holder(
        config,
        patch_size=model.patch_size,
        image_shape=model.image_shape,
        secret=bytes(SECRET_BYTES),  # a placeholder: the cipher is checked before a ring is made
    )
    if not config.encryption.steps:
        return holder
    path = Path(config.encryption.key_file)
    secret = open_ring(path).find(key) if key else open_or_create_ring(path).current
    return replace(holder, secret=secret)


def holds_shards(run: Path) -> bool:
    """Returns True if a run folder contains any shards."""
    return any((run / SHARDS).glob("*.safetensors"))


@dataclass(frozen=True, kw_only=True)
class ShardsOfRun:
    """The metadata that the shards of a run have in common.

    Attributes:
        class_names: The names of the classes, in the order in which the run numbers them.
        key: The id of the secret with which the images are encrypted; empty if they are plain.
        sealed: The names of the storage keys with which the files are encrypted.
    """

    class_names: tuple[str, ...]
    key: str
    sealed: frozenset[str]


def shards_of(run: Path, keys: StorageKeys) -> ShardsOfRun:
    """Reads the metadata that the shards of a run have in common.

    Args:
        run: The run folder.
        keys: The keys that may open the shards.

    Raises:
        UserError: If there is no shard, if shards differ in their keys or classes, or if a shard
            does not name its classes.
    """
    paths = owner.find_shards(run)
    metadata = {path: shard_metadata(path, keys) for path in paths}
    first = next((path for path in paths if path.name == TEST_SHARD), paths[0])
    key, names = metadata[first].get("key_id", ""), class_names_of(metadata[first], first)
    for path, one in metadata.items():
        other = one.get("key_id", "")
        if other != key:
            raise UserError(
                f"shards of a run are under one key: {path} is under {other or 'none'}, {first} "
                f"under {key or 'none'}"
            )
        if set(own := class_names_of(one, path)) != set(names):
            raise UserError(
                f"shards of a run have the same classes: {path} has others than {first} "
                f"({disagreement(own, names)})"
            )
    sealed = {under[0] for path in paths if (under := sealed_under(path)) is not None}
    return ShardsOfRun(class_names=names, key=key, sealed=frozenset(sealed))


def storage_keys(config: Config, given: Path | None = None) -> StorageKeys:
    """Returns the keys that open shards. The passphrase is read only if a shard needs it.

    Args:
        config: The configuration of the experiment, with the path of the key ring. The key ring
            need not exist.
        given: A file with the storage key of one party; None to use the key ring.

    Raises:
        UserError: If the key ring or the file cannot be used.
    """
    if given is not None:
        return open_party_keys(given)
    path = Path(config.encryption.key_file)
    return of_ring(open_ring(path)) if path.is_file() else StorageKeys(source=f"key ring {path}")


def prepare_storage(config: Config) -> StorageKey | None:
    """Returns the key that encrypts the files of new shards; None if they are not encrypted.

    Raises:
        UserError: If the key ring cannot be used, or the passphrase is missing.
    """
    if config.encryption.at_rest == "none":
        return None
    if config.encryption.at_rest == "passphrase":
        return of_new_passphrase()
    return of_secret(open_or_create_ring(Path(config.encryption.key_file)).current)


def describe_encryption(config: Config, holder: KeyHolder) -> dict[str, object]:
    """Returns the description of the encryption in `result.json`; it contains no secret."""
    return {
        "steps": list(holder.cipher.steps),
        "scope": holder.scope,
        "key_id": holder.key_id if holder.cipher.steps else None,
        "key_space_bits": round(holder.key_space_bits, 1),
        "falls_to_ciphertexts": falls_to_ciphertexts(holder.cipher, holder.scope, config.data.name),
        "at_rest": config.encryption.at_rest,
        "adapted": policies.adapts(config),
        "patch_embedding": policies.what_becomes_of_reader(config),
    }


def write_shards(
    config: Config,
    images: OwnedImages,
    holder: KeyHolder,
    folder: RunFolder,
    storage: StorageKey | None,
) -> None:
    """Encrypts the images, writes all shards, and plots the labels of each client.

    Args:
        config: The configuration of the experiment.
        images: The plain images and their partition.
        holder: The holder of the key of the images.
        folder: The run folder.
        storage: The key that encrypts the files as a whole; None if they are not encrypted.

    Raises:
        UserError: If an image cannot be read.
    """
    owner.write_encrypted_shards(
        folder.shards,
        train=images.train,
        test=images.test,
        parts=images.parts,
        test_parts=images.test_parts,
        holder=holder,
        metadata={"data": config.data.name},
        storage=storage,
    )
    from fl_vitlora.reporting.plots import plot_labels  # imports matplotlib, while Ray starts

    counts = label_counts(images.train.labels, images.parts, len(images.class_names))
    plot_labels(folder.plots, counts, images.class_names)

"""Prepares a run: loads and divides the images, builds the model, and encrypts the shards.

Before the preparation, the module `validation` has checked everything that does not need the
images. The functions of this module find mistakes in the images, the model or the key before any
file is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from fl_vitlora.adaptation import policies
from fl_vitlora.config import Config
from fl_vitlora.data import owner, sources
from fl_vitlora.data.given import Given
from fl_vitlora.data.holding_out import hold_out, hold_out_of_each
from fl_vitlora.data.images import Images, Indices, Name
from fl_vitlora.data.partition import (
    divide_by_owner,
    label_counts,
    natural_partition,
    partition,
)
from fl_vitlora.data.treatment import treat
from fl_vitlora.encryption.cipher import Cipher
from fl_vitlora.encryption.client_keys import storage_keys_in
from fl_vitlora.encryption.holder import KeyHolder
from fl_vitlora.encryption.keys import SECRET_BYTES, open_or_create_ring, open_rings
from fl_vitlora.encryption.storage_keys import (
    StorageKey,
    StorageKeys,
    of_new_passphrase,
    of_secret,
    open_all_party_keys,
    open_party_keys,
)
from fl_vitlora.encryption.withstands import falls_to_ciphertexts
from fl_vitlora.experiment.told_images import tell_images
from fl_vitlora.finetuning import methods, products, shelf
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.reporting.run_folder import RunFolder
from fl_vitlora.training.product_choice import choose_library


@dataclass(frozen=True, kw_only=True)
class OwnedImages:
    """The plain images and their division among the clients.

    Attributes:
        train: The training images, followed by the images of a validation split.
        test: The test images.
        parts: The positions of each client's images in `train`, one array for each client.
        test_parts: The positions of each client's images in `test`, one array for each client. The
            list is empty if the server measures the accuracy.
        summary: One line of text with the number of images that were found and that are used.
        validation: The positions of the validation images in `train`. If clients measure the
            accuracy, there is one array for each client, otherwise one array for all. The list is
            empty if the run has no validation images.
        identity: The identity of the data set (`data.identity`); None if the data set has no
            identity.
        names: The name of each client, in the order of `parts`; empty if the data set does not
            state the clients of the images.
    """

    train: Images
    test: Images
    parts: list[Indices]
    test_parts: list[Indices]
    summary: str
    validation: list[Indices] = field(default_factory=list)
    identity: str | None = None
    names: tuple[Name, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Returns the names of the classes; the name at position i belongs to label i."""
        return self.train.class_names


def prepare_images(config: Config, given: Given | None = None) -> OwnedImages:
    """Loads the images and divides them among the clients.

    Args:
        config: The configuration of the experiment.
        given: The images that a Python program handed in; None without such images.

    Raises:
        UserError: If the data set or the partition cannot be used, or if there are too few test
            images.
    """
    source = sources.load_source(config.data, given)
    train, test = source.train, source.test
    evaluate, test_parts = policies.clients_evaluate(config), list[Indices]()
    trained, validation = np.arange(len(train)), list[Indices]()
    if config.data.validation_fraction and not evaluate:
        trained, validation = hold_out(train.labels, config.data)
    owners = None if train.owners is None else train.owners[trained]
    names, order = tuple[Name, ...](), list[int]()
    if owners is not None and config.data.partition == "natural":
        divided, order = natural_partition(owners, config.clients, config.data, train.clients)
        names = tuple(train.clients[owner] for owner in order)
        if evaluate:
            test_parts = divide_by_owner(test.owners, order, train.clients)
    else:
        divided = partition(train.labels[trained], config.clients, config.data, config.seed)
        if evaluate:
            test_parts = owner.divide_test_images(len(test), config.clients, config.seed)
    parts = [trained[part] for part in divided]
    if config.data.validation_fraction and evaluate:
        parts, validation = hold_out_of_each(train.labels, parts, config.data, config.seed)
    if (held := source.validation) is not None:  # placed after the training images
        validation = [np.arange(len(held))]
        if evaluate and names:
            validation = divide_by_owner(held.owners, order, train.clients, "validation")
        elif evaluate:
            validation = owner.divide_test_images(
                len(held), config.clients, config.seed, "validation"
            )
        validation = [len(train) + part for part in validation]
    return OwnedImages(
        train=train if source.validation is None else train.join(source.validation),
        test=test,
        parts=parts,
        test_parts=test_parts,
        summary=tell_images(source, config, validation, names),
        validation=validation,
        identity=source.identity,
        names=names,
    )


def prepare_model(
    config: Config,
    classes: int | Sequence[str],
    device: str,
    adapter: str = "lora",
    *,
    library: str = "",
) -> Backbone:
    """Builds the model with the fine-tuning method; checks that all trained tensors get gradients.

    Args:
        config: The configuration of the experiment.
        classes: The names of the classes, or their number (see `backbone.build`).
        device: The device of the model.
        adapter: The low-rank matrices that the strategy needs: "lora" or "lora_xs".
        library: The matrix library of a resumed run; for any other text, the faster one is chosen.

    Raises:
        UserError: If the model cannot be built, if the method cannot be attached to the model, or
            if a trained tensor gets no gradient.
    """
    built = backbone.build(config.model, classes, config.seed)
    method = shelf.method_of(config.finetuning, adapter)
    methods.attach(built.model, method, config.seed)
    methods.check_gradients(built.model, built.image_shape)
    if library not in products.LIBRARIES:
        rows = config.training.batch_size * built.patches
        library = choose_library(built.model, device, rows)
    products.use(library)
    built.model.to(device)
    return replace(built, notes=(*built.notes, *method.notes))


def prepare_holder(config: Config, model: Backbone, key: str | Mapping[str, str] = "") -> KeyHolder:
    """Opens the key ring (the file with the owners' secrets), or makes a missing key ring.

    If the images are not encrypted, no key ring is needed, and this function makes no key ring.

    Args:
        config: The configuration of the experiment, with the path of the key ring.
        model: The model. Each block of the cipher is one patch of the model.
        key: The id of the secret to use, or the id of each party's secret by the name of the party.
            If this id is empty, the current secret is used. If there are several secrets, those
            that the key ring lacks are left out.

    Returns:
        The key holder, which has the secret and encrypts images.

    Raises:
        UserError: If the images cannot be divided into whole blocks, or if the key ring cannot be
            used.
    """
    holder = _holder_without_secret(config, model)
    if not config.encryption.steps:
        return holder
    path = Path(config.encryption.key_file)
    if not key:
        return replace(holder, secret=open_or_create_ring(path).current)
    ring = open_rings(path)
    if isinstance(key, str):
        return replace(holder, secret=ring.find(key))
    secrets = ring.secrets_of(key)
    one = next(iter(secrets.values()))
    # The server's key is used only to shape its patch embedding, so any secret can stand here.
    return replace(holder, secret=one, secrets={"server": one, **secrets})


def cipher_of(config: Config, model: Backbone) -> Cipher:
    """Returns the cipher of the images, for which no key is needed.

    Raises:
        UserError: If the images cannot be divided into whole blocks.
    """
    return _holder_without_secret(config, model).cipher


def _holder_without_secret(config: Config, model: Backbone) -> KeyHolder:
    """Returns a key holder with a placeholder: the cipher is checked before a ring is made."""
    return owner.key_holder(
        config,
        patch_size=model.patch_size,
        image_shape=model.image_shape,
        secret=bytes(SECRET_BYTES),
    )


def storage_keys(config: Config, given: Path | None = None) -> StorageKeys:
    """Returns the keys that open the files of shards.

    If the files are encrypted with a passphrase, the passphrase is needed only when the first file
    is opened. The program then reads the passphrase from the environment, or asks the user.

    Args:
        config: The configuration of the experiment, with the path of the key ring. The file of the
            key ring may be missing.
        given: A file with the storage key of one party. If `given` is None, the key ring is used.

    Raises:
        UserError: If the key ring or the file cannot be used.
    """
    if given is not None:
        return open_party_keys(given)
    path = Path(config.encryption.key_file)
    keys = storage_keys_in(path)
    if config.data.storage_keys is None:
        return keys
    return keys.join(open_all_party_keys(Path(config.data.storage_keys)))


def prepare_storage(config: Config) -> StorageKey | None:
    """Returns the key that encrypts the files of new shards; None if the files are not encrypted.

    Raises:
        UserError: If the key ring cannot be used, or if the passphrase is missing.
    """
    if config.encryption.at_rest == "none":
        return None
    if config.encryption.at_rest == "passphrase":
        return of_new_passphrase()
    return of_secret(open_or_create_ring(Path(config.encryption.key_file)).current)


def describe_encryption(
    config: Config, cipher: Cipher, key: str | Mapping[str, str]
) -> dict[str, object]:
    """Returns the description of the encryption for `result.json`.

    The description contains no secret.

    Args:
        config: The configuration of the experiment.
        cipher: The cipher of the images.
        key: The id of the secret, or of each party's secret by the name of the party.
    """
    several = {} if isinstance(key, str) else {"key_ids": dict(key)}
    scope = config.encryption.scope
    return {
        "steps": list(cipher.steps),
        "scope": scope,
        "key_id": (key if isinstance(key, str) and cipher.steps else "") or None,
        **several,
        "key_space_bits": round(cipher.key_space_bits, 1),
        "falls_to_ciphertexts": falls_to_ciphertexts(cipher, scope, config.data.name),
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
    """Encrypts the images and writes all shards.

    Args:
        config: The configuration of the experiment.
        images: The plain images and their division among the clients.
        holder: The key holder that encrypts the images.
        folder: The run folder.
        storage: The storage key with which the files are sealed. If `storage` is None, only the
            images in the files are encrypted.

    Raises:
        UserError: If an image cannot be read.
    """
    train, test, parts = treat(
        config.data,
        config.seed,
        train=images.train,
        test=images.test,
        parts=images.parts,
        test_parts=images.test_parts,
        validation=images.validation,
    )
    owner.write_encrypted_shards(
        folder.shards,
        train=train,
        test=test,
        parts=parts,
        test_parts=images.test_parts,
        validation=images.validation,
        holder=holder,
        metadata=shard_metadata_of(config),
        storage=storage,
    )


def shard_metadata_of(config: Config) -> dict[str, str]:
    """Returns the texts about an experiment that are written into each shard of the run."""
    return {"data": config.data.name}


def plot_images(images: OwnedImages, folder: RunFolder) -> None:
    """Plots the number of training images of each class and client, and writes the numbers.

    Args:
        images: The images and their division among the clients.
        folder: The run folder.
    """
    counts = label_counts(images.train.labels, images.parts, len(images.class_names))
    plot_counts(counts, images.class_names, folder)


def plot_counts(counts: Any, class_names: tuple[str, ...], folder: RunFolder) -> None:
    """Plots numbers of training images, an array of the shape (clients, classes)."""
    from fl_vitlora.reporting.plots import plot_labels, write_labels  # matplotlib, while Ray starts

    plot_labels(folder.plots, counts, class_names)
    write_labels(folder.plots, counts, class_names)

"""The owner's preparations: images, model, partition, cipher and key; then the encrypted shards.

Whatever can be wrong with an experiment is found out here, before anything is written.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fl_vitlora.adaptation import policies
from fl_vitlora.config import Config
from fl_vitlora.data import owner, reencryption, sources
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
from fl_vitlora.encryption.keys import SECRET_BYTES, key_id, open_or_create_ring, open_ring
from fl_vitlora.encryption.storage_keys import (
    StorageKey,
    StorageKeys,
    of_new_passphrase,
    of_ring,
    of_secret,
    open_party_keys,
    passphrase,
    write_party_key,
)
from fl_vitlora.encryption.withstands import falls_to_ciphertexts
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
from fl_vitlora.storage.files import WriteError, make_folder, make_private_folder
from fl_vitlora.training.prediction import predictor_of


@dataclass(frozen=True, kw_only=True)
class OwnedImages:
    """The owners' plain images, and who holds which.

    Attributes:
        train: Training images.
        test: Test images.
        parts: Positions of each client's training images.
        test_parts: Positions of each client's test images; none where clients do not evaluate.
        told: One line that says which images were found, and which of them are used.
    """

    train: Images
    test: Images
    parts: list[Indices]
    test_parts: list[Indices]
    told: str

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names the classes, in the order in which labels number them."""
        return self.train.class_names


def prepare_images(config: Config) -> OwnedImages:
    """Loads the images and divides them.

    Raises:
        UserError: When the source or the partition cannot work, or test images do not suffice.
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
    told = _tell_partition(source, config)
    return OwnedImages(train=train, test=test, parts=parts, test_parts=test_parts, told=told)


def _tell_partition(source: sources.Source, config: Config) -> str:
    """Adds to what is told of a source that clients' folders are pooled, if they are."""
    if source.train.owners is None or config.data.partition == "natural":
        return source.told
    return (
        f"{source.told}; the images of all clients' folders are pooled and dealt anew "
        f"({config.data.partition}; data.partition=natural keeps them apart)"
    )


def check_model(config: Config) -> None:
    """Looks at the parts of a model and for its weights, in a second and without its numbers.

    The bundled models are known to fit. What only numbers tell `prepare_model` finds out.

    Raises:
        UserError: When the model or the method cannot work, or the weights are not to be had.
    """
    model = config.model
    if model.name in backbone.BUNDLED and model.weights in (backbone.PRETRAINED, backbone.RANDOM):
        return
    drafted = backbone.draft(model, classes=2)
    with torch.device("meta"):
        methods.prepare(drafted.model, config.finetuning, config.seed)
        methods.check_gradients(drafted.model, drafted.image_shape)


def prepare_model(config: Config, classes: int, device: str, adapter: str = "lora") -> Backbone:
    """Builds the model with what the method adds, and checks that all of it is trained.

    Raises:
        UserError: When the model, the method or the predictor cannot work.
    """
    predictor_of(config.evaluation.predictor)  # refused here, before anything is written
    built = backbone.build(config.model, classes, config.seed)
    methods.prepare(built.model, config.finetuning, config.seed, adapter)
    methods.check_gradients(built.model, built.image_shape)
    built.model.to(device)
    return built


def prepare_holder(config: Config, model: Backbone, key: str = "") -> KeyHolder:
    """Opens the owners' key ring, or makes it if it is missing; plain images need none.

    Args:
        config: The experiment; it names the key ring.
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


@dataclass(frozen=True, kw_only=True)
class ShardsOfRun:
    """What the shards of a run are, as all of them say.

    Attributes:
        class_names: The names of the classes, in the order in which the run numbers them.
        key: Id of the secret that the images are encrypted under; empty where they are plain.
        sealed: Names of the storage keys that files are sealed under.
    """

    class_names: tuple[str, ...]
    key: str
    sealed: frozenset[str]


def shards_of(run: Path, keys: StorageKeys) -> ShardsOfRun:
    """Reads off the shards of a run what they are of.

    Args:
        run: Its folder.
        keys: The keys that may open the shards.

    Raises:
        UserError: When there are none, their keys or their classes differ, or one does not name
            its classes.
    """
    paths = owner.find_shards(run)
    told = {path: shard_metadata(path, keys) for path in paths}
    first = next((path for path in paths if path.name == TEST_SHARD), paths[0])
    key, names = told[first].get("key_id", ""), class_names_of(told[first], first)
    for path, one in told.items():
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
    """Finds what shards can be opened with; a passphrase is looked for when one is needed.

    Args:
        config: The experiment; it names the key ring, which need not exist.
        given: A file of storage keys of single parties, where somebody was handed one.

    Raises:
        UserError: When ring or file are not in order.
    """
    if given is not None:
        return open_party_keys(given)
    path = Path(config.encryption.key_file)
    return of_ring(open_ring(path)) if path.is_file() else StorageKeys(source=f"key ring {path}")


def check_storage(config: Config) -> None:
    """Finds out whether there is a passphrase where one is asked for, before anything is begun.

    Raises:
        UserError: When there is none.
    """
    if config.encryption.at_rest == "passphrase":
        passphrase("encryption.at_rest passphrase")


def prepare_storage(config: Config) -> StorageKey | None:
    """Makes what new shards are sealed under; none where they are to be in the clear.

    Raises:
        UserError: When the key ring is not in order, or there is no passphrase.
    """
    if config.encryption.at_rest == "none":
        return None
    if config.encryption.at_rest == "passphrase":
        return of_new_passphrase()
    return of_secret(open_or_create_ring(Path(config.encryption.key_file)).current)


def hand_out_keys(config: Config, places: Sequence[Path], folder: Path) -> list[Path]:
    """Writes for each party that has shards the storage key that opens its files and no others.

    Args:
        config: The experiment; it names the key ring.
        places: Shards, or folders of them.
        folder: The folder of the files; it is made if it is missing, for the owner alone.

    Returns:
        The files, such as `client-00003.key`.

    Raises:
        UserError: When there is no shard, one is in the clear, or its key is not on the ring.
    """
    keys, found = storage_keys(config), {}
    for path in (path for place in places for path in owner.find_shards(place)):
        under = sealed_under(path)
        if under is None:
            raise UserError(f"{path} is not sealed at rest, so that no key opens it")
        name, party = under
        file = folder / f"{path.stem.removesuffix('-test')}.key"
        found[file] = name, party, keys.find(name, party, path)
    try:
        make_folder(folder.absolute().parent)
        make_private_folder(folder)
    except WriteError as error:
        raise UserError(f"storage keys: {error}") from None
    for file, (name, party, key) in found.items():
        write_party_key(file, name, party, key)
    return list(found)


def describe_encryption(config: Config, holder: KeyHolder) -> dict[str, object]:
    """Says how the shards are encrypted, without a secret."""
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


def rotate_key(config: Config, places: Sequence[Path]) -> tuple[str, list[Path]]:
    """Draws a new secret and encrypts shards under it; the key ring keeps the old ones.

    Args:
        config: The experiment; it names the key ring.
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
    reencryption.holders_of(shards, ring)
    ring = ring.rotated()
    return key_id(ring.current), reencryption.encrypt_anew(shards, ring)


def write_shards(
    config: Config,
    images: OwnedImages,
    holder: KeyHolder,
    folder: RunFolder,
    storage: StorageKey | None,
) -> None:
    """Encrypts, seals and stores all shards, and draws who holds which labels."""
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
    counts = label_counts(images.train.labels, images.parts, len(images.class_names))
    plot_labels(folder.plots, counts, images.class_names)

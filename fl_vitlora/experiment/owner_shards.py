"""Encrypts the folder of images of one owner, and writes the shards of one client.

Only this owner's images and key ring are needed. A training site, or a SuperNode of a deployment,
uses the resulting files, such as ``client-NNNNN.safetensors``, without any change. No plain image
is written to a file.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from fl_vitlora.adaptation import policies
from fl_vitlora.config import Config, ModelConfig
from fl_vitlora.data import owner, sources
from fl_vitlora.data.augmentation import check_copies
from fl_vitlora.data.class_names import CLASS_NAMES, write_names
from fl_vitlora.data.holding_out import check_validation
from fl_vitlora.data.shard_pieces import ShardContent, encrypt_shard, verify
from fl_vitlora.data.shard_recipe import write_recipe
from fl_vitlora.data.shard_store import name_of
from fl_vitlora.data.shards import shard_metadata
from fl_vitlora.encryption.holder import TEST, KeyHolder
from fl_vitlora.encryption.keys import SECRET_BYTES, derive_key, open_or_create_ring
from fl_vitlora.encryption.storage_keys import (
    StorageKey,
    StorageKeys,
    of_ring,
    write_party_key,
)
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.owner_request import OwnerRequest, divide
from fl_vitlora.experiment.preparation import prepare_storage
from fl_vitlora.models import backbone
from fl_vitlora.storage.files import HeldError, Hold, WriteError, make_folder

RECIPE, COPIES = "recipe", "copies"  # fields of the metadata


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Callbacks that show the progress.

    Attributes:
        note: A function that is called with a sentence for the user.
        begin: A function that is called with the name and the number of images of a shard, before
            the shard is made.
        advance: A function that is called with the number of images of each encrypted piece.
    """

    note: Callable[[str], None] = lambda sentence: None
    begin: Callable[[str, int], None] = lambda name, images: None
    advance: Callable[[int], None] = lambda images: None


@dataclass(frozen=True, kw_only=True)
class OwnedShard:
    """A shard of the owner.

    Attributes:
        path: The path of the file.
        content: The plain images from which the shard is made.
        is_new: True if this call made the shard; False if the shard existed before.
    """

    path: Path
    content: ShardContent
    is_new: bool


def encrypt_images(request: OwnerRequest, shown: Shown | None = None) -> list[OwnedShard]:
    """Encrypts the images of one owner.

    If a shard was made earlier from the same images, with the same settings and keys, the shard is
    verified and not made again. An interrupted call leaves no file under the name of a shard.

    Args:
        request: The request of the owner.
        shown: The callbacks that show the progress.

    Returns:
        The shards of the owner.

    Raises:
        UserError: If the images, the settings or the key ring cannot be used, or if another shard
            would be replaced. If this error is raised, no file has been changed.
    """
    shown, config = shown or Shown(), request.config
    _check(request)
    patch_size, image_shape = _sizes(config.model)
    holder = owner.key_holder(
        config, patch_size=patch_size, image_shape=image_shape, secret=bytes(SECRET_BYTES)
    )
    evaluates = policies.clients_evaluate(config) or request.common_test
    source = sources.load_source(
        config.data,
        needs_test=request.holds_out or evaluates,
        fewest=1 if request.class_names else 2,
    )
    shown.note(source.told)
    if request.holds_out and source.test_split is not None:
        raise UserError(
            f"--test-fraction {config.data.test_fraction:g}: {config.data.name} has a split for "
            f"testing, {source.test_split}; remove --test-fraction, or add --set "
            "data.test_split=none to hold out a share of the other images instead"
        )
    contents = divide(request, source)
    keys = _open_keys(config, holder, shown)
    try:
        make_folder(request.out)
        with _locked(request.out):
            shards = _write(request, contents, keys, source.identity, shown)
            _write_storage_keys(request, {content.party for content in contents.values()}, keys)
    except WriteError as error:
        raise UserError(str(error)) from None
    return shards


def _check(request: OwnerRequest) -> None:
    """Checks the settings that need no image.

    Raises:
        UserError: If settings do not fit each other, or belong to a simulation of many owners.
    """
    config = request.config
    check_copies(config.data)
    check_validation(config.data)
    if not Path(config.data.name).is_dir():
        raise UserError(f"{config.data.name}: expected a folder of images, or a saved data set")
    if config.data.feature_skew:
        raise UserError(
            f"data.feature_skew {config.data.feature_skew:g}: it imitates the sensors of many "
            "clients in a simulation, and these are real images; set data.feature_skew=0"
        )
    if request.storage_key is not None and config.encryption.at_rest == "none":
        raise UserError(
            "--storage-key: with encryption.at_rest none the files are not sealed (encrypted on "
            "the disk), so they have no storage key"
        )


def _sizes(model: ModelConfig) -> tuple[int, tuple[int, int, int]]:
    """Returns the side of a patch, and the shape (C, H, W) of the model's input images.

    No weights are needed for this. If the settings name both sizes, no model is built.
    """
    size = backbone.image_size(model)
    if size is not None and model.patch_size is not None:
        return model.patch_size, (3, *size)
    built = backbone.draft(replace(model, weights=backbone.RANDOM), classes=2)
    return built.patch_size, built.image_shape


@dataclass(frozen=True, kw_only=True)
class _Keys:
    """The keys of an owner.

    Attributes:
        holder: The key holder that encrypts the images.
        storage: The key that seals new files; None if files are not sealed.
        opening: All keys that may open existing files.
    """

    holder: KeyHolder
    storage: StorageKey | None = field(repr=False)
    opening: StorageKeys


def _open_keys(config: Config, holder: KeyHolder, shown: Shown) -> _Keys:
    """Opens the key ring, or makes a new one.

    Args:
        config: The settings of the experiment, with the path of the key ring.
        holder: A key holder whose secret is only a placeholder.
        shown: The callbacks that show the progress.
    """
    if not policies.needs_key_ring(config):
        return _Keys(holder=holder, storage=prepare_storage(config), opening=StorageKeys())
    path = Path(config.encryption.key_file)
    if not path.exists():
        shown.note(
            f"a new key ring with a new secret was created: {path.absolute()}; whoever loses it "
            "cannot decrypt the images again"
        )
    ring = open_or_create_ring(path)
    if config.encryption.steps:
        holder = replace(holder, secret=ring.current)
    return _Keys(holder=holder, storage=prepare_storage(config), opening=of_ring(ring))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Locks a folder, so that no other program writes shards into it inside the `with` block.

    Raises:
        UserError: If another program is writing into the folder.
    """
    try:
        hold = Hold(folder)
    except HeldError:
        raise UserError(f"{folder}: another program is writing shards into this folder") from None
    with hold:
        yield


def _write(
    request: OwnerRequest,
    contents: dict[str, ShardContent],
    keys: _Keys,
    identity: str | None,
    shown: Shown,
) -> list[OwnedShard]:
    """Writes the shards that do not exist yet."""
    found = []
    for name, content in contents.items():
        metadata, path = _metadata(request, content, keys, identity), request.out / name
        is_new = not _is_made(path, metadata, keys.opening, request)
        found.append((OwnedShard(path=path, content=content, is_new=is_new), metadata))
    for shard, metadata in found:
        for half in request.out.glob(f".{shard.path.name}.*.tmp"):  # left by a killed call
            half.unlink()
        if shard.is_new:
            shown.begin(shard.path.name, len(shard.content))
            encrypt_shard(
                shard.path,
                shard.content,
                holder=keys.holder,
                metadata=metadata,
                storage=keys.storage,
                show=shown.advance,
            )
    return [shard for shard, _ in found]


def _metadata(
    request: OwnerRequest,
    content: ShardContent,
    keys: _Keys,
    identity: str | None,
) -> dict[str, str]:
    """Returns the metadata of a shard, with a digest of the shard's recipe.

    The digest is computed with a key. So other people cannot learn the path of the images from it.
    """
    data, holder, storage = request.config.data, keys.holder, keys.storage
    copies = data.copies if content.part == "train" else 1
    described = {
        **owner.describe(holder),
        CLASS_NAMES: write_names(content.images.class_names),
        COPIES: str(copies),
    }
    if identity is None:  # the images cannot be recognised again
        return described
    at_rest = {"at_rest": request.config.encryption.at_rest}
    recipe = write_recipe(
        data, identity, content, holder=holder, metadata=described | at_rest, storage=None
    )
    secret = storage.root if storage is not None and not holder.cipher.steps else holder.secret
    return described | {RECIPE: name_of(recipe, derive_key(secret, "recipe of an owner"))}


def _is_made(
    path: Path, metadata: dict[str, str], keys: StorageKeys, request: OwnerRequest
) -> bool:
    """Returns True if the same shard was made earlier, and is complete and undamaged.

    Raises:
        UserError: If there is another file under the name of the shard.
    """
    if not path.exists():
        return False
    with contextlib.suppress(UserError):  # another shard, or a damaged file
        recipe = metadata.get(RECIPE)
        if recipe and shard_metadata(path, keys).get(RECIPE) == recipe:
            return verify(path, keys).get(RECIPE) == recipe
    if not request.replaces:
        raise UserError(
            f"{path} exists, and it is not the shard of these images, settings and keys; choose "
            "another folder, or add --replace to replace it"
        )
    return False


def _write_storage_keys(request: OwnerRequest, parties: set[str], keys: _Keys) -> None:
    """Writes the storage key of the client, and the storage key of the server's images, if any."""
    if request.storage_key is None or keys.storage is None:
        return
    make_folder(request.storage_key.absolute().parent)
    for party in sorted(parties):
        file = request.storage_key
        path = file.with_name("test.key") if party == TEST else file
        write_party_key(path, keys.storage.name, party, keys.storage.of_party(party))

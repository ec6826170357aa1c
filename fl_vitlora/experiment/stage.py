"""The stage of a run: the files and objects that must exist before the next round.

The function `prepare_stage` makes the stage of a new run; its first step is to load the images. The
function `find_stage` opens the stage of an interrupted run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fl_vitlora.adaptation import coordinates, policies
from fl_vitlora.checkpoints.logbook import Checkpoint, Logbook, lacks_checkpoints
from fl_vitlora.config import Config
from fl_vitlora.data.given import Given
from fl_vitlora.data.given_shards import GivenShards, digest_of, digests_in
from fl_vitlora.data.shards import NO_KEYS
from fl_vitlora.encryption.holder import KeyHolder
from fl_vitlora.encryption.identities import Identities
from fl_vitlora.encryption.storage_keys import StorageKeys
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.elsewhere import keys_at_hand
from fl_vitlora.experiment.example_images import draw_examples
from fl_vitlora.experiment.preparation import (
    OwnedImages,
    cipher_of,
    describe_encryption,
    plot_images,
    prepare_holder,
    prepare_images,
    prepare_model,
    prepare_storage,
    storage_keys,
)
from fl_vitlora.experiment.run_shards import holds_shards, shards_of
from fl_vitlora.experiment.server_model import Server, make_server
from fl_vitlora.experiment.shard_reuse import take_or_write_shards
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.finetuning import products
from fl_vitlora.flower.strategies.aggregators import AnyStrategy, client_half
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import READER_FILE, write_reader
from fl_vitlora.population.sampling import cohort_size
from fl_vitlora.reporting.run_folder import DATA, PRODUCTS, RunFolder, fact_of
from fl_vitlora.storage.files import sync_files
from fl_vitlora.training.cohort import why_alone

USUAL_PATCHES = 256  # the number of patches of an image with 224 pixels and patches of 14 pixels


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """An experiment that has passed all checks, with the callbacks of its run.

    Attributes:
        written: The configuration as the user wrote it, which is stored in the run folder.
        config: The configuration that the run uses, with the changes that the strategy requires.
        strategy: The strategy of the run, from this project or from Flower.
        watch: The callbacks of the program that started the run.
        given: The images that a Python program handed in; None without such images.
        identities: The identity keys of all clients; None if clients do not sign the rosters of
            secure sums.
        shards: The shards that owners made elsewhere; None if the run makes its shards.
    """

    written: Config
    config: Config
    strategy: AnyStrategy
    watch: Watch
    given: Given | None = None
    identities: Identities | None = field(default=None, repr=False)
    shards: GivenShards | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The files and objects that must exist before the next round of a run.

    Attributes:
        folder: The run folder, which contains the shards.
        logbook: The object that writes rounds and checkpoints into the run folder.
        class_names: The names of the classes, in the order of the head's outputs.
        storage: The keys that open the files of the shards; None if the files are not sealed. These
            keys do not decrypt the images in the files.
        holder: The key holder for the images; None if only the owners have the key.
        server: The server's model.
        encryption: The description of the encryption for `result.json`.
        content: A digest of the content of shards that were made elsewhere; "" for other shards.
        checkpoint: The checkpoint from which the run continues; None before the first round.
    """

    folder: RunFolder
    logbook: Logbook
    class_names: tuple[str, ...]
    storage: StorageKeys | None = field(repr=False)
    holder: KeyHolder | None
    server: Server
    encryption: dict[str, object]
    content: str = ""
    checkpoint: Checkpoint | None = None


def find_or_prepare_stage(experiment: Experiment, device: str, *, resume: bool) -> Stage:
    """Returns the stage of a new run or of a resumed run.

    Args:
        experiment: The experiment, which has passed all checks.
        device: The device of the server's model.
        resume: True to resume an interrupted run in the folder `out`.

    Raises:
        UserError: If the images cannot be used, or if the run cannot be resumed.
    """
    stage = find_stage(experiment, device) if resume else None
    if stage is None and experiment.config.data.shards is not None:
        from fl_vitlora.experiment.given_stage import prepare_given

        return prepare_given(experiment, device, again=resume)
    return stage or prepare_stage(experiment, device, again=resume)


def find_stage(experiment: Experiment, device: str) -> Stage | None:
    """Opens the stage of an interrupted run.

    Args:
        experiment: The experiment, whose setting `out` is the path of the run folder.
        device: The device of the server's model.

    Returns:
        The stage, or None if the run was interrupted before its first checkpoint.

    Raises:
        UserError: If the run has rounds but no checkpoint.
    """
    config, watch = experiment.config, experiment.watch
    folder = RunFolder.reopen(Path(str(config.out)))
    logged = Logbook.take_up(folder.path)
    if logged is None and lacks_checkpoints(folder.path, config.checkpoint_every):
        raise UserError(
            f"{folder.path} has rounds, but no checkpoint from which the run could continue; start "
            "a new run in another folder: --out FOLDER"
        )
    if logged is None:
        folder.release()
        return None
    logbook, checkpoint = logged
    watch.announce("preparing the model")
    folder.forget_failures(after=checkpoint.round)
    keys = storage_keys(config)
    shards = shards_of(folder.path, keys)
    content = ""
    if config.data.shards is not None:
        content = digest_of(dict(digests_in(folder.shards, keys)))
    holder, server, told = prepare_server(experiment, device, shards.class_names, shards.key)
    return Stage(
        folder=folder,
        logbook=logbook,
        class_names=shards.class_names,
        storage=None if config.encryption.at_rest == "none" else keys.only(shards.sealed),
        holder=holder,
        server=server,
        encryption=told,
        content=content,
        checkpoint=checkpoint,
    )


def prepare_stage(experiment: Experiment, device: str, *, again: bool = False) -> Stage:
    """Prepares images, model and key, encrypts the shards, and writes the run folder.

    Args:
        experiment: The experiment.
        device: The device of the server's model.
        again: True if the folder belongs to a run that was interrupted before its first
            checkpoint. The run then uses the key with which the shards in the folder are encrypted.

    Raises:
        UserError: If the images, the model or the key cannot be used. After this error, a new run
            leaves no folder behind.
    """
    config, watch = experiment.config, experiment.watch
    if again:
        _check_key_ring(config)
    watch.announce("preparing images and model")
    images = prepare_images(config, experiment.given)
    watch.note(images.summary)
    key = _key_of_shards(config) if again else ""
    holder, server, told = prepare_server(experiment, device, images.class_names, key)
    if holder is None:
        raise ValueError("images cannot be encrypted without a key")
    folder, storage = _write_folder(experiment, images, holder, again=again)
    finish_folder(config, folder, images.class_names, holder, server)
    return Stage(
        folder=folder,
        logbook=Logbook.begin(folder.path),
        class_names=images.class_names,
        storage=storage,
        holder=holder,
        server=server,
        encryption=told,
    )


def finish_folder(
    config: Config,
    folder: RunFolder,
    class_names: tuple[str, ...],
    holder: KeyHolder | None,
    server: Server,
) -> None:
    """Writes a run folder except its shards, and waits until all its files are on the disk.

    Args:
        config: The configuration of the experiment.
        folder: The run folder, which has its shards already.
        class_names: The names of the classes, in the order of the head's outputs.
        holder: The object that has the key of the images; None if only the owners have a key.
        server: The server's model.
    """
    if policies.reader_is_stored(config):
        known = holder is not None and policies.start_is_adapted(config)
        key_id = holder.key_id if holder is not None and known else ""
        write_reader(folder.shards / READER_FILE, server.start, key_id)
    folder.write_classes(class_names)
    sync_files(folder.shards)  # a later round could not be resumed without the shards


def _check_key_ring(config: Config) -> None:
    """Checks that the key ring of an interrupted run still exists."""
    if policies.lacks_key_ring(config):
        raise UserError(
            f"key ring {Path(config.encryption.key_file).absolute()}: this file does not exist; a "
            "run can continue only with the secret with which it began; name the key ring with "
            "this secret: --set encryption.key_file=FILE"
        )


def _key_of_shards(config: Config) -> str | Mapping[str, str]:
    """Returns the id of the secret that encrypts the run's shards, or "" without shards."""
    place = Path(config.out or "")
    return shards_of(place, storage_keys(config)).key if holds_shards(place) else ""


def _write_folder(
    experiment: Experiment, images: OwnedImages, holder: KeyHolder, *, again: bool
) -> tuple[RunFolder, StorageKeys | None]:
    """Makes the run folder with the encrypted shards.

    Returns:
        A pair: the run folder, and the keys that open the files of the shards.
    """
    config, watch = experiment.config, experiment.watch
    storage = prepare_storage(config)
    folder = (
        RunFolder.reopen(Path(config.out or "")) if again else RunFolder.create(experiment.written)
    )
    folder.write(DATA, f"{images.summary}\n")
    if images.names:
        folder.write_clients(images.names)
    try:
        told = take_or_write_shards(
            config, images, holder, folder=folder, storage=storage, announce=watch.announce
        )
    except UserError:  # an image cannot be read; in this case a new run leaves no folder
        if not again:
            folder.discard()
        raise
    if told:
        watch.note(told)
    plot_images(images, folder)
    keys = None if storage is None else StorageKeys(roots={storage.name: storage.root})
    draw_examples(config, folder, holder, keys or NO_KEYS, images.class_names)
    return folder, keys


def _alone(config: Config, backbone: Backbone) -> tuple[str, ...]:
    """Returns a sentence for the user if the clients of a worker cannot be trained in one batch.

    The result is empty if each round has only one participant, or if the user has set a cohort of
    one client.
    """
    single = 1 in (cohort_size(config.clients, config.fraction), config.engine.cohort)
    reason = "" if single else why_alone(backbone.model, config.training)
    return (f"each worker trains its clients one by one, because {reason}",) if reason else ()


def note_on_size(config: Config, backbone: Backbone) -> tuple[str, ...]:
    """Returns a sentence for the user if no image size is set and the model's size is large."""
    if config.model.image_size is not None or backbone.patches <= USUAL_PATCHES:
        return ()
    height, width = backbone.image_shape[1:]
    return (
        f"{config.model.name} reads images of {height}x{width} pixels, which are "
        f"{backbone.patches:,} patches; with smaller images a run is faster, for example "
        f"--set model.image_size={16 * backbone.patch_size}",
    )


def prepare_server(
    experiment: Experiment,
    device: str,
    class_names: tuple[str, ...],
    key: str | Mapping[str, str],
) -> tuple[KeyHolder | None, Server, dict[str, object]]:
    """Makes the server's model, and opens the key ring.

    Args:
        experiment: The experiment.
        device: The device of the model.
        class_names: The names of the classes, in the order of the head's outputs.
        key: The id of the secret to use, or of each party's secret. If this id is empty, the
            current secret is used.

    Returns:
        The object that has the key of the images, or None if only the owners have a key; the
        server's model; and the description of the encryption.
    """
    config, watch = experiment.config, experiment.watch
    adapter = client_half(experiment.strategy).adapter
    library = fact_of(Path(config.out), PRODUCTS) if config.out else ""  # of a resumed run
    backbone = prepare_model(config, class_names, device, adapter, library=library)
    if library and library != products.used():
        watch.note(f"warning: the run began with {library}, and {products.VARIABLE} changes this")
    for note in (*backbone.notes, *note_on_size(config, backbone), *_alone(config, backbone)):
        watch.note(note)
    if config.data.shards is not None and config.encryption.steps:
        if not keys_at_hand(config, key):
            watch.note(
                f"the key ring {config.encryption.key_file} lacks keys of the images, so the "
                "accuracy under a wrong key and on plain images is not measured"
            )
            told = describe_encryption(config, cipher_of(config, backbone), key)
            return None, make_server(backbone, lambda origin: origin), told
    elif policies.lacks_key_ring(config) and not key:
        watch.note(
            "a new key ring with a new secret was created: "
            f"{Path(config.encryption.key_file).absolute()}"
        )
    holder = prepare_holder(config, backbone, key)
    server = make_server(backbone, lambda origin: coordinates.server_reader(config, origin, holder))
    used = key if isinstance(key, Mapping) else holder.key_id
    return holder, server, describe_encryption(config, holder.cipher, used)

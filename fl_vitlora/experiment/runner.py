"""One experiment from beginning to end: prepare, encrypt, train federatedly, write the result."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from fl_vitlora.adaptation import coordinates, policies
from fl_vitlora.checkpoints.logbook import Checkpoint, Logbook, lacks_checkpoints
from fl_vitlora.config import Config
from fl_vitlora.encryption.holder import KeyHolder
from fl_vitlora.encryption.storage_keys import StorageKeys
from fl_vitlora.errors import UserError
from fl_vitlora.experiment import validation
from fl_vitlora.experiment.gpu_sharing import workers_in_memory
from fl_vitlora.experiment.preparation import (
    describe_encryption,
    holds_shards,
    prepare_holder,
    prepare_images,
    prepare_model,
    prepare_storage,
    shards_of,
    storage_keys,
    write_shards,
)
from fl_vitlora.experiment.recorded_updates import recorders, what_is_recorded
from fl_vitlora.experiment.server_model import Server, make_server
from fl_vitlora.experiment.server_run import Run
from fl_vitlora.experiment.watching import Line, Watch
from fl_vitlora.federation.loop import PausedError as PausedError  # noqa: PLC0414
from fl_vitlora.federation.observer import Observer
from fl_vitlora.flower.client.app import make_client_app
from fl_vitlora.flower.client.workspace import ClientSettings
from fl_vitlora.flower.server.client_states import ClientStates
from fl_vitlora.flower.simulation.engine import Engine, simulate
from fl_vitlora.flower.simulation.quiet import silence as silence  # noqa: PLC0414 - for the command line
from fl_vitlora.flower.simulation.workers import choose_workers
from fl_vitlora.flower.strategies import identity
from fl_vitlora.flower.strategies.aggregators import AnyStrategy, client_half
from fl_vitlora.models.reading import READER_FILE, write_reader
from fl_vitlora.population.sampling import cohort_size, trained_together
from fl_vitlora.reporting.run_folder import DATA, RunFolder
from fl_vitlora.storage.files import sync_files
from fl_vitlora.strategy import Strategy


def run(
    config: Config,
    strategy: AnyStrategy,
    watch: Watch | None = None,
    started: float | None = None,
    engine: Engine | None = None,
    *,
    resume: bool = False,
    observers: Sequence[Observer] = (),
) -> tuple[Line, Path]:
    """Runs an experiment and writes its run folder.

    Args:
        config: The experiment. Where it names another strategy than the instance, or other
            parameters, the run folder names the instance.
        strategy: An instance of this project's or of Flower's contract.
        watch: The callbacks of whoever started the run.
        started: `time.perf_counter()` when the program began, so that imports are counted.
        engine: Keeps Ray up for the next run; without one, Ray ends with this run.
        resume: True if the run was begun in the folder `out`, and goes on there.
        observers: They are shown what the server sees of each round (`federation.observer`).

    Returns:
        The content of `result.json`, and the run folder.

    Raises:
        UserError: When something in the configuration or in the images cannot work, and no new run
            folder is left; or when the strategy's own code fails in a round.
        RuntimeError: When the run failed.
        PausedError: When the watch told it to pause.
    """
    watch, started = watch or Watch(), started or time.perf_counter()
    if not watch.verbose:
        silence()
    config = identity.told(config, strategy)
    asked = config
    config = validation.check(
        asked,
        strategy,
        new_folder=not resume,
        writes_checkpoints=config.checkpoint_every > 0,
        needs_passphrase=True,
    )
    cohort = cohort_size(config.clients, config.fraction)
    together = trained_together(config)
    workers = choose_workers(
        config.engine.device,
        config.engine.workers,
        most=math.ceil(cohort / together),
        address=config.engine.ray_address or "",
    )
    own = Engine(verbose=watch.verbose)
    ray = (engine or own).start(workers)  # comes up beside the preparations
    stage: Stage | None = None
    try:
        stage = _find(config, strategy, watch, workers.device) if resume else None
        if stage is None:
            stage = _prepare(asked, config, strategy, watch, workers.device, again=resume)
        shards = stage.folder.shards
        workers = workers_in_memory(workers, config, stage.server.backbone, shards, ray)
        if told := what_is_recorded(config, stage.server.initial):
            watch.note(told)
        watch.announce("starting workers")
        ray.wait()
        states = ClientStates(stage.checkpoint.clients if stage.checkpoint else {})
        federation = Run(
            config=config,
            strategy=strategy,
            server=stage.server,
            class_names=stage.class_names,
            shards=stage.folder.shards,
            storage=stage.storage,
            folder=stage.folder,
            watch=watch,
            logbook=stage.logbook,
            states=states,
            checkpoint=stage.checkpoint,
            holder=stage.holder,
            observers=[*observers, *recorders(config, stage.folder.path)],
            repeats_errors=False,  # its workers repeat what raised before the server hears of it
        )
        settings = client_settings(
            config,
            stage.folder.shards,
            stage.class_names,
            workers.device,
            client_half(strategy),
            with_key=policies.clients_need_key(config),
            storage=stage.storage,
        )
        outcome = simulate(
            make_client_app(Fixed(settings)),
            federation.serve,
            clients=config.clients,
            together=together,
            patience=config.engine.client_timeout,
            states=states,
            workers=workers,
            ray=ray,
            verbose=watch.verbose,
        )
        own.stop()
        result = federation.result() | {"encryption": describe_encryption(config, stage.holder)}
        federation.write(outcome, result, started)
    finally:
        own.stop()
        if stage is not None:
            stage.folder.release()
    return result, stage.folder.path


@dataclass(frozen=True, kw_only=True)
class Stage:
    """All that must be there before the first round, or the next.

    Attributes:
        folder: The run folder, with the shards in it.
        logbook: The logbook of the run.
        class_names: The names of the classes, in the order of the head's outputs.
        storage: Opens the shards where they are sealed at rest, and nothing else.
        holder: The holder of the key.
        server: Its model.
        checkpoint: The checkpoint that the run goes on from, if it has begun.
    """

    folder: RunFolder
    logbook: Logbook
    class_names: tuple[str, ...]
    storage: StorageKeys | None = field(repr=False)
    holder: KeyHolder
    server: Server
    checkpoint: Checkpoint | None = None


def _prepare(
    asked: Config,
    config: Config,
    strategy: AnyStrategy,
    watch: Watch,
    device: str,
    *,
    again: bool,
) -> Stage:
    """Prepares everything from the images on, and writes the run folder.

    Args:
        asked: The experiment as it was asked for; it is written down.
        config: The experiment as the strategy wants it.
        strategy: The strategy of the run.
        watch: The callbacks of whoever started the run.
        device: The device of the server's model.
        again: True if the folder is there, of a run that was broken off before its first
            checkpoint: with shards under the key that they are under, it is the same run.
    """
    if again and policies.lacks_key_ring(config):
        raise UserError(
            f"key ring {Path(config.encryption.key_file).absolute()}: no such file; a run goes on "
            "with the secret that it was begun with: --set encryption.key_file=FILE"
        )
    watch.announce("preparing images and model")
    images = prepare_images(config)
    watch.note(images.told)
    place = Path(asked.out or "")
    key = shards_of(place, storage_keys(config)).key if again and holds_shards(place) else ""
    holder, server = _prepare_server(
        config, strategy, watch, device, class_names=images.class_names, key=key
    )
    storage = prepare_storage(config)
    folder = RunFolder.reopen(place) if again else RunFolder.create(asked)
    folder.write(DATA, f"{images.told}\n")
    watch.announce("encrypting shards" if holder.cipher.steps else "writing plain shards")
    try:
        write_shards(config, images, holder, folder, storage)
    except UserError:  # an image that cannot be read: what could not begin leaves nothing
        if not again:
            folder.discard()
        raise
    if policies.reader_is_stored(config):
        betrays = policies.start_is_adapted(config)
        name = holder.key_id if betrays else ""
        write_reader(folder.shards / READER_FILE, server.start, name)
    folder.write_classes(images.class_names)
    sync_files(folder.shards)  # before there are rounds that can only go on with them
    return Stage(
        folder=folder,
        logbook=Logbook.begin(folder.path),
        class_names=images.class_names,
        storage=None if storage is None else StorageKeys(roots={storage.name: storage.root}),
        holder=holder,
        server=server,
    )


def _find(config: Config, strategy: AnyStrategy, watch: Watch, device: str) -> Stage | None:
    """Finds everything as a run that was broken off has left it; nothing before its first round."""
    folder = RunFolder.reopen(Path(str(config.out)))
    found = Logbook.take_up(folder.path)
    if found is None and lacks_checkpoints(folder.path, config.checkpoint_every):
        raise UserError(
            f"{folder.path} has rounds and no checkpoint to go on from; begin a new run: "
            "--out FOLDER"
        )
    if found is None:
        folder.release()
        return None
    watch.announce("preparing the model")
    folder.forget_failures(after=found[1].round)
    keys = storage_keys(config)
    shards = shards_of(folder.path, keys)
    holder, server = _prepare_server(
        config, strategy, watch, device, class_names=shards.class_names, key=shards.key
    )
    logbook, checkpoint = found
    return Stage(
        folder=folder,
        logbook=logbook,
        class_names=shards.class_names,
        storage=None if config.encryption.at_rest == "none" else keys.only(shards.sealed),
        holder=holder,
        server=server,
        checkpoint=checkpoint,
    )


def _prepare_server(
    config: Config,
    strategy: AnyStrategy,
    watch: Watch,
    device: str,
    *,
    class_names: tuple[str, ...],
    key: str,
) -> tuple[KeyHolder, Server]:
    """Makes the server's model, and opens the key ring.

    Args:
        config: The experiment.
        strategy: The strategy of the run.
        watch: The callbacks of whoever started the run.
        device: The device of the model.
        class_names: The names of the classes that the head tells apart.
        key: Id of the secret; without it, the current one is taken.
    """
    adapter = client_half(strategy).adapter
    backbone = prepare_model(config, len(class_names), device, adapter)
    for note in backbone.notes:
        watch.note(note)
    if policies.lacks_key_ring(config) and not key:
        place = Path(config.encryption.key_file).absolute()
        watch.note(f"new key ring with a new secret: {place}")
    holder = prepare_holder(config, backbone, key)
    return holder, make_server(
        backbone, lambda origin: coordinates.server_reader(config, origin, holder)
    )


def client_settings(
    config: Config,
    shards: Path,
    class_names: tuple[str, ...],
    device: str,
    strategy: Strategy,
    *,
    with_key: bool,
    storage: StorageKeys | None = None,
) -> ClientSettings:
    """Gathers what the workers are told; where the key ring lies only if they must know.

    The storage keys open the files of shards, and no image in them. They are handed over in memory,
    not as a path: on the disk they would lie beside what they protect.
    """
    ring = str(Path(config.encryption.key_file).resolve()) if with_key else ""
    return ClientSettings(
        shards=str(shards.resolve()),
        class_names=class_names,
        device=device,
        strategy=strategy,
        storage=storage,
        config=replace(config, encryption=replace(config.encryption, key_file=ring)),
    )


@dataclass(frozen=True)
class Fixed:
    """Gives every simulated client the same settings."""

    settings: ClientSettings

    def __call__(self, context: object) -> ClientSettings:
        """Returns them, whoever asks."""
        return self.settings

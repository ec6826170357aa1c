"""Runs one experiment: checks, prepares, trains with Ray, and writes the result."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from fl_vitlora.adaptation import policies
from fl_vitlora.config import Config
from fl_vitlora.data.given import Given
from fl_vitlora.data.given_shards import GivenShards
from fl_vitlora.encryption.identities import Identities, open_or_create_identities
from fl_vitlora.errors import UserError
from fl_vitlora.experiment import elsewhere, validation
from fl_vitlora.experiment.client_settings import SameForAll, client_settings
from fl_vitlora.experiment.finished_run import Outcome
from fl_vitlora.experiment.gpu_sharing import workers_in_memory
from fl_vitlora.experiment.head_start import with_head_start
from fl_vitlora.experiment.recorded_updates import recorders, what_is_recorded
from fl_vitlora.experiment.server_run import Run
from fl_vitlora.experiment.stage import Experiment, Stage, find_or_prepare_stage
from fl_vitlora.experiment.watching import Line, Watch
from fl_vitlora.federation.loop import PausedError as PausedError  # noqa: PLC0414
from fl_vitlora.federation.observer import Observer
from fl_vitlora.finetuning import products
from fl_vitlora.flower.client.app import make_client_app
from fl_vitlora.flower.server.client_states import ClientStates
from fl_vitlora.flower.simulation.engine import Engine, simulate
from fl_vitlora.flower.simulation.quiet import silence as silence  # noqa: PLC0414 - for the command line
from fl_vitlora.flower.simulation.ray_cluster import Ray
from fl_vitlora.flower.simulation.workers import Workers, choose_workers
from fl_vitlora.flower.strategies import identity
from fl_vitlora.flower.strategies.aggregators import AnyStrategy, client_half
from fl_vitlora.population.sampling import cohort_size, trained_together
from fl_vitlora.reporting.run_folder import PRODUCTS


def run(
    config: Config,
    strategy: AnyStrategy,
    watch: Watch | None = None,
    started: float | None = None,
    engine: Engine | None = None,
    *,
    resume: bool = False,
    observers: Sequence[Observer] = (),
    given: Given | None = None,
    typed: Collection[str] | None = None,
) -> tuple[Line, Path]:
    """Runs an experiment and writes its run folder.

    Args:
        config: The configuration of the experiment. If `config` names another strategy than the
            argument `strategy`, the run uses the argument, and the run folder names the argument.
        strategy: The strategy of the run, from this project or from Flower.
        watch: The callbacks of the program that starts the run.
        started: The value of `time.perf_counter()` when the program began, before its imports.
        engine: The object that keeps Ray running for the next run; None to end Ray with this run.
        resume: True to resume an interrupted run in the folder `out`.
        observers: Objects whose method `observe` gets what the server sees in each round.
        given: The images that the program hands in; None without such images.
        typed: The paths of the settings that the user has set; see `elsewhere.fitted`.

    Returns:
        A pair: the content of `result.json`, and the path of the run folder.

    Raises:
        UserError: If no run is possible with the configuration or the images (a new run then leaves
            no folder behind), or if the code of the strategy or of an observer fails in a round.
        RuntimeError: If the run failed.
        PausedError: If the caller has set `watch.pause`; the run ends after the current round.
    """
    watch, started = watch or Watch(), started or time.perf_counter()
    _silence(watch)
    experiment = _checked(config, strategy, watch, given, resume=resume, typed=typed)
    own = Engine(verbose=watch.verbose)
    ray = (engine or own).start(_workers_for(experiment.config))  # starts during the preparation
    stage: Stage | None = None
    try:
        stage = find_or_prepare_stage(experiment, ray.workers.device, resume=resume)
        server, outcome = _serve(experiment, stage, ray, observers)
        own.stop()
        return _write(server, outcome, stage.encryption, started), stage.folder.path
    finally:
        own.stop()
        if stage is not None:
            stage.folder.release()


def _silence(watch: Watch) -> None:
    """Silences Flower and Ray, unless the caller wants to see their messages."""
    if not watch.verbose:
        silence()


def check_settings(
    config: Config,
    strategy: AnyStrategy,
    watch: Watch,
    *,
    resume: bool = False,
    typed: Collection[str] | None = None,
) -> tuple[Config, Config, GivenShards | None]:
    """Checks the configuration and the strategy before any file is written or Ray starts.

    Shards that were made elsewhere are checked, too, and the configuration is fitted to them.

    Args:
        config: The configuration of the experiment.
        strategy: The strategy of the run.
        watch: The callbacks of the program that checks the experiment.
        resume: True if an interrupted run in the folder `out` is resumed.
        typed: The paths of the settings that the user has set; see `elsewhere.fitted`.

    Returns:
        The configuration as the run folder stores it, the configuration that the run uses, and the
        shards that were made elsewhere; None if the run makes its shards.

    Raises:
        UserError: If the experiment cannot run.
    """
    shards = None
    if config.data.shards is not None and not resume:
        watch.announce("checking the shards")
        config, shards = elsewhere.fitted(config, typed, watch.note)
    drafted = validation.draft_of(config.model)
    written = with_head_start(identity.told(config, strategy), strategy, drafted)
    config = validation.check(
        written,
        strategy,
        drafted=drafted,
        new_folder=not resume,
        writes_checkpoints=written.checkpoint_every > 0,
        needs_passphrase=True,
    )
    if shards is not None:
        elsewhere.check_evaluated(config, shards)
    return written, config, shards


def _checked(
    config: Config,
    strategy: AnyStrategy,
    watch: Watch,
    given: Given | None = None,
    *,
    resume: bool,
    typed: Collection[str] | None = None,
) -> Experiment:
    """Checks an experiment, and opens the identity keys of its clients."""
    written, config, shards = check_settings(config, strategy, watch, resume=resume, typed=typed)
    return Experiment(
        written=written,
        config=config,
        strategy=strategy,
        watch=watch,
        given=given,
        identities=_identities(config, watch),
        shards=shards,
    )


def _identities(config: Config, watch: Watch) -> Identities | None:
    """Opens the identity keys of the simulated clients, or makes them; None if none are needed."""
    if not config.privacy.client_keys:
        return None
    pins = Path(config.privacy.client_keys)
    if not pins.exists():
        watch.note(f"new identity keys of all clients were created: {pins.absolute()}")
    return open_or_create_identities(pins, config.clients)


def _workers_for(config: Config) -> Workers:
    """Chooses the device and the number of workers; a worker may train several clients at once."""
    cohort = cohort_size(config.clients, config.fraction)
    return choose_workers(
        config.engine.device,
        config.engine.workers,
        most=math.ceil(cohort / trained_together(config)),
        address=config.engine.ray_address or "",
    )


def _serve(
    experiment: Experiment,
    stage: Stage,
    ray: Ray,
    observers: Sequence[Observer],
) -> tuple[Run, Outcome]:
    """Runs all rounds with Ray.

    Args:
        experiment: The experiment.
        stage: The files and objects that the next round needs.
        ray: The Ray cluster, which may still be starting. The number of workers that the run uses
            is limited by the memory of the device.
        observers: The observers that the caller has given.

    Returns:
        A pair: the server's side of the run, and the result of the server loop.

    Raises:
        UserError: If a checkpoint cannot be resumed with the installed version of Flower.
    """
    config, watch = experiment.config, experiment.watch
    shards = stage.folder.shards
    workers = workers_in_memory(ray.workers, config, stage.server.backbone, shards, ray)
    if recorded := what_is_recorded(config, stage.server.initial):
        watch.note(recorded)
    _check_delivery(stage, watch)
    watch.announce("starting workers")
    ray.wait()
    stage.folder.add_environment(workers=workers.count, device=workers.device)
    stage.folder.add_environment(**{PRODUCTS: products.used()})
    states = ClientStates(stage.checkpoint.clients if stage.checkpoint else {})
    patches = stage.server.backbone.patches if workers.device == "cpu" else 0
    server = _server_side(experiment, stage, states, observers)
    outcome = simulate(
        make_client_app(_settings(experiment, stage, workers.device)),
        server.serve,
        clients=config.clients,
        together=trained_together(config, patches),
        patience=config.engine.client_timeout,
        states=states,
        workers=workers,
        ray=ray,
        verbose=watch.verbose,
    )
    return server, outcome


def _check_delivery(stage: Stage, watch: Watch) -> None:
    """Warns the user if the installed version of Flower does not allow checkpoints.

    Raises:
        UserError: If the run would continue from a checkpoint: its states of clients would be lost.
    """
    from fl_vitlora.flower.simulation.delivery import why_not_followed

    why = why_not_followed()
    if why and stage.checkpoint is not None:
        raise UserError(
            f"{stage.folder.path}: {why}; install the version of Flower with which the run began"
        )
    if why:
        watch.note(f"warning: {why}")


def _server_side(
    experiment: Experiment, stage: Stage, states: ClientStates, observers: Sequence[Observer]
) -> Run:
    """Returns the object that runs the server's side of all rounds."""
    config = experiment.config
    return Run(
        config=config,
        strategy=experiment.strategy,
        server=stage.server,
        class_names=stage.class_names,
        shards=stage.folder.shards,
        storage=stage.storage,
        folder=stage.folder,
        watch=experiment.watch,
        logbook=stage.logbook,
        states=states,
        checkpoint=stage.checkpoint,
        holder=stage.holder,
        encrypted_with=str(stage.encryption["key_id"] or stage.encryption.get("key_ids") or "none"),
        content=stage.content,
        observers=[*observers, *recorders(config, stage.folder.path)],
        repeats_errors=False,  # the engine has already repeated a failed call
    )


def _write(server: Run, outcome: Outcome, encryption: dict[str, object], started: float) -> Line:
    """Writes the files of a run that has ended, and returns the content of `result.json`."""
    result = server.result() | {"encryption": encryption}
    server.write(outcome, result, started)
    return result


def _settings(experiment: Experiment, stage: Stage, device: str) -> SameForAll:
    """Returns the settings of the simulated clients."""
    config = experiment.config
    return SameForAll(
        client_settings(
            config,
            stage.folder.shards,
            stage.class_names,
            device,
            client_half(experiment.strategy),
            with_key=stage.holder is not None and policies.clients_need_key(config),
            storage=stage.storage,
            identities=experiment.identities,
            library=products.used(),
        )
    )

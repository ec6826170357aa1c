"""One experiment from beginning to end: prepare, encrypt, train federatedly, write the result."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from fl_vitlora import coordinates, policies
from fl_vitlora.config import Config
from fl_vitlora.flower.aggregators import AnyStrategy, check_experiment, client_half
from fl_vitlora.flower.client_app import make_client_app
from fl_vitlora.flower.confidentiality import check_privacy
from fl_vitlora.flower.gpu_sharing import workers_in_memory
from fl_vitlora.flower.quiet import silence as silence  # noqa: PLC0414 - for the command line
from fl_vitlora.flower.sampling import cohort_size, trained_together
from fl_vitlora.flower.simulation import Engine, choose_workers, simulate
from fl_vitlora.flower.wiring import check_codecs
from fl_vitlora.flower.workspace import ClientSettings
from fl_vitlora.models.reading import READER_FILE, write_reader
from fl_vitlora.preparation import (
    describe_encryption,
    prepare_holder,
    prepare_images,
    prepare_model,
    write_shards,
)
from fl_vitlora.reporting.run_folder import RunFolder, check_unused
from fl_vitlora.serving import Line, Run, Watch, make_server
from fl_vitlora.strategy import Strategy


def run(
    config: Config,
    strategy: AnyStrategy,
    watch: Watch | None = None,
    started: float | None = None,
    engine: Engine | None = None,
) -> tuple[Line, Path]:
    """Runs an experiment and writes its run folder.

    Args:
        config: The experiment.
        strategy: An instance of this project's or of Flower's contract.
        watch: Who looks on.
        started: `time.perf_counter()` when the program began, so that imports are counted.
        engine: Keeps Ray up for the next run; without one, Ray ends with this run.

    Returns:
        The content of `result.json`, and the run folder.

    Raises:
        UserError: When something in the configuration cannot work, before a run folder is made;
            or when the strategy's own code fails in a round.
        RuntimeError: When the run failed.
    """
    watch, started = watch or Watch(), started or time.perf_counter()
    if not watch.verbose:
        silence()
    policies.check(config)
    asked, config = config, policies.for_strategy(config, client_half(strategy))
    cohort = cohort_size(config.clients, config.fraction)
    check_experiment(strategy, config)
    check_privacy(config, strategy)
    check_codecs(config, client_half(strategy))
    together = trained_together(config)
    workers = choose_workers(
        config.engine.device,
        config.engine.workers,
        most=math.ceil(cohort / together),
        address=config.engine.ray_address or "",
    )
    if config.out:
        check_unused(Path(config.out))
    own = Engine(verbose=watch.verbose)
    ray = (engine or own).start(workers)  # comes up beside the preparations
    try:
        watch.announce("preparing images and model")
        images = prepare_images(config)
        sandwich = client_half(strategy).adapter == "sandwich"
        backbone = prepare_model(config, images.classes, workers.device, sandwich=sandwich)
        if policies.lacks_key_ring(config):
            watch.announce(f"drawing a new secret: {config.encryption.key_file}")
        holder = prepare_holder(config, backbone)
        server = make_server(
            backbone, lambda origin: coordinates.server_reader(config, origin, holder)
        )
        shards = [len(part) for part in images.parts]
        workers = workers_in_memory(workers, config, backbone, shards, ray)
        folder = RunFolder.create(asked)
        watch.announce("encrypting shards" if holder.cipher.steps else "writing plain shards")
        write_shards(config, images, holder, folder)
        if policies.reader_is_stored(config):
            betrays = policies.start_is_adapted(config)
            name = holder.key_id if betrays else ""
            write_reader(folder.shards / READER_FILE, server.start, name)
        watch.announce("starting workers")
        ray.wait()
        federation = Run(
            config=config,
            strategy=strategy,
            server=server,
            shards=folder.shards,
            folder=folder,
            watch=watch,
            holder=holder,
        )
        settings = client_settings(
            config,
            folder.shards,
            images.classes,
            workers.device,
            client_half(strategy),
            with_key=policies.clients_need_key(config),
        )
        outcome = simulate(
            make_client_app(Fixed(settings)),
            federation.serve,
            clients=config.clients,
            together=together,
            workers=workers,
            ray=ray,
            verbose=watch.verbose,
        )
    finally:
        own.stop()
    result = federation.result() | {"encryption": describe_encryption(config, holder)}
    federation.write(outcome, result, started)
    return result, folder.path


def client_settings(
    config: Config,
    shards: Path,
    classes: int,
    device: str,
    strategy: Strategy,
    *,
    with_key: bool,
) -> ClientSettings:
    """Gathers what the workers are told; where the key ring lies only if they must know."""
    ring = str(Path(config.encryption.key_file).resolve()) if with_key else ""
    return ClientSettings(
        shards=str(shards.resolve()),
        classes=classes,
        device=device,
        strategy=strategy,
        config=replace(config, encryption=replace(config.encryption, key_file=ring)),
    )


@dataclass(frozen=True)
class Fixed:
    """Gives every simulated client the same settings."""

    settings: ClientSettings

    def __call__(self, context: object) -> ClientSettings:
        """Returns them, whoever asks."""
        return self.settings

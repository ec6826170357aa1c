"""One experiment from beginning to end: prepare, encrypt, train federatedly, write the result."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from fl_vitlora import training
from fl_vitlora.communication.ledger import Ledger, full_fine_tuning_bytes
from fl_vitlora.communication.packing import Layout
from fl_vitlora.config import Config
from fl_vitlora.data.shards import TEST_SHARD, open_shard
from fl_vitlora.finetuning import methods
from fl_vitlora.flower.aggregators import AnyStrategy, check_cohort, make_aggregator
from fl_vitlora.flower.client_app import ClientSettings, make_client_app
from fl_vitlora.flower.messages import full_model_bytes
from fl_vitlora.flower.quiet import silence as silence  # noqa: PLC0414 - for the command line
from fl_vitlora.flower.server import Federation, RoundReport, cohort_size
from fl_vitlora.flower.simulation import Engine, choose_workers, simulate
from fl_vitlora.flower.transport import Tap, Transport
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import READER_FILE, write_reader
from fl_vitlora.preparation import (
    adapt_model,
    prepare_images,
    prepare_key,
    prepare_model,
    write_shards,
)
from fl_vitlora.reporting.plots import plot_accuracy
from fl_vitlora.reporting.run_folder import RunFolder, check_unused
from fl_vitlora.state import State, count

Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who looks on.

    Attributes:
        announce: Is told each phase of the set-up.
        show_round: Is shown each line of `rounds.jsonl`.
        tap: Is shown every Flower message, for inspection.
        verbose: Whether Flower and Ray may speak.
    """

    announce: Callable[[str], None] = lambda phase: None
    show_round: Callable[[Line], None] = lambda line: None
    tap: Tap | None = None
    verbose: bool = False


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
    cohort = cohort_size(config.clients, config.fraction)
    check_cohort(strategy, cohort)
    workers = choose_workers(config.engine.device, config.engine.workers, most=cohort)
    if config.out:
        check_unused(Path(config.out))
    watch.announce("preparing images and model")
    images = prepare_images(config)
    own = Engine(verbose=watch.verbose)
    ray = (engine or own).start(workers)  # comes up while the model is built
    try:
        backbone = prepare_model(config, images.classes, workers.device)
        key = prepare_key(config, backbone)
        reader = adapt_model(config, backbone, key)
        folder = RunFolder.create(config)
        watch.announce("encrypting shards" if key.cipher.steps else "writing plain shards")
        write_shards(config, images, key, folder)
        if reader is not None:
            write_reader(folder.shards / READER_FILE, reader)
        watch.announce("starting workers")
        ray.wait()
        federation = Run(
            config=config, backbone=backbone, shards=folder.shards, folder=folder, watch=watch
        )
        settings = client_settings(config, folder.shards, images.classes, workers.device)
        outcome = simulate(
            make_client_app(Fixed(settings)),
            lambda grid, stop: federation.serve(grid, strategy, stop),
            clients=config.clients,
            ray=ray,
            verbose=watch.verbose,
        )
    finally:
        own.stop()
    result = federation.result() | {
        "encryption": {**key.describe(), "adapted": config.encryption.adapt}
    }
    federation.write(outcome, result, started)
    return result, folder.path


def client_settings(config: Config, shards: Path, classes: int, device: str) -> ClientSettings:
    """Gathers what the workers are told."""
    return ClientSettings(
        shards=str(shards.resolve()),
        classes=classes,
        seed=config.seed,
        device=device,
        mixed_precision=config.engine.mixed_precision,
        adapted=config.encryption.adapt,
        model=config.model,
        finetuning=config.finetuning,
        training=config.training,
    )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the server loop ends with.

    Attributes:
        model: The final tensors.
        begin: `time.perf_counter()` before the first round.
        end: The same after the last.
    """

    model: State
    begin: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """The server's side of a run under way: what it is, and what it has gathered so far.

    It needs no key and no plain image: it evaluates on the encrypted test shard.

    Attributes:
        config: The experiment.
        backbone: With what the method adds, on the server's device.
        shards: Where the encrypted test shard lies.
        folder: Where results go.
        watch: Who looks on.
        ledger: Bytes so far.
        lines: Rounds so far, as in `rounds.jsonl`.
        full_bytes: Of a downlink and an uplink message with the whole model, once measured.
    """

    config: Config
    backbone: Backbone
    shards: Path
    folder: RunFolder
    watch: Watch
    ledger: Ledger = field(default_factory=Ledger)
    lines: list[Line] = field(default_factory=list)
    full_bytes: dict[str, int] = field(default_factory=dict)

    def serve(
        self, grid: Any, strategy: AnyStrategy, stop: threading.Event | None = None
    ) -> Outcome:
        """Trains over Flower's grid, be it simulated or deployed, until done or told to stop."""
        initial = methods.export_state(self.backbone.model)
        layout = Layout.of(initial)
        transport = Transport(
            grid,
            layout,
            self.ledger,
            timeout=self.config.engine.round_timeout,
            tap=self.watch.tap,
            stop=stop,
        )
        clients = transport.greet(self.config.clients)
        begin = time.perf_counter()
        federation = Federation(
            transport=transport,
            aggregator=make_aggregator(strategy, layout, self.config.seed),
            clients=list(clients),
            rounds=self.config.rounds,
            fraction=self.config.fraction,
            seed=self.config.seed,
            training=self.config.training,
            evaluate=self._evaluator(),
            observe=self._observe,
        )
        final = federation.run(initial)
        end = time.perf_counter()
        down, up = full_model_bytes(methods.plain_parameters(self.backbone.model))
        self.full_bytes.update(downlink=down, uplink=up)
        return Outcome(model=final, begin=begin, end=end)

    def result(self) -> Line:
        """Sums up, without the times."""
        config, ledger = self.config, self.ledger
        uplink, downlink = ledger.total("uplink"), ledger.total("downlink")
        full = full_fine_tuning_bytes(
            ledger,
            full_downlink=self.full_bytes["downlink"],
            full_uplink=self.full_bytes["uplink"],
            rounds=[line["round"] for line in self.lines],
        )
        return {
            "accuracy": self.lines[-1]["accuracy"],
            "loss": self.lines[-1]["loss"],
            "clients": config.clients,
            "rounds": config.rounds,
            "seed": config.seed,
            "strategy": config.strategy.name,
            "method": config.finetuning.method,
            "trainable_parameters": count(methods.trainable(self.backbone.model)),
            "total_parameters": count(methods.plain_parameters(self.backbone.model)),
            "communication": {
                "uplink_bytes": uplink,
                "downlink_bytes": downlink,
                "full_fine_tuning_bytes": full,
                "saving": full / (uplink + downlink),
            },
        }

    def write(self, outcome: Outcome, result: Line, started: float) -> None:
        """Writes what is known only at the end; `result.json` last, as the sign of a whole run."""
        sent = accumulate(line["uplink_bytes"] + line["downlink_bytes"] for line in self.lines)
        plot_accuracy(self.folder.plots, [line["accuracy"] for line in self.lines], list(sent))
        self.folder.write("communication.csv", self.ledger.to_csv())
        self.folder.write_model(outcome.model)
        result["seconds"] = {
            "setup": round(outcome.begin - started, 3),
            "training": round(outcome.end - outcome.begin, 3),
            "total": round(time.perf_counter() - started, 3),
        }
        self.folder.write_json("result.json", result)

    def _observe(self, report: RoundReport) -> None:
        line: Line = {
            "round": report.round,
            "accuracy": report.accuracy,
            "loss": report.loss,
            "train_loss": report.train_loss,
            "participants": list(report.participants),
            "failures": [{"client": f.client, "reason": f.reason} for f in report.failures],
            "uplink_bytes": self.ledger.total("uplink", report.round),
            "downlink_bytes": self.ledger.total("downlink", report.round),
            "seconds": round(report.seconds, 4),
        }
        self.lines.append(line)
        self.folder.append_round(line)
        self.watch.show_round(line)

    def _evaluator(self) -> Callable[[State], tuple[float, float]]:
        """Measures global models on the encrypted test images; needs no key."""
        shard = open_shard(self.shards / TEST_SHARD)
        device = next(self.backbone.model.parameters()).device
        precision = training.best_precision(device, self.config.engine.mixed_precision)
        return lambda state: training.evaluate(self.backbone, state, shard, precision)


@dataclass(frozen=True)
class Fixed:
    """Gives every simulated client the same settings."""

    settings: ClientSettings

    def __call__(self, context: object) -> ClientSettings:
        """Returns them, whoever asks."""
        return self.settings

"""The server's side of a run: all rounds, from the first message to the last evaluation.

The code is the same in a simulation and in a deployment. The server needs no plain images. The
server needs the key only to measure the accuracy on images under a wrong key and on plain images.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fl_vitlora.adaptation import policies
from fl_vitlora.checkpoints.logbook import Checkpoint, Logbook
from fl_vitlora.communication.packing import Layout
from fl_vitlora.config import Config
from fl_vitlora.encryption.holder import KeyHolder
from fl_vitlora.encryption.identities import open_pins
from fl_vitlora.encryption.storage_keys import StorageKeys
from fl_vitlora.experiment.checkpointing import Checkpointing
from fl_vitlora.experiment.finished_run import Outcome, write_files
from fl_vitlora.experiment.measuring import (
    Measuring,
    class_shares_of,
    clients_hold_keys,
    measured_by_clients,
    measured_by_server,
)
from fl_vitlora.experiment.observing import show
from fl_vitlora.experiment.provenance import Provenance
from fl_vitlora.experiment.record import Record
from fl_vitlora.experiment.releasing import Release
from fl_vitlora.experiment.result import method_for, result_of
from fl_vitlora.experiment.server_model import Server
from fl_vitlora.experiment.watching import Line, Watch
from fl_vitlora.federation.aggregation_gap import aggregation_gap, places_of
from fl_vitlora.federation.aggregator import Aggregator
from fl_vitlora.federation.evaluation import Evaluator
from fl_vitlora.federation.failures import Failure
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.hooks import RoundHooks, RoundReport
from fl_vitlora.federation.loop import Federation
from fl_vitlora.federation.observer import Observer, Sight
from fl_vitlora.federation.server_method import check_method_fits
from fl_vitlora.federation.training_round import TrainingRound
from fl_vitlora.flower.server.client_states import ClientStates
from fl_vitlora.flower.server.posting import Post
from fl_vitlora.flower.server.secure_sums import SecureAggregator
from fl_vitlora.flower.server.transport import Transport
from fl_vitlora.flower.strategies import identity
from fl_vitlora.flower.strategies.aggregators import AnyStrategy, client_half, make_aggregator
from fl_vitlora.flower.strategies.guard_settings import check_steps
from fl_vitlora.flower.wire.byte_counts import reference_sizes
from fl_vitlora.reporting.run_folder import RunFolder
from fl_vitlora.state import State
from fl_vitlora.strategy import Update


@dataclass(kw_only=True)
class Run:
    """The server's side of one run.

    Attributes:
        config: The configuration of the experiment.
        strategy: The strategy of the run, from this project or from Flower.
        server: The server's model.
        class_names: The names of the classes, in the order of the head's outputs; clients must have
            the same classes.
        shards: The folder with the encrypted shards for testing and validation. This folder is not
            used if clients measure the accuracy.
        folder: The run folder.
        watch: The callbacks of the program that started the run.
        logbook: The object that writes rounds and checkpoints into the run folder.
        record: The record of the rounds, the sent bytes and the accuracy so far.
        states: The stored states of the simulated clients. In a deployment `states` is None,
            because each node keeps its own state and the server writes no checkpoints.
        checkpoint: The checkpoint from which the run continues; None for a new run.
        holder: The key holder for the evaluation; None if the server evaluates without a key.
        encrypted_with: The id of the secret that encrypts the images, or of each party's secret.
        content: A digest of the content of shards that were made elsewhere; "" for other shards.
        storage: The keys that open the files of the shards; None if the shards are not sealed.
        observers: Objects whose method `observe` gets the data that the server sees in each round.
        secret_seed: The secret seed of the strategy's random choices and of the noise in a
            deployment. The seed of the run is not used, because clients know the seed of the run
            and could subtract the noise. In a simulation, `secret_seed` is None.
        repeats_errors: True if the server asks a client once more in the same round after its app
            has raised an error. In a simulation `repeats_errors` is False, because the engine has
            already repeated the call.
        parameters: The parameters of the strategy before the first round.
    """

    config: Config
    strategy: AnyStrategy
    server: Server
    class_names: tuple[str, ...]
    shards: Path
    folder: RunFolder
    watch: Watch
    logbook: Logbook
    states: ClientStates | None = None
    checkpoint: Checkpoint | None = None
    holder: KeyHolder | None = None
    encrypted_with: str = "none"
    content: str = ""
    storage: StorageKeys | None = field(default=None, repr=False)
    observers: Sequence[Observer] = ()
    secret_seed: int | None = field(default=None, repr=False)
    repeats_errors: bool = True
    record: Record = field(init=False)
    parameters: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        """Stores the parameters of the strategy, because rounds may change the parameters."""
        self.record = Record(self.config, self.class_names, self.folder, self.logbook, self.watch)
        self.parameters = identity.parameters(self.strategy)

    def serve(self, grid: Any, stop: threading.Event | None = None) -> Outcome:
        """Runs all rounds; messages are sent with Flower's grid.

        Args:
            grid: Flower's object for sending messages to clients.
            stop: An event that another thread sets to end the run at once.

        Returns:
            The result of the server loop.
        """
        personal = client_half(self.strategy).personal
        initial = policies.exchanged(self.config, self.server.initial, personal)
        transport = self._transport(grid, initial, stop)
        aggregator = self._aggregator(initial)
        evaluator = self._evaluator(transport, aggregator)
        self.record.shares.extend(class_shares_of(evaluator, self.server))
        clients = transport.greet(self.config.clients)
        check_steps(self.config, clients)
        self.record.greeted(clients)
        keeping = self._checkpointing(transport, aggregator)
        model, done = GlobalModel(tensors=initial), 0
        if self.checkpoint is not None and keeping is not None:
            model, done = keeping.take_up(self.checkpoint), self.checkpoint.round
        measuring = Measuring(evaluator=evaluator, config=self.config, record=self.record)
        release = Release(config=self.config, secret_seed=self.secret_seed)
        hooks = _Rounds(self, measuring, release, keeping)
        begin = time.perf_counter()
        self.watch.training.set()
        federation = self._federation(transport, aggregator, list(clients), hooks)
        final = federation.run(model, done, self.record.last)
        measuring.finish(final, self.folder.read_best)
        end = time.perf_counter()
        self.record.sizes = reference_sizes(self.server.whole, self.class_names)
        self.record.privacy = release.statement(aggregator.privacy(), len(self.record.lines))
        return Outcome(model=final, begin=begin, end=end)

    def _transport(self, grid: Any, initial: State, stop: threading.Event | None) -> Transport:
        privacy, sums = self.config.privacy, None
        if privacy.secure_aggregation:
            equal = privacy.clipping_norm is not None
            pins = open_pins(Path(privacy.client_keys)) if privacy.client_keys else None
            sums = SecureAggregator(
                limit=privacy.range, equal=equal, pins=pins, most=self.config.max_client_share
            )
        post = Post(
            grid=grid,
            ledger=self.record.ledger,
            timeout=self.config.engine.round_timeout,
            states=self.states or ClientStates(),
            tap=self.watch.tap,
            stop=stop or threading.Event(),
        )
        return Transport(
            post,
            initial,
            config=self.config,
            class_names=self.class_names,
            sums=sums,
            repeats_errors=self.repeats_errors,
        )

    def _aggregator(self, initial: State) -> Aggregator:
        seed = self.config.seed if self.secret_seed is None else self.secret_seed
        return make_aggregator(self.strategy, Layout.of(initial), seed)

    def _evaluator(self, transport: Transport, aggregator: Aggregator) -> Evaluator:
        if policies.clients_evaluate(self.config):
            keyed = clients_hold_keys(self.config, self.holder)
            return measured_by_clients(transport, aggregator, self.record, keyed=keyed)
        return measured_by_server(
            self.config,
            self.server,
            holder=self.holder,
            shards=self.shards,
            class_names=self.class_names,
            storage=self.storage,
            show=self.record.details.note_decisions,
        )

    def _checkpointing(self, transport: Transport, aggregator: Aggregator) -> Checkpointing | None:
        """Returns the object that stores checkpoints; None in a deployment."""
        if self.states is None:
            return None
        return Checkpointing(
            config=self.config,
            place=self.folder.path,
            provenance=_provenance_of(self),
            states=self.states,
            transport=transport,
            aggregator=aggregator,
            record=self.record,
            logbook=self.logbook,
            watch=self.watch,
        )

    def _federation(
        self, transport: Transport, aggregator: Aggregator, clients: list[int], hooks: RoundHooks
    ) -> Federation:
        method = method_for(self.config, self.strategy)
        check_method_fits(method, aggregator)
        training = TrainingRound(
            transport=transport,
            aggregator=aggregator,
            method=method,
            clients=clients,
            rounds=self.config.rounds,
            fraction=self.config.fraction,
            quorum=self.config.min_clients,
            seed=self.config.seed,
            training=self.config.training,
            hooks=hooks,
        )
        return Federation(training)

    def result(self) -> Line:
        """Returns the content of `result.json`, without the times."""
        return result_of(
            self.config,
            self.strategy,
            parameters=self.parameters,
            server=self.server,
            class_names=self.class_names,
            record=self.record,
        )

    def write(self, outcome: Outcome, result: Line, started: float) -> None:
        """Writes the files of the run after its end; see `finished_run.write_files`.

        Args:
            outcome: The result of the server loop.
            result: The content of `result.json`; this method adds the times.
            started: The value of `time.perf_counter()` when the program began.
        """
        write_files(
            self.folder,
            self.record,
            outcome,
            class_names=self.class_names,
            result=result,
            started=started,
        )
        self.logbook.close()


def _provenance_of(run: Run) -> Provenance:
    """Returns the conditions on which a run's numbers depend, apart from its configuration."""
    return Provenance.of(
        weights=run.server.plain,
        class_names=run.class_names,
        device=next(run.server.backbone.model.parameters()).device.type,
        key=run.encrypted_with,
        content=run.content,
        strategy=run.strategy,
        name=identity.describe(run.strategy),
        start=run.server.backbone.source if run.config.model.init_from else "",
    )


class _Rounds(RoundHooks):
    """The callbacks of the server loop; each callback calls the object that does the work."""

    def __init__(
        self, run: Run, measuring: Measuring, release: Release, keeping: Checkpointing | None
    ) -> None:
        self._run, self._measuring = run, measuring
        self._release, self._keeping = release, keeping
        self._places = places_of(run.server.backbone.model)
        self.beside = measuring.beside
        self.may_give_up = run.config.evaluation.patience is not None or run.watch.may_stop

    def evaluate(self, server_round: int, model: GlobalModel) -> tuple[float, float] | None:
        return self._measuring.evaluate(server_round, model)

    def report(self, report: RoundReport, model: GlobalModel) -> None:
        self._run.record.report(report, model)

    def pauses(self) -> bool:
        return self._run.watch.pause.is_set()

    def affords(self, server_round: int) -> bool:
        last = self._measuring.needs_last_messages
        return self._run.record.affords(server_round, evaluation=last)

    def gives_up(self, server_round: int) -> bool:
        return self._run.watch.stop.is_set() or self._measuring.gives_up(server_round)

    def stop(self, server_round: int, reason: str) -> None:
        del server_round
        self._run.record.stopped = "caller" if self._run.watch.stop.is_set() else reason

    def note(self, failures: Sequence[Failure]) -> None:
        self._run.record.note(failures)

    def look(self, sight: Sight) -> None:
        show(self._run.observers, sight)

    def release(
        self, server_round: int, updates: Sequence[Update], cohort: int
    ) -> Sequence[Update]:
        return self._release.release(server_round, updates, cohort)

    def gap(self, before: State, updates: Sequence[Update], new: State) -> float | None:
        return aggregation_gap(self._places, before, updates, new)

    def keep(self, server_round: int, model: GlobalModel) -> Callable[[], None]:
        if self._keeping is None:
            return super().keep(server_round, model)
        return self._keeping.keep(server_round, model)

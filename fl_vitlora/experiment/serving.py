"""The server's side of a run: its model, who evaluates it, and what is gathered round by round.

It is the same in a simulation and in a deployment. It needs no plain image, and no key unless a key
holder evaluates beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from fl_vitlora.adaptation import coordinates, policies
from fl_vitlora.checkpoints.logbook import Checkpoint, Logbook
from fl_vitlora.communication.budget import affords
from fl_vitlora.communication.ledger import Ledger
from fl_vitlora.communication.link import Link, transfer_seconds
from fl_vitlora.communication.packing import Layout
from fl_vitlora.communication.reference import Attendance, MessageSizes, full_fine_tuning
from fl_vitlora.communication.summary import reached, summarise
from fl_vitlora.config import Config, PrivacyConfig
from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.data.shards import TEST_SHARD, open_own_shard
from fl_vitlora.encryption.holder import TEST, KeyHolder
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.encryption.storage_keys import StorageKeys
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.provenance import Provenance, changes
from fl_vitlora.federation.evaluation import (
    ALL_VIEWS,
    Answer,
    CentralEvaluator,
    ClientsEvaluator,
    Evaluator,
    Measured,
)
from fl_vitlora.federation.failures import Failure
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.learning import class_shares, warning
from fl_vitlora.federation.loop import Federation, RoundReport
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.classifier import outputs_of
from fl_vitlora.finetuning.method import Method
from fl_vitlora.flower.server.client_states import ClientStates, to_tree
from fl_vitlora.flower.server.secure_sums import SecureAggregator
from fl_vitlora.flower.server.transport import Tap, Transport
from fl_vitlora.flower.strategies import identity
from fl_vitlora.flower.strategies.accounting import statement, with_chosen_noise
from fl_vitlora.flower.strategies.aggregators import (
    Aggregator,
    AnyStrategy,
    client_half,
    make_aggregator,
)
from fl_vitlora.flower.strategies.method_aggregator import joined, with_method
from fl_vitlora.flower.wire.byte_counts import reference_sizes
from fl_vitlora.flower.wire.reported_counts import largest_share
from fl_vitlora.flower.wire.wiring import lanes_of
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import WEIGHT, put_reader, reader_of
from fl_vitlora.population import byzantine, faults
from fl_vitlora.population.ranks import client_ranks
from fl_vitlora.privacy.noise import (
    FROM_SEED,
    FROM_SYSTEM,
    mean_update,
    released,
    repeatable_key,
    secret_key,
)
from fl_vitlora.reporting.plots import plot_accuracy, plot_traffic
from fl_vitlora.reporting.run_folder import RESULT, RunFolder
from fl_vitlora.state import State, count
from fl_vitlora.strategy import Update
from fl_vitlora.training import local

Line = dict[str, Any]
MOST_OF_ALL, FEWEST_COMPARED = 0.5, 3  # share of all images that is told, among so many clients


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who looks on.

    Attributes:
        announce: Is told each phase of the set-up.
        note: Is told, in a sentence, what a user should know and may not expect.
        show_round: Is shown each line of `rounds.jsonl`.
        training: Is set when the first round begins.
        pause: Is set by whoever wants the run to end after the round that is under way.
        tap: Is shown every Flower message, for inspection.
        verbose: Whether Flower and Ray may speak.
    """

    announce: Callable[[str], None] = lambda phase: None
    note: Callable[[str], None] = lambda sentence: None
    show_round: Callable[[Line], None] = lambda line: None
    training: threading.Event = field(default_factory=threading.Event)
    pause: threading.Event = field(default_factory=threading.Event)
    tap: Tap | None = None
    verbose: bool = False


@dataclass(frozen=True, kw_only=True)
class Server:
    """The server's model, and what is known of it before the first round.

    Attributes:
        backbone: With what the method adds, on the server's device.
        origin: What the public model reads with.
        start: What the server's model reads with at first.
        initial: All trained tensors, as the server has them at first.
    """

    backbone: Backbone
    origin: PatchReader
    start: PatchReader
    initial: State

    @property
    def plain(self) -> State:
        """Returns the parameters of the plain model, the public patch embedding among them."""
        return {**methods.plain_parameters(self.backbone.model), WEIGHT: self.origin.weight}

    @property
    def whole(self) -> State:
        """Returns what full fine-tuning would exchange: the model as it was built.

        What a method adds to the model is not in it, whatever its tensors are called.
        """
        built = {name: tensor.detach().cpu() for name, tensor in self.backbone.built.items()}
        return {**built, WEIGHT: self.origin.weight}


def make_server(backbone: Backbone, start: Callable[[PatchReader], PatchReader]) -> Server:
    """Lets the server's model read as it shall at first.

    Args:
        backbone: A prepared, public model; what it reads with is changed in place.
        start: Makes the server's reader of the public one.

    Returns:
        The server's side.
    """
    origin = reader_of(backbone)
    reader = start(origin)
    put_reader(backbone.model, reader)
    return Server(
        backbone=backbone,
        origin=origin,
        start=reader,
        initial=methods.export_state(backbone.model),
    )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the server loop ends with.

    Attributes:
        model: The final one.
        begin: `time.perf_counter()` before the first round.
        end: The same after the last.
    """

    model: GlobalModel
    begin: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Run:
    """The server's side of a run under way: what it is, and what it has gathered so far.

    Attributes:
        config: The experiment.
        strategy: An instance of this project's or of Flower's contract.
        server: Its model.
        class_names: In the order of the head's outputs; what clients must have.
        shards: Where the encrypted test shard lies, if clients do not evaluate.
        storage: Opens that shard where it is sealed at rest.
        folder: Where results go.
        watch: Who looks on.
        logbook: Where rounds are written down, and states to go on from.
        states: What simulated clients remember; a deployment has them at its nodes, and writes no
            checkpoints.
        checkpoint: From which the run goes on.
        holder: Of the key, where key holders evaluate beside the server; a simulation has it.
        ledger: Bytes so far.
        lines: Rounds so far, as in `rounds.jsonl`.
        measured: The last measurements, by view of the test images.
        evaluated: What a strategy of Flower made of the clients' last measurements.
        full_bytes: Sizes of the messages of full fine-tuning, once measured (`MessageSizes`).
        shares: Of the classes in the test images, once they are known.
        privacy: What the strategy's accountant says at the end, if it has one.
        images: That each client greeted with.
        changes: What was another than before when the run went on, and after which round.
        secret_seed: Of what the strategy draws, if that is not to follow from the run's seed:
            whoever knows what noise was added can take it off again.
        repeats_errors: Whether a client whose app raised is asked once more in the same round; not
            in a simulation, whose engine has tried twice before the server hears of it.
        parameters: Of the strategy, as it was handed over.
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
    storage: StorageKeys | None = field(default=None, repr=False)
    ledger: Ledger = field(default_factory=Ledger)
    lines: list[Line] = field(default_factory=list)
    measured: Measured = field(default_factory=dict)
    evaluated: Line = field(default_factory=dict)
    full_bytes: dict[str, int] = field(default_factory=dict)
    shares: list[float] = field(default_factory=list)
    privacy: dict[str, Any] = field(default_factory=dict)
    images: dict[int, int] = field(default_factory=dict)
    changes: list[Line] = field(default_factory=list)
    secret_seed: int | None = field(default=None, repr=False)
    repeats_errors: bool = True
    parameters: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        """Reads the strategy's parameters before its first round, in which it may change them."""
        object.__setattr__(self, "parameters", identity.parameters(self.strategy))

    @property
    def _method(self) -> Method:
        """Returns the fine-tuning method as the strategy asks for it."""
        return methods.method_of(self.config.finetuning, client_half(self.strategy).adapter)

    @property
    def trained(self) -> State:
        """Returns the tensors that clients train in any round."""
        half, rounds = client_half(self.strategy), range(1, self.config.rounds + 1)
        plans = {joined(half.plan(n).frozen, self._method.rests(n)) for n in rounds}
        return {
            name: tensor
            for name, tensor in self.server.initial.items()
            if not all(name.endswith(frozen) for frozen in plans)
        }

    def serve(self, grid: Any, stop: threading.Event | None = None) -> Outcome:
        """Trains over Flower's grid, be it simulated or deployed, until done or told to stop."""
        privacy = self.config.privacy
        sums = self._sums() if privacy.secure_aggregation else None
        personal = client_half(self.strategy).personal
        initial = policies.exchanged(self.config, self.server.initial, personal)
        transport = Transport(
            grid,
            initial,
            self.ledger,
            config=self.config,
            class_names=self.class_names,
            sums=sums,
            timeout=self.config.engine.round_timeout,
            repeats_errors=self.repeats_errors,
            states=self.states,
            tap=self.watch.tap,
            stop=stop,
        )
        seed = self.config.seed if self.secret_seed is None else self.secret_seed
        aggregator = with_method(
            make_aggregator(self.strategy, Layout.of(initial), seed), self._method
        )
        evaluator = self._evaluator(transport, aggregator)
        labels = evaluator.shard.labels if isinstance(evaluator, CentralEvaluator) else None
        self.shares.extend(class_shares(labels, outputs_of(self.server.backbone.model)))
        clients = transport.greet(self.config.clients)
        self.images.update(clients)
        self._warn_of_one()
        found = self._circumstances() if self.states is not None else None
        model, done = GlobalModel(tensors=initial), 0
        if self.checkpoint is not None and found is not None:
            model, done = self._take_up(self.checkpoint, found, transport, aggregator)
        begin = time.perf_counter()
        federation = Federation(
            transport=transport,
            aggregator=aggregator,
            clients=list(clients),
            rounds=self.config.rounds,
            fraction=self.config.fraction,
            quorum=self.config.min_clients,
            seed=self.config.seed,
            training=self.config.training,
            evaluate=lambda number, model: self._measure(evaluator, number, model),
            note=self._keep_traces,
            observe=self._observe,
            release=self._release,
            affords=self._affords,
            keep=lambda number, model: self._keep(number, model, found, transport, aggregator),
            pauses=self.watch.pause.is_set,
            beside=isinstance(evaluator, CentralEvaluator),
        )
        self.watch.training.set()
        final = federation.run(model, done)
        self._measure_other_views(evaluator, final)
        end = time.perf_counter()
        self.full_bytes.update(vars(reference_sizes(self.server.whole, self.class_names)))
        if told := aggregator.privacy() or statement(self._noise, len(self.lines)):
            source = FROM_SEED if self.secret_seed is None else FROM_SYSTEM
            self.privacy.update(told | {"noise_from": source})
        return Outcome(model=final, begin=begin, end=end)

    def _warn_of_one(self) -> None:
        """Tells if one of several clients says that it holds most of all images."""
        client, share = largest_share(self.images)
        if share > MOST_OF_ALL and len(self.images) >= FEWEST_COMPARED:
            self.watch.announce(
                f"client {client} reports {share:.0%} of all images and weighs as much; "
                "max_client_share bounds that"
            )

    def _keep(
        self,
        server_round: int,
        model: GlobalModel,
        found: Provenance | None,
        transport: Transport,
        aggregator: Aggregator,
    ) -> Callable[[], None]:
        """Takes hold of all that the run goes on from, and returns what writes it down."""
        every, states, last = self.config.checkpoint_every, self.states, self.config.rounds
        due = every and (server_round % every == 0 or server_round == last)
        if states is None or found is None or not states.followed:
            return lambda: None
        if not due and not self.watch.pause.is_set():
            return lambda: None
        clients, messages = states.now(), list(self.ledger)
        server = {
            "circumstances": dataclasses.asdict(found),
            "changes": list(self.changes),
            "model": model.snapshot(),
            "strategy": aggregator.snapshot(),
            "transport": transport.snapshot(),
        }

        def write() -> None:
            measured = {"measured": self.measured}
            self.logbook.write(server_round, server | measured, messages, clients, to_tree)

        return write

    def _take_up(
        self,
        checkpoint: Checkpoint,
        found: Provenance,
        transport: Transport,
        aggregator: Aggregator,
    ) -> tuple[GlobalModel, int]:
        """Takes up a checkpoint; the greeting is counted as it was the first time."""
        server = checkpoint.server
        before = Provenance(**server["circumstances"])
        known = {"strategy": found.must_stay["strategy"], **before.must_stay}  # older: not written
        for what, (was, now) in changes(known, found.must_stay).items():
            raise UserError(
                f"{self.folder.path} was begun with {what} {was}, and goes on with that only; "
                f"now it is {now}"
            )
        self.changes.extend(server["changes"])
        if changed := changes(before.may_change, found.may_change):
            self.changes.append({"after_round": checkpoint.round, "changed": changed})
            self.watch.announce(f"goes on with another {', '.join(changed)} than before")
        transport.restore(server["transport"])
        aggregator.restore(*server["strategy"])
        self.ledger.replace(checkpoint.ledger)
        for line in checkpoint.lines:
            self.lines.append(line)
            self.watch.show_round(line)
        self.measured.update(
            {v: (accuracy, loss) for v, (accuracy, loss) in server["measured"].items()}
        )
        return GlobalModel.restored(server["model"]), checkpoint.round

    def _circumstances(self) -> Provenance:
        """Gathers what the bits depend on beside the configuration, before any training."""
        holder = self.holder
        return Provenance.of(
            weights=self.server.plain,
            class_names=self.class_names,
            device=next(self.server.backbone.model.parameters()).device.type,
            key=holder.key_id if holder is not None and holder.cipher.steps else "none",
            strategy=self.strategy,
            name=identity.describe(self.strategy),
        )

    def result(self) -> Line:
        """Sums up, without the times."""
        config = self.config
        personal = client_half(self.strategy).personal
        return {
            "accuracy": self.lines[-1]["accuracy"],
            "loss": self.lines[-1]["loss"],
            "best": best(self.lines),
            "clients": config.clients,
            "class_names": list(self.class_names),
            "rounds": len(self.lines),
            "rounds_planned": config.rounds,
            "stopped": "budget" if len(self.lines) < config.rounds else None,
            "target": reached(
                config.target_accuracy,
                [line["accuracy"] for line in self.lines],
                self.ledger,
                self._link,
            ),
            "seed": config.seed,
            "strategy": config.strategy.name,
            "strategy_class": identity.class_path(self.strategy),
            "strategy_parameters": self.parameters,
            "method": config.finetuning.method,
            "aggregation_error": mean_known([line["aggregation_error"] for line in self.lines]),
            "failures": counted(self.lines),
            "changes": self.changes,
            "warnings": self.warnings,
            "model": {"name": config.model.name, "weights": self.server.backbone.source},
            "attack": byzantine.hostile(config),
            "faults": faults.unreliable(config),
            "client_ranks": list(client_ranks(config)),
            "largest_share": dict(
                zip(("client", "share"), largest_share(self.images), strict=True)
            ),
            "secure_aggregation": self._told_of_sums(),
            "accuracy_by_view": {view: accuracy for view, (accuracy, _) in self.measured.items()},
            "trainable_parameters": count(self.trained),
            "exchanged_parameters": count(policies.exchanged(config, self.trained, personal)),
            "total_parameters": count(self.server.whole),
            "idle_rounds": sum(not line["moved"] for line in self.lines),
            "privacy": self.privacy or None,
            "communication": summarise(self.ledger, self._link, self._full_fine_tuning()),
        }

    def _full_fine_tuning(self) -> Ledger:
        """Writes what full fine-tuning under FedAvg would have sent in the rounds so far."""
        return full_fine_tuning(
            self.config.clients,
            [Attendance.of(line) for line in self.lines],
            MessageSizes(**self.full_bytes),
            start_is_known=not lanes_of(self.config.compression.downlink).exact,
        )

    @property
    def warnings(self) -> list[str]:
        """Returns what the rounds so far warn of."""
        return [told for line in self.lines for told in line.get("warnings", [])]

    @property
    def _link(self) -> Link:
        told = self.config.link
        return Link(
            uplink=told.uplink_mbps, downlink=told.downlink_mbps, latency=told.latency_ms / 1000
        )

    def _transfer(self, server_round: int) -> float:
        """Tells how long the messages of a round would travel."""
        passed = (entry for entry in self.ledger if entry.round == server_round)
        return transfer_seconds(passed, self._link)[server_round]

    def _affords(self, server_round: int) -> bool:
        """Tells whether the budget allows another round."""
        budget = self.config.budget
        allowed = affords(budget, self.ledger, server_round)
        if not allowed and server_round == 1:
            raise UserError(
                f"budget {budget}: the greeting alone took {self.ledger.total()} bytes, so that no "
                "round can begin; give more"
            )
        return allowed

    def write(self, outcome: Outcome, result: Line, started: float) -> None:
        """Writes what is known only at the end; `result.json` last, as the sign of a whole run."""
        lines = self.lines
        plot_accuracy(
            self.folder.plots,
            [line["accuracy"] for line in lines],
            list(accumulate(line["uplink_bytes"] + line["downlink_bytes"] for line in lines)),
            list(accumulate(line["transfer_seconds"] for line in lines)),
        )
        plot_traffic(self.folder.plots, lines)
        self.folder.write("communication.csv", self.ledger.to_csv())
        self.folder.write_model(outcome.model.stored(), class_names=self.class_names)
        result["seconds"] = {
            "setup": round(outcome.begin - started, 3),
            "training": round(outcome.end - outcome.begin, 3),
            "total": round(time.perf_counter() - started, 3),
        }
        self.folder.write_json(RESULT, result)
        self.logbook.close()

    def _sums(self) -> SecureAggregator:
        privacy = self.config.privacy
        return SecureAggregator(limit=privacy.range, equal=privacy.clipping_norm is not None)

    def _observe(self, report: RoundReport, model: GlobalModel) -> None:
        line: Line = {
            "round": report.round,
            "accuracy": report.accuracy,
            "loss": report.loss,
            "train_loss": report.train_loss,
            "participants": list(report.participants),
            "failures": [{"client": f.client, "reason": f.reason} for f in report.failures],
            "taken_apart": list(report.taken_apart),
            "moved": report.moved,
            "uplink_bytes": self.ledger.total("uplink", report.round),
            "downlink_bytes": self.ledger.total("downlink", report.round),
            "payload_by_group": self.ledger.by_group(report.round),
            "transfer_seconds": round(self._transfer(report.round), 4),
            "aggregation_error": report.aggregation_error,
            "seconds": round(report.seconds, 4),
        }
        if report.clipped is not None:
            line["clipped_scalars"] = report.clipped
        if told := warning([*self.lines, line], self.config, self.shares):
            line["warnings"] = [told]
        if report.metrics:
            line["strategy_metrics"] = dict(report.metrics)
        if self.evaluated:
            line["strategy_evaluation"] = dict(self.evaluated)
        if all(report.accuracy > earlier["accuracy"] for earlier in self.lines):
            self.folder.write_model(
                model.stored(), "best_model.safetensors", class_names=self.class_names
            )
        self.lines.append(line)
        self.logbook.note_round(line)
        self.watch.show_round(line)

    def _keep_traces(self, failures: Sequence[Failure]) -> None:
        """Writes down what was told of the failures of a round."""
        for failed in failures:
            self.folder.write_failure(failed.round, failed.client, failed.trace)

    def _told_of_sums(self) -> Line | None:
        """Says whether the server saw only sums, and how many scalars were clipped in them."""
        if not self.config.privacy.secure_aggregation:
            return None
        clipped = sum(line["clipped_scalars"] for line in self.lines)
        return {"range": self.config.privacy.range, "clipped_scalars": clipped}

    @functools.cached_property
    def _noise(self) -> PrivacyConfig:
        """Returns the settings of privacy with the noise that a target of ε asks for."""
        return with_chosen_noise(self.config.privacy, self.config.rounds)

    def _release(
        self, server_round: int, updates: Sequence[Update], cohort: int
    ) -> Sequence[Update]:
        """Gives the strategy the updates of a round, or where they are private their noisy mean."""
        privacy = self._noise
        if privacy.clipping_norm is None:
            return updates
        key = repeatable_key(self.config.seed) if self.secret_seed is None else secret_key
        noisy = released(
            mean_update(updates, [1.0] * len(updates)),
            cohort=cohort,
            clipping_norm=privacy.clipping_norm,
            noise_multiplier=privacy.noise_multiplier,
            key=key(server_round),
        )
        return [noisy]

    def _measure(
        self, evaluator: Evaluator, server_round: int, model: GlobalModel
    ) -> tuple[float, float]:
        """Measures a round's model; the last one also as seen without the right key."""
        last = server_round == self.config.rounds
        views = evaluator.views if last else (RIGHT_KEY,)
        self.measured.update(evaluator.measure(server_round, model, views))
        return self.measured[RIGHT_KEY]

    def _measure_other_views(self, evaluator: Evaluator, model: GlobalModel) -> None:
        """Measures what a run that ended early has not: its last model without the right key.

        Where clients evaluate, this would take messages after the budget; it is left out then.
        """
        missing = tuple(view for view in evaluator.views if view not in self.measured)
        if missing and isinstance(evaluator, CentralEvaluator):
            self.measured.update(evaluator.measure(len(self.lines), model, missing))

    def _evaluator(self, transport: Transport, aggregator: Aggregator) -> Evaluator:
        config, backbone = self.config, self.server.backbone
        if policies.clients_evaluate(config):
            keyed = self.holder is not None and config.encryption.steps
            views = ALL_VIEWS if keyed else (RIGHT_KEY,)

            def show(server_round: int, model: GlobalModel, answers: Sequence[Answer]) -> None:
                self.evaluated.clear()
                self.evaluated.update(aggregator.evaluated(server_round, model, answers))

            return ClientsEvaluator(transport=transport, views=views, show=show)
        device = next(backbone.model.parameters()).device
        return CentralEvaluator(
            backbone=backbone,
            shard=open_own_shard(self.shards / TEST_SHARD, self.class_names, self.storage),
            coordinates=coordinates.of_party(
                config,
                origin=self.server.origin,
                start=self.server.start,
                initial=self.server.initial,
                holder=self.holder,
                party=TEST,
            ),
            holder=self.holder,
            precision=local.best_precision(device, config.engine.mixed_precision),
        )


def best(lines: Sequence[Line]) -> Line:
    """Finds the first round of the highest accuracy.

    Example:
        >>> best([{"round": 1, "accuracy": 0.5}, {"round": 2, "accuracy": 0.5}])
        {'round': 1, 'accuracy': 0.5}
    """
    line = max(lines, key=lambda line: line["accuracy"])
    return {"round": line["round"], "accuracy": line["accuracy"]}


def mean_known(values: Sequence[float | None]) -> float | None:
    """Takes the mean of those values that are there, if any is.

    Example:
        >>> mean_known([1.0, None, 2.0]), mean_known([None])
        (1.5, None)
    """
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def counted(lines: Sequence[Line]) -> Line:
    """Counts failures, in all and by client, with the reason of each client's first.

    Args:
        lines: Of `rounds.jsonl`.

    Example:
        >>> late = [{"client": 3, "reason": "no reply within 1 s"}]
        >>> counted([{"failures": late}, {"failures": []}, {"failures": late}])
        {'updates': 2, 'clients': {'3': 2}, 'reasons': {'3': 'no reply within 1 s'}}
    """
    failures = [failed for line in lines for failed in line["failures"]]
    times = sorted(Counter(failed["client"] for failed in failures).items())
    reasons = {failed["client"]: failed["reason"] for failed in reversed(failures)}
    return {
        "updates": len(failures),
        "clients": {str(client): count for client, count in times},
        "reasons": {str(client): reasons[client] for client, _ in times},
    }

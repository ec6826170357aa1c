"""Two kinds of strategies behind one interface: this project's, and Flower's, unmodified.

The server loop asks an aggregator what to send to the participants of a round and hands it their
updates. `flower_aggregator` drives Flower's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fl_vitlora.adaptation import policies
from fl_vitlora.communication.packing import Layout
from fl_vitlora.config import Config
from fl_vitlora.errors import UserError, blame, unknown
from fl_vitlora.federation.evaluation import Answer
from fl_vitlora.federation.failures import Failure
from fl_vitlora.federation.global_model import GlobalModel, split
from fl_vitlora.federation.instruction import ConfigValue, Instruction
from fl_vitlora.flower.strategies import strategy_state
from fl_vitlora.flower.strategies.flower_aggregator import (
    FlowerAggregator,
    Metrics,
    asks_for_evaluation,
    own_evaluation,
)
from fl_vitlora.lowrank import MERGED_A, MERGED_B, A, B
from fl_vitlora.population.sampling import cohort_size
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy, Update

AnyStrategy = Strategy | FlowerStrategy
LoadStrategy = Callable[[Config], AnyStrategy]  # of an experiment


class Aggregator(Protocol):
    """What the server loop needs of a strategy."""

    def instruct(
        self,
        server_round: int,
        model: GlobalModel,
        clients: Sequence[int],
        config: Mapping[str, ConfigValue],
    ) -> list[Instruction]:
        """Says what the participants of a round are sent."""
        ...

    def aggregate(
        self,
        server_round: int,
        model: GlobalModel,
        updates: Sequence[Update],
        failures: Sequence[Failure],
    ) -> GlobalModel:
        """Makes the next global model of at least one update."""
        ...

    def metrics(self) -> Metrics:
        """Returns what the strategy itself says of the training of the last round."""
        ...

    def evaluated(
        self, server_round: int, model: GlobalModel, answers: Sequence[Answer]
    ) -> Metrics:
        """Returns what the strategy itself says of what the clients measured."""
        ...

    def privacy(self) -> dict[str, Any] | None:
        """Tells what all rounds so far gave away of one client, if the strategy counts that."""
        ...

    def snapshot(self) -> tuple[State, dict[str, Any]]:
        """Returns what is remembered from round to round: tensors, and all else as JSON has it."""
        ...

    def restore(self, tensors: State, plain: Mapping[str, Any]) -> None:
        """Takes up what a snapshot of the same strategy holds."""
        ...


def make_aggregator(strategy: AnyStrategy, layout: Layout, seed: int) -> Aggregator:
    """Wraps a strategy of either kind."""
    if isinstance(strategy, Strategy):
        return OwnAggregator(strategy)
    return FlowerAggregator(strategy, layout, seed)


class Unaided(Strategy):
    """What a strategy of Flower leaves to clients in code: nothing."""

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Is never called; the server's half is Flower's."""
        raise NotImplementedError


def client_half(strategy: AnyStrategy) -> Strategy:
    """Returns what clients run of a strategy, and what it asks of an experiment."""
    return strategy if isinstance(strategy, Strategy) else Unaided()


def check_experiment(strategy: AnyStrategy, config: Config) -> None:
    """Refuses an experiment that a strategy cannot be run in.

    Raises:
        UserError: With what the strategy has against it.
    """
    participants = cohort_size(config.clients, config.fraction)
    check_cohort(strategy, participants)
    trained = trained_clients(strategy, participants)
    if config.min_clients > trained:
        raise UserError(
            f"min_clients {config.min_clients}: only {trained} clients train in a round; take at "
            f"most {trained}, or raise --clients or --fraction"
        )
    check_evaluation(strategy, config)
    if objection := client_half(strategy).objection(config, participants):
        raise UserError(f"strategy {config.strategy.name}: {objection}")


def check_evaluation(strategy: AnyStrategy, config: Config) -> None:
    """Refuses a Flower strategy whose own evaluation would never be called.

    Raises:
        UserError: When one party measures for all, and the strategy asks clients to measure.
    """
    if isinstance(strategy, Strategy) or policies.clients_evaluate(config):
        return
    for path, layer in _layers(strategy):
        own = own_evaluation(layer)
        if own and asks_for_evaluation(strategy, cohort_size(config.clients, config.fraction)):
            raise UserError(
                f"{path}: {type(layer).__name__} has {own} of its own, which sums up what clients "
                "measure, and in this run one party measures for all; let clients measure: "
                "--set evaluation.by=clients"
            )


def check_storable(strategy: AnyStrategy) -> None:
    """Refuses a Flower strategy that keeps what no checkpoint can hold.

    Raises:
        UserError: With what that is.
    """
    if isinstance(strategy, Strategy):
        return
    for name, kind in strategy_state.unstorable(strategy).items():
        raise UserError(
            f"strategy {type(strategy).__name__}: its {name} is a {kind}, which no checkpoint can "
            "hold, so that the run could not be resumed; it runs without: --checkpoint-every 0"
        )


def check_cohort(strategy: AnyStrategy, participants: int) -> None:
    """Refuses a Flower strategy that expects other clients than take part in a round.

    Raises:
        UserError: When it would wait for more for ever, is to train what is no share of them, or
            would share its noise among others.
    """
    layers = list(_layers(strategy))
    share = getattr(layers[-1][1], "fraction_train", 1.0)
    if not 0 <= share <= 1:
        raise UserError(f"{layers[-1][0]}.fraction_train: expected a share in [0, 1], got {share}")
    trained = trained_clients(strategy, participants)
    if trained < 1:
        raise UserError(
            f"{layers[-1][0]}.fraction_train: none of {participants} participants would train"
        )
    for path, layer in layers:
        for name in ("min_available_nodes", "min_train_nodes"):
            needed = getattr(layer, name, 0)
            if needed > participants:
                raise UserError(
                    f"{path}.{name} {needed}: only {participants} clients take part in a round; "
                    "raise --clients or --fraction"
                )
        expected = getattr(layer, "num_sampled_clients", trained)
        if expected != trained:
            raise UserError(
                f"{path}.num_sampled_clients {expected}: {trained} clients train in a round, and "
                f"noise is scaled by them: --set {path}.num_sampled_clients={trained}"
            )


def trained_clients(strategy: AnyStrategy, participants: int) -> int:
    """Counts those of a round's participants that train; a strategy of Flower may choose fewer."""
    *_, (_, innermost) = _layers(strategy)
    trained = int(participants * getattr(innermost, "fraction_train", 1.0))
    return max(trained, getattr(innermost, "min_train_nodes", 0))


def _layers(strategy: object, path: str = "strategy") -> Iterator[tuple[str, object]]:
    """Yields a strategy and those within it, with their places among the settings."""
    yield path, strategy
    inner = getattr(strategy, "strategy", None)
    if inner is not None:
        yield from _layers(inner, f"{path}.strategy")


def _check_endings(endings: tuple[str, ...], where: str, model: State) -> None:
    """Refuses endings of what is not there; a typing error would freeze nothing."""
    if isinstance(endings, str):
        raise UserError(f"{where} is {endings!r}, expected a tuple: ({endings!r},)")
    for ending in endings:
        if not any(name.endswith(ending) for name in model):
            last = {f".{name.rpartition('.')[2]}" for name in model}
            raise unknown(f"ending in {where}", ending, last)


class OwnAggregator:
    """Drives a strategy of this project's contract and keeps its state."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._state: State = {}

    def instruct(
        self,
        server_round: int,
        model: GlobalModel,
        clients: Sequence[int],
        config: Mapping[str, ConfigValue],
    ) -> list[Instruction]:
        """Sends the model and the plan to every participant."""
        with blame(self._strategy, server_round):
            plan = self._strategy.plan(server_round)
            broadcast = self._strategy.broadcast(self._state)
        for rested in ("frozen", "restarted"):
            _check_endings(getattr(plan, rested), f"plan.{rested}", model.tensors)
        if broadcast:
            self._check_same("broadcast", model.tensors, broadcast)
        return [
            Instruction(client=client, model=model, config=config, plan=plan, broadcast=broadcast)
            for client in clients
        ]

    def aggregate(
        self,
        server_round: int,
        model: GlobalModel,
        updates: Sequence[Update],
        failures: Sequence[Failure],
    ) -> GlobalModel:
        """Calls the strategy."""
        del failures
        with blame(self._strategy, server_round):
            returned, self._state = self._strategy.aggregate(model.tensors, updates, self._state)
        new, merged = split(returned)
        self._check_same("returned", model.tensors, new)
        self._check_merged(model.tensors, merged)
        return model.followed_by(
            {n: new[n].to(w.dtype).contiguous() for n, w in model.tensors.items()}, merged
        )

    def _check_same(self, did: str, model: State, new: State) -> None:
        """Refuses tensors of other names or shapes than the model's."""
        shapes = [{n: tuple(w.shape) for n, w in tensors.items()} for tensors in (model, new)]
        if shapes[0] != shapes[1]:
            differing = sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})
            raise UserError(
                f"strategy {type(self._strategy).__name__} {did} other tensors than it was "
                f"given; these differ: {differing[:5]}"
            )

    def _check_merged(self, model: State, merged: State) -> None:
        """Refuses merged pairs that fit no pair of the model."""
        shapes = {name: tuple(tensor.shape) for name, tensor in merged.items()}
        for path in {name.rpartition(".")[0] for name in merged}:
            rank, inputs = shapes.get(path + MERGED_A, (0, 0))
            pair = [tuple(model[path + end].shape) for end in (A, B) if path + end in model]
            fitting = pair and [(rank, pair[0][1]), (pair[-1][0], rank)]
            if [(rank, inputs), shapes.get(path + MERGED_B)] != fitting:
                raise UserError(
                    f"strategy {type(self._strategy).__name__} merged what fits no low-rank pair: "
                    f"{path}"
                )

    def metrics(self) -> Metrics:
        """Says nothing."""
        return {}

    def evaluated(
        self, server_round: int, model: GlobalModel, answers: Sequence[Answer]
    ) -> Metrics:
        """Says nothing."""
        del server_round, model, answers
        return {}

    def privacy(self) -> None:
        """Counts nothing."""

    def snapshot(self) -> tuple[State, dict[str, Any]]:
        """Returns the strategy's state."""
        return dict(self._state), {}

    def restore(self, tensors: State, plain: Mapping[str, Any]) -> None:
        """Puts the strategy's state back."""
        del plain
        self._state = dict(tensors)

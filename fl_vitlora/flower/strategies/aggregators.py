"""One interface for strategies of this project and of Flower, and checks for these strategies.

`federation.aggregator` defines the interface and runs the strategies of this project.
`flower_aggregator` runs the strategies of Flower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fl_vitlora.adaptation import policies
from fl_vitlora.communication.packing import Layout
from fl_vitlora.config import Config
from fl_vitlora.errors import UserError
from fl_vitlora.federation.aggregator import Aggregator, OwnAggregator
from fl_vitlora.flower.strategies import strategy_state
from fl_vitlora.flower.strategies.flower_aggregator import (
    FlowerAggregator,
    asks_for_evaluation,
    own_evaluation,
)
from fl_vitlora.population.sampling import cohort_size
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy, Update

AnyStrategy = Strategy | FlowerStrategy
LoadStrategy = Callable[[Config], AnyStrategy]  # loads the strategy that a configuration names


def make_aggregator(strategy: AnyStrategy, layout: Layout, seed: int) -> Aggregator:
    """Returns the aggregator for a strategy of this project or of Flower."""
    if isinstance(strategy, Strategy):
        return OwnAggregator(strategy)
    return FlowerAggregator(strategy, layout, seed)


class Unaided(Strategy):
    """A strategy without client code, which clients run if the server runs a Flower strategy."""

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Raises an error, because `Unaided` only stands for missing client code.

        This method is never called, because `FlowerAggregator` aggregates.
        """
        raise NotImplementedError


def client_half(strategy: AnyStrategy) -> Strategy:
    """Returns the strategy that clients run; for a Flower strategy, `Unaided` (no client code)."""
    return strategy if isinstance(strategy, Strategy) else Unaided()


def check_experiment(strategy: AnyStrategy, config: Config) -> None:
    """Refuses an experiment in which a strategy cannot run.

    Raises:
        UserError: If the strategy cannot run; the message gives the reason.
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
        UserError: If one party evaluates for all clients, but the strategy has an evaluation of its
            own and asks clients to evaluate.
    """
    if isinstance(strategy, Strategy) or policies.clients_evaluate(config):
        return
    for path, layer in _layers(strategy):
        own = own_evaluation(layer)
        if own and asks_for_evaluation(strategy, cohort_size(config.clients, config.fraction)):
            raise UserError(
                f"{path}: {type(layer).__name__} has its own {own}, which combines the evaluations "
                "of clients, but in this run one party evaluates for all; let clients evaluate: "
                "--set evaluation.by=clients"
            )


def check_storable(strategy: AnyStrategy) -> None:
    """Refuses a Flower strategy with an attribute that a checkpoint cannot store.

    Raises:
        UserError: If a checkpoint cannot store an attribute; the message names this attribute.
    """
    if isinstance(strategy, Strategy):
        return
    for name, kind in strategy_state.unstorable(strategy).items():
        raise UserError(
            f"strategy {type(strategy).__name__}: its attribute {name} is a {kind}, which a "
            "checkpoint cannot store, so the run could not be resumed; run it without "
            "checkpoints: --checkpoint-every 0"
        )


def check_cohort(strategy: AnyStrategy, participants: int) -> None:
    """Refuses a Flower strategy whose numbers of clients do not fit the participants of a round.

    Raises:
        UserError: If the strategy would wait for ever for more clients; if its `fraction_train` is
            not a share in [0, 1], or lets no client train; or if the strategy scales its noise for
            a wrong number of clients.
    """
    layers = list(_layers(strategy))
    share = getattr(layers[-1][1], "fraction_train", 1.0)
    if not 0 <= share <= 1:
        raise UserError(f"{layers[-1][0]}.fraction_train: expected a share in [0, 1], got {share}")
    trained = trained_clients(strategy, participants)
    if trained < 1:
        raise UserError(
            f"{layers[-1][0]}.fraction_train: with this share, none of {participants} participants "
            "would train; take a larger share"
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
                f"noise must be scaled for this number: --set {path}.num_sampled_clients={trained}"
            )


def trained_clients(strategy: AnyStrategy, participants: int) -> int:
    """Returns how many participants of a round train; a strategy of Flower may choose fewer."""
    *_, (_, innermost) = _layers(strategy)
    trained = int(participants * getattr(innermost, "fraction_train", 1.0))
    return max(trained, getattr(innermost, "min_train_nodes", 0))


def _layers(strategy: object, path: str = "strategy") -> Iterator[tuple[str, object]]:
    """Yields a strategy and the strategies that it wraps, each with its path in the settings."""
    yield path, strategy
    inner = getattr(strategy, "strategy", None)
    if inner is not None:
        yield from _layers(inner, f"{path}.strategy")

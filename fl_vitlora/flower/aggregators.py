"""Two kinds of strategies behind one interface: this project's, and Flower's, unmodified.

The server loop asks an aggregator what to send to the participants of a round and hands it their
updates. `flower_aggregator` drives Flower's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fl_vitlora.communication.packing import Layout
from fl_vitlora.config import Config
from fl_vitlora.errors import UserError, blame, unknown
from fl_vitlora.flower import messages
from fl_vitlora.flower.flower_aggregator import FlowerAggregator
from fl_vitlora.flower.transport import ConfigValue, Failure, Instruction
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy, Update

AnyStrategy = Strategy | FlowerStrategy
LoadStrategy = Callable[[Config], AnyStrategy]  # of an experiment


class Aggregator(Protocol):
    """What the server loop needs of a strategy."""

    def instruct(
        self,
        server_round: int,
        model: State,
        clients: Sequence[int],
        config: Mapping[str, ConfigValue],
    ) -> list[Instruction]:
        """Says what the participants of a round are sent."""
        ...

    def aggregate(
        self,
        server_round: int,
        model: State,
        updates: Sequence[Update],
        failures: Sequence[Failure],
    ) -> State:
        """Makes the next global model of at least one update."""
        ...


def make_aggregator(strategy: AnyStrategy, layout: Layout, seed: int) -> Aggregator:
    """Wraps a strategy of either kind."""
    if isinstance(strategy, Strategy):
        return OwnAggregator(strategy)
    return FlowerAggregator(strategy, layout, seed)


def check_cohort(strategy: AnyStrategy, participants: int) -> None:
    """Refuses a Flower strategy that would wait forever for more clients than take part.

    Raises:
        UserError: When it asks for more.
    """
    for name in ("min_available_nodes", "min_train_nodes"):
        needed = getattr(strategy, name, 0)
        if needed > participants:
            raise UserError(
                f"strategy.{name} {needed}: only {participants} clients take part in a round; "
                "raise --clients or --fraction"
            )


def _check_frozen(endings: tuple[str, ...], model: State) -> None:
    """Refuses a plan that freezes what is not there; a typing error would freeze nothing."""
    if isinstance(endings, str):
        raise UserError(f"plan.frozen is {endings!r}, expected a tuple: ({endings!r},)")
    for ending in endings:
        if not any(name.endswith(ending) for name in model):
            last = {f".{name.rpartition('.')[2]}" for name in model}
            raise unknown("ending in plan.frozen", ending, last)


class OwnAggregator:
    """Drives a strategy of this project's contract and keeps its state."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._state: State = {}

    def instruct(
        self,
        server_round: int,
        model: State,
        clients: Sequence[int],
        config: Mapping[str, ConfigValue],
    ) -> list[Instruction]:
        """Sends the model and the plan to every participant."""
        with blame(self._strategy, server_round):
            plan = self._strategy.plan(server_round)
        _check_frozen(plan.frozen, model)
        extended = dict(config)
        if plan.proximal_mu:
            extended[messages.PROXIMAL_MU] = plan.proximal_mu
        if plan.frozen:
            extended[messages.FROZEN] = list(plan.frozen)
        return [Instruction(client=client, model=model, config=extended) for client in clients]

    def aggregate(
        self,
        server_round: int,
        model: State,
        updates: Sequence[Update],
        failures: Sequence[Failure],
    ) -> State:
        """Calls the strategy."""
        del failures
        with blame(self._strategy, server_round):
            new, self._state = self._strategy.aggregate(model, updates, self._state)
        shapes = [{n: tuple(w.shape) for n, w in tensors.items()} for tensors in (model, new)]
        if shapes[0] != shapes[1]:
            differing = sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})
            raise UserError(
                f"strategy {type(self._strategy).__name__} returned other tensors than it was "
                f"given; these differ: {differing[:5]}"
            )
        return {name: new[name].to(w.dtype) for name, w in model.items()}

"""The aggregator: the interface between the server loop and an aggregation strategy.

An aggregator chooses the participants of a round, makes the instructions for these clients, and
combines their updates into a new model. `OwnAggregator` calls a strategy of this project
(`fl_vitlora.strategy`), keeps the state of the strategy, and checks the results of its methods.
The module `flower.strategies.flower_aggregator` has the aggregator for Flower's strategies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from fl_vitlora.errors import UserError, blame, unknown
from fl_vitlora.federation.evaluation import Answer
from fl_vitlora.federation.failures import Failure
from fl_vitlora.federation.global_model import GlobalModel, split, without_zeros
from fl_vitlora.federation.hooks import Metrics
from fl_vitlora.federation.instruction import (
    LEARNING_RATE,
    LOCAL_EPOCHS,
    ConfigValue,
    Instruction,
)
from fl_vitlora.lowrank import MERGED_A, MERGED_B, A, B
from fl_vitlora.state import State
from fl_vitlora.strategy import ClientPlan, RoundContext, RoundResult, Strategy, Update
from fl_vitlora.strategy.contract import Metric
from fl_vitlora.strategy.extras import call, wants


class Aggregator(Protocol):
    """The methods of a strategy that the server loop calls."""

    def select(
        self, server_round: int, drawn: Sequence[int], clients: Sequence[int]
    ) -> Sequence[int]:
        """Returns the participants of a round; their number is the length of `drawn`.

        Args:
            server_round: The number of the round, from 1.
            drawn: The clients that the server loop drew at random; a strategy may choose others.
            clients: All clients.
        """
        ...

    def instruct(
        self,
        server_round: int,
        model: GlobalModel,
        clients: Sequence[int],
        config: Mapping[str, ConfigValue],
    ) -> list[Instruction]:
        """Returns the instructions to the participants of a round."""
        ...

    def aggregate(
        self,
        server_round: int,
        model: GlobalModel,
        updates: Sequence[Update],
        failures: Sequence[Failure],
    ) -> GlobalModel:
        """Returns the next global model for at least one update."""
        ...

    def metrics(self) -> Metrics:
        """Returns the numbers that the strategy computed in the last round."""
        ...

    @property
    def may_stop(self) -> bool:
        """Returns True if the strategy can end the run early."""
        ...

    def should_stop(self, server_round: int, result: RoundResult) -> bool:
        """Returns True if the strategy ends the run after a round whose model was evaluated."""
        ...

    def evaluated(
        self, server_round: int, model: GlobalModel, answers: Sequence[Answer]
    ) -> Metrics:
        """Returns the numbers that the strategy computes from the clients' evaluations."""
        ...

    def privacy(self) -> dict[str, Any] | None:
        """Returns the privacy loss of all rounds so far; None if the strategy computes none."""
        ...

    def snapshot(self) -> tuple[State, dict[str, Any]]:
        """Returns the memory of the strategy: its tensors, and all other values as JSON."""
        ...

    def restore(self, tensors: State, plain: Mapping[str, Any]) -> None:
        """Restores the memory from a snapshot of the same strategy."""
        ...


class OwnAggregator:
    """Calls a strategy of this project and keeps the state of the strategy."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._state: State = {}
        self._participants: tuple[int, ...] = ()
        self._metrics: Metrics = {}

    def select(
        self, server_round: int, drawn: Sequence[int], clients: Sequence[int]
    ) -> Sequence[int]:
        """Lets the strategy choose the participants of a round, and checks the result.

        Raises:
            UserError: If the strategy chose an unknown client, chose a client twice, or chose
                another number of clients than the length of `drawn`.
        """
        with blame(self._strategy, server_round):
            chosen = self._strategy.select(server_round, drawn, clients, self._state)
            chosen = sorted(chosen)
        if len(chosen) != len(drawn) or len(set(chosen)) != len(chosen):
            raise self._refusal(
                f"select returned {len(set(chosen))} different clients, expected {len(drawn)}"
            )
        if strangers := set(chosen) - set(clients):
            raise self._refusal(
                f"select returned client {min(strangers)}, but the run has no client of this number"
            )
        return chosen

    def instruct(
        self,
        server_round: int,
        model: GlobalModel,
        clients: Sequence[int],
        config: Mapping[str, ConfigValue],
    ) -> list[Instruction]:
        """Returns one instruction for each participant, with the model and the client's plan."""
        with blame(self._strategy, server_round):
            plans = self._plans(server_round, clients)
            broadcast = self._strategy.broadcast(self._state)
        for plan in plans.values():
            _check_plan(plan, model.tensors)
        shared = [replace(plan, epochs=None, rate=1.0) for plan in plans.values()]
        if any(plan != shared[0] for plan in shared):
            raise self._refusal(
                f"round {server_round}: plan returned different plans for the clients; expected "
                "plans that differ only in epochs and rate"
            )
        if broadcast:
            self._check_same("broadcast", model.tensors, broadcast)
        self._participants = tuple(sorted(clients))
        return [
            Instruction(
                client=client,
                model=model,
                config=_local_work(config, plans[client]),
                plan=plans[client],
                broadcast=broadcast,
            )
            for client in clients
        ]

    def _plans(self, server_round: int, clients: Sequence[int]) -> dict[int, ClientPlan]:
        """Returns the plan of each client.

        If the strategy's method `plan` has no argument ``client``, all clients get the same plan.
        """
        plan = self._strategy.plan
        if not wants(plan, "client"):
            return dict.fromkeys(clients, call(plan, server_round, state=self._state))
        return {
            client: call(plan, server_round, state=self._state, client=client) for client in clients
        }

    def aggregate(
        self,
        server_round: int,
        model: GlobalModel,
        updates: Sequence[Update],
        failures: Sequence[Failure],
    ) -> GlobalModel:
        """Calls the strategy, checks the returned tensors, and stores the strategy's metrics."""
        context = RoundContext(
            round=server_round,
            participants=self._participants,
            failures={failure.client: failure.reason for failure in failures},
        )
        with blame(self._strategy, server_round):
            returned, self._state = call(
                self._strategy.aggregate, model.tensors, updates, self._state, context=context
            )
        new, merged = split(returned)
        self._check_same("returned", model.tensors, new)
        self._check_merged(model.tensors, merged)
        with blame(self._strategy, server_round):
            self._metrics = plain_metrics(self._strategy.metrics(new, updates, self._state))
        return model.followed_by(
            {n: new[n].to(w.dtype).contiguous() for n, w in model.tensors.items()},
            without_zeros(merged),
        )

    def _check_same(self, did: str, model: State, new: State) -> None:
        """Refuses tensors whose names or shapes differ from the tensors of the model."""
        shapes = [{n: tuple(w.shape) for n, w in tensors.items()} for tensors in (model, new)]
        if shapes[0] != shapes[1]:
            differing = sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})
            raise UserError(
                f"strategy {type(self._strategy).__name__} {did} tensors whose names or shapes are "
                f"not those of the model; these tensors differ: {differing[:5]}"
            )

    def _check_merged(self, model: State, merged: State) -> None:
        """Refuses merged pairs whose names or shapes do not fit a low-rank pair of the model."""
        shapes = {name: tuple(tensor.shape) for name, tensor in merged.items()}
        for path in {name.rpartition(".")[0] for name in merged}:
            rank, inputs = shapes.get(path + MERGED_A, (0, 0))
            pair = [tuple(model[path + end].shape) for end in (A, B) if path + end in model]
            fitting = pair and [(rank, pair[0][1]), (pair[-1][0], rank)]
            if [(rank, inputs), shapes.get(path + MERGED_B)] != fitting:
                raise UserError(
                    f"strategy {type(self._strategy).__name__} returned merged tensors that do not "
                    f"fit a low-rank pair of the model: {path}"
                )

    def metrics(self) -> Metrics:
        """Returns the strategy's metrics of the last round."""
        return dict(self._metrics)

    @property
    def may_stop(self) -> bool:
        """Returns True if the strategy overrides `should_stop`."""
        return type(self._strategy).should_stop is not Strategy.should_stop

    def should_stop(self, server_round: int, result: RoundResult) -> bool:
        """Asks the strategy whether the run ends.

        Raises:
            UserError: If the strategy returns anything other than True or False.
        """
        with blame(self._strategy, server_round):
            stop = self._strategy.should_stop(server_round, result)
        if not isinstance(stop, bool):
            raise self._refusal(f"should_stop returned {stop!r}, expected True or False")
        return stop

    def evaluated(
        self, server_round: int, model: GlobalModel, answers: Sequence[Answer]
    ) -> Metrics:
        """Returns {}, because this project's strategies do not get the clients' evaluations."""
        del server_round, model, answers
        return {}

    def privacy(self) -> None:
        """Returns None, because strategies of this project compute no privacy loss."""

    def snapshot(self) -> tuple[State, dict[str, Any]]:
        """Returns the strategy's state, which consists of tensors only."""
        return dict(self._state), {}

    def restore(self, tensors: State, plain: Mapping[str, Any]) -> None:
        """Restores the strategy's state."""
        del plain
        self._state = dict(tensors)

    def _refusal(self, finding: str) -> UserError:
        return UserError(f"strategy {type(self._strategy).__name__}: {finding}")


def plain_metrics(metrics: Mapping[str, Metric]) -> Metrics:
    """Returns a strategy's metrics as values for JSON; NaN becomes None, and keys become text.

    Args:
        metrics: The result of `Strategy.metrics`.

    Raises:
        TypeError: If a value is neither a number nor a mapping from clients to numbers.

    Example:
        >>> plain_metrics({"norm": 2.0, "cosine": {3: 0.5, 4: math.nan}})
        {'norm': 2.0, 'cosine': {'3': 0.5, '4': None}}
    """
    return {
        name: {str(int(client)): _finite(name, number) for client, number in value.items()}
        if isinstance(value, Mapping)
        else _finite(name, value)
        for name, value in metrics.items()
    }


def _finite(name: str, value: Any) -> float | None:
    """Returns a number as it is, and returns None for NaN and infinity."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"metric {name!r} is {value!r}, expected a number") from None
    return number if math.isfinite(number) else None


def _local_work(config: Mapping[str, ConfigValue], plan: ClientPlan) -> Mapping[str, ConfigValue]:
    """Returns the scalars of a round for one client, with the rate and epochs of the plan."""
    own: dict[str, ConfigValue] = {}
    if plan.epochs is not None:
        own[LOCAL_EPOCHS] = plan.epochs
    if plan.rate != 1:
        own[LEARNING_RATE] = float(config[LEARNING_RATE]) * plan.rate  # type: ignore[arg-type]
    return {**config, **own} if own else config


def _check_plan(plan: ClientPlan, model: State) -> None:
    """Refuses a plan that no client can follow.

    Raises:
        UserError: If an ending fits no tensor's name, or if `epochs` or `rate` is not positive.
    """
    for rested in ("frozen", "restarted"):
        check_endings(getattr(plan, rested), f"plan.{rested}", model)
    epochs = plan.epochs
    if epochs is not None and (type(epochs) is not int or epochs < 1):
        raise UserError(f"plan.epochs must be a whole number from 1, or None; got {epochs!r}")
    if not (isinstance(plan.rate, int | float) and math.isfinite(plan.rate) and plan.rate > 0):
        raise UserError(
            f"plan.rate must be a positive factor for the learning rate, got {plan.rate!r}"
        )


def check_endings(endings: tuple[str, ...], where: str, model: State) -> None:
    """Refuses an ending if no tensor's name ends with the ending.

    Without this check, a misspelt ending would freeze no tensor, and the user would not notice the
    mistake.

    Args:
        endings: Endings of tensor names, for example ``.lora_A``.
        where: The name of the field or method with the endings, for the error message.
        model: The exchanged tensors.

    Raises:
        UserError: If no tensor's name has the ending. The message suggests a similar ending.
    """
    if isinstance(endings, str):
        raise UserError(f"{where} must be a tuple, ({endings!r},), got the text {endings!r}")
    for ending in endings:
        if not any(name.endswith(ending) for name in model):
            last = {f".{name.rpartition('.')[2]}" for name in model}
            raise unknown(f"ending in {where}", ending, last)

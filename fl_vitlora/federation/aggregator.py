"""What the server loop needs of an aggregation strategy, and the driver of this project's own.

The loop asks an aggregator which clients take part, what each is sent, and what becomes of their
updates. `OwnAggregator` calls a strategy of `fl_vitlora.strategy`, keeps its state, and checks what
it returns. `flower.strategies.flower_aggregator` does the same for Flower's strategies.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from fl_vitlora.errors import UserError, blame, unknown
from fl_vitlora.federation.evaluation import Answer
from fl_vitlora.federation.failures import Failure
from fl_vitlora.federation.global_model import GlobalModel, split
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
    """What the server loop needs of a strategy."""

    def select(
        self, server_round: int, drawn: Sequence[int], clients: Sequence[int]
    ) -> Sequence[int]:
        """Returns the participants of a round, as many of all clients as were drawn at random."""
        ...

    def instruct(
        self,
        server_round: int,
        model: GlobalModel,
        clients: Sequence[int],
        config: Mapping[str, ConfigValue],
    ) -> list[Instruction]:
        """Returns what the participants of a round are sent."""
        ...

    def aggregate(
        self,
        server_round: int,
        model: GlobalModel,
        updates: Sequence[Update],
        failures: Sequence[Failure],
    ) -> GlobalModel:
        """Makes the next global model from at least one update."""
        ...

    def metrics(self) -> Metrics:
        """Returns the strategy's own numbers of the last round's training."""
        ...

    @property
    def may_stop(self) -> bool:
        """Returns True if the strategy can end the run early."""
        ...

    def should_stop(self, server_round: int, result: RoundResult) -> bool:
        """Returns True if the run ends with a round that is measured."""
        ...

    def evaluated(
        self, server_round: int, model: GlobalModel, answers: Sequence[Answer]
    ) -> Metrics:
        """Returns the strategy's own numbers of what the clients measured."""
        ...

    def privacy(self) -> dict[str, Any] | None:
        """Returns the privacy loss of all rounds so far, if the strategy counts it."""
        ...

    def snapshot(self) -> tuple[State, dict[str, Any]]:
        """Returns the memory of the strategy: tensors, and everything else in JSON's types."""
        ...

    def restore(self, tensors: State, plain: Mapping[str, Any]) -> None:
        """Restores the memory from a snapshot of the same strategy."""
        ...


class OwnAggregator:
    """Drives a strategy of this project's contract and keeps its state."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._state: State = {}
        self._participants: tuple[int, ...] = ()
        self._metrics: Metrics = {}

    def select(
        self, server_round: int, drawn: Sequence[int], clients: Sequence[int]
    ) -> Sequence[int]:
        """Lets the strategy choose the participants, and checks their number.

        Raises:
            UserError: If the strategy chose others than clients, one twice, or another number.
        """
        with blame(self._strategy, server_round):
            chosen = self._strategy.select(server_round, drawn, clients, self._state)
            chosen = sorted(chosen)
        if len(chosen) != len(drawn) or len(set(chosen)) != len(chosen):
            raise self._refusal(
                f"select returned {len(set(chosen))} different clients, expected {len(drawn)}"
            )
        if strangers := set(chosen) - set(clients):
            raise self._refusal(f"select returned {min(strangers)}, which is no client of the run")
        return chosen

    def instruct(
        self,
        server_round: int,
        model: GlobalModel,
        clients: Sequence[int],
        config: Mapping[str, ConfigValue],
    ) -> list[Instruction]:
        """Sends the model and the plan to every participant."""
        with blame(self._strategy, server_round):
            plans = self._plans(server_round, clients)
            broadcast = self._strategy.broadcast(self._state)
        for plan in plans.values():
            _check_plan(plan, model.tensors)
        shared = [replace(plan, epochs=None, rate=1.0) for plan in plans.values()]
        if any(plan != shared[0] for plan in shared):
            raise self._refusal(
                f"round {server_round}: plan differs between clients in more than epochs and rate"
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
        """Asks for the plan once, or once for each client if the strategy names ``client``."""
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
        """Calls the strategy, checks the tensors that it returns, and keeps its metrics."""
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
        """Returns the strategy's metrics of the last round."""
        return dict(self._metrics)

    @property
    def may_stop(self) -> bool:
        """Returns True if the strategy overrides `should_stop`."""
        return type(self._strategy).should_stop is not Strategy.should_stop

    def should_stop(self, server_round: int, result: RoundResult) -> bool:
        """Asks the strategy.

        Raises:
            UserError: If the answer is neither True nor False.
        """
        with blame(self._strategy, server_round):
            stop = self._strategy.should_stop(server_round, result)
        if not isinstance(stop, bool):
            raise self._refusal(f"should_stop returned {stop!r}, expected True or False")
        return stop

    def evaluated(
        self, server_round: int, model: GlobalModel, answers: Sequence[Answer]
    ) -> Metrics:
        """Returns nothing: strategies of this project do not see the clients' measurements."""
        del server_round, model, answers
        return {}

    def privacy(self) -> None:
        """Returns None: strategies of this project count no privacy loss."""

    def snapshot(self) -> tuple[State, dict[str, Any]]:
        """Returns the strategy's state."""
        return dict(self._state), {}

    def restore(self, tensors: State, plain: Mapping[str, Any]) -> None:
        """Restores the strategy's state."""
        del plain
        self._state = dict(tensors)

    def _refusal(self, finding: str) -> UserError:
        return UserError(f"strategy {type(self._strategy).__name__}: {finding}")


def plain_metrics(metrics: Mapping[str, Metric]) -> Metrics:
    """Returns a strategy's metrics in the types of JSON, which has no NaN and only text as keys.

    Args:
        metrics: What `Strategy.metrics` returned.

    Raises:
        TypeError: If a value is not a number, nor numbers by client.

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
    """Returns a number, or None in place of NaN and infinity."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"metric {name!r} is {value!r}, expected a number") from None
    return number if math.isfinite(number) else None


def _local_work(config: Mapping[str, ConfigValue], plan: ClientPlan) -> Mapping[str, ConfigValue]:
    """Returns the scalars of a round for one client, whose plan may change rate and epochs."""
    own: dict[str, ConfigValue] = {}
    if plan.epochs is not None:
        own[LOCAL_EPOCHS] = plan.epochs
    if plan.rate != 1:
        own[LEARNING_RATE] = float(config[LEARNING_RATE]) * plan.rate  # type: ignore[arg-type]
    return {**config, **own} if own else config


def _check_plan(plan: ClientPlan, model: State) -> None:
    """Refuses a plan that no client can follow.

    Raises:
        UserError: If an ending fits no tensor, or epochs or rate are not positive.
    """
    for rested in ("frozen", "restarted"):
        check_endings(getattr(plan, rested), f"plan.{rested}", model)
    epochs = plan.epochs
    if epochs is not None and (type(epochs) is not int or epochs < 1):
        raise UserError(f"plan.epochs is {epochs!r}, expected a whole number from 1, or None")
    if not (isinstance(plan.rate, int | float) and math.isfinite(plan.rate) and plan.rate > 0):
        raise UserError(f"plan.rate is {plan.rate!r}, expected a positive factor")


def check_endings(endings: tuple[str, ...], where: str, model: State) -> None:
    """Refuses endings that no tensor's name has; a typing error would freeze nothing.

    Args:
        endings: Endings of the names of tensors.
        where: What the endings belong to, for the error.
        model: The exchanged tensors.

    Raises:
        UserError: If an ending fits no tensor; the message names the nearest that does.
    """
    if isinstance(endings, str):
        raise UserError(f"{where} is {endings!r}, expected a tuple: ({endings!r},)")
    for ending in endings:
        if not any(name.endswith(ending) for name in model):
            last = {f".{name.rpartition('.')[2]}" for name in model}
            raise unknown(f"ending in {where}", ending, last)

"""The server's half of a fine-tuning method: tensors that rest by round, and manifolds.

It stands around the aggregator of a strategy, of this project or of Flower, and changes two things:
the plan of a round gains the tensors that the method lets rest, and an aggregated model is put back
onto the manifold that the method needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from fl_vitlora.errors import UserError, unknown
from fl_vitlora.federation.failures import Failure
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import Instruction
from fl_vitlora.finetuning.method import Method
from fl_vitlora.flower.strategies.aggregators import Aggregator, OwnAggregator
from fl_vitlora.flower.strategies.flower_aggregator import Metrics
from fl_vitlora.state import State
from fl_vitlora.strategy import Update


def with_method(aggregator: Aggregator, method: Method) -> Aggregator:
    """Adds the server's half of a method to an aggregator, if the method has one.

    Args:
        aggregator: The aggregator of the strategy.
        method: The fine-tuning method of the run.

    Raises:
        UserError: When the method lets tensors rest and the strategy is one of Flower's, which
            averages every tensor in every round.
    """
    if not method.acts_at_server:
        return aggregator
    if method.has_rests and not isinstance(aggregator, OwnAggregator):
        raise UserError(
            f"method {method.name} lets tensors rest by round, which strategies of Flower do not "
            "know; take a strategy of this project, for example --strategy fedavg"
        )
    return MethodAggregator(aggregator, method)


class MethodAggregator:
    """An aggregator with the server's half of a fine-tuning method around it.

    Args:
        aggregator: The aggregator of the strategy.
        method: The fine-tuning method.
    """

    def __init__(self, aggregator: Aggregator, method: Method) -> None:
        self._aggregator = aggregator
        self._method = method

    def instruct(
        self,
        server_round: int,
        model: GlobalModel,
        clients: Sequence[int],
        config: Mapping[str, Any],
    ) -> list[Instruction]:
        """Adds what the method lets rest to the strategy's plan."""
        resting = self._method.rests(server_round)
        for ending in resting:
            if not any(name.endswith(ending) for name in model.tensors):
                last = {f".{name.rpartition('.')[2]}" for name in model.tensors}
                raise unknown(f"ending in rests of method {self._method.name}", ending, last)
        asked = self._aggregator.instruct(server_round, model, clients, config)
        return [
            replace(one, plan=replace(one.plan, frozen=joined(one.plan.frozen, resting)))
            for one in asked
        ]

    def aggregate(
        self,
        server_round: int,
        model: GlobalModel,
        updates: Sequence[Update],
        failures: Sequence[Failure],
    ) -> GlobalModel:
        """Lets the strategy aggregate, and puts the result back onto the method's manifold."""
        following = self._aggregator.aggregate(server_round, model, updates, failures)
        tensors = following.tensors
        new = self._method.retract(dict(tensors))
        for name, tensor in new.items():
            if name not in tensors or tensor.shape != tensors[name].shape:
                raise UserError(
                    f"method {self._method.name}: retract returned {name} {tuple(tensor.shape)}, "
                    "which is not a tensor of the model"
                )
        moved = {n: new[n].to(w.dtype).contiguous() for n, w in tensors.items()}
        return replace(following, tensors=moved)

    def metrics(self) -> Metrics:
        """Returns what the strategy says of the training of the last round."""
        return self._aggregator.metrics()

    def evaluated(self, server_round: int, model: GlobalModel, answers: Sequence[Any]) -> Metrics:
        """Returns what the strategy says of the clients' measurements."""
        return self._aggregator.evaluated(server_round, model, answers)

    def privacy(self) -> dict[str, Any] | None:
        """Returns what the strategy's accountant says."""
        return self._aggregator.privacy()

    def snapshot(self) -> tuple[State, dict[str, Any]]:
        """Returns the strategy's state; a method has none at the server."""
        return self._aggregator.snapshot()

    def restore(self, tensors: State, plain: Mapping[str, Any]) -> None:
        """Puts the strategy's state back."""
        self._aggregator.restore(tensors, plain)


def joined(planned: tuple[str, ...], resting: tuple[str, ...]) -> tuple[str, ...]:
    """Joins the endings of a plan with those of a method; each stands once.

    Example:
        >>> joined((".lora_A",), (".lora_A", ".gain"))
        ('.lora_A', '.gain')
    """
    return tuple(dict.fromkeys([*planned, *resting]))

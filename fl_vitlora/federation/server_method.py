"""The server's half of a fine-tuning method: tensors frozen in some rounds, and manifolds.

A strategy does not know the fine-tuning method. Therefore the server loop does two things for the
method: it adds the tensors that the method freezes in a round to the strategy's plan, and it moves
the aggregated model back onto the manifold that the method needs (for example orthogonal factors).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fl_vitlora.errors import UserError
from fl_vitlora.federation.aggregator import Aggregator, OwnAggregator, check_endings
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import Instruction
from fl_vitlora.finetuning.method import Method


def check_method_fits(method: Method, aggregator: Aggregator) -> None:
    """Refuses a method that freezes tensors in some rounds together with a strategy of Flower.

    Args:
        method: The fine-tuning method of the run.
        aggregator: The aggregator of the strategy.

    Raises:
        UserError: If the method freezes tensors in some rounds and the strategy is one of Flower's,
            because Flower's strategies average every tensor in every round.
    """
    if method.has_rests and not isinstance(aggregator, OwnAggregator):
        raise UserError(
            f"method {method.name} lets tensors rest by round, which strategies of Flower do not "
            "know; take a strategy of this project, for example --strategy fedavg"
        )


def with_rests(
    method: Method, server_round: int, instructions: Sequence[Instruction]
) -> list[Instruction]:
    """Adds the tensors that a method freezes in a round to the plan of every instruction.

    Args:
        method: The fine-tuning method of the run.
        server_round: The number of the round, from 1.
        instructions: The instructions of the strategy.

    Raises:
        UserError: If the method returns an ending that no exchanged tensor's name has.
    """
    resting = method.rests(server_round)
    if not resting:
        return list(instructions)
    for one in instructions[:1]:
        check_endings(resting, f"rests of method {method.name}", one.model.tensors)
    return [
        replace(one, plan=replace(one.plan, frozen=joined(one.plan.frozen, resting)))
        for one in instructions
    ]


def retracted(method: Method, model: GlobalModel) -> GlobalModel:
    """Moves an aggregated model back onto the manifold of a method.

    Args:
        method: The fine-tuning method of the run.
        model: The model that the strategy returned.

    Raises:
        UserError: If the method returns a tensor with a name or shape that the model does not have.
    """
    if not method.retracts:
        return model
    tensors = model.tensors
    new = method.retract(dict(tensors))
    for name, tensor in new.items():
        if name not in tensors or tensor.shape != tensors[name].shape:
            raise UserError(
                f"method {method.name}: retract returned {name} {tuple(tensor.shape)}, "
                "which is not a tensor of the model"
            )
    moved = {n: new[n].to(w.dtype).contiguous() for n, w in tensors.items()}
    return replace(model, tensors=moved)


def joined(planned: tuple[str, ...], resting: tuple[str, ...]) -> tuple[str, ...]:
    """Joins the endings of a plan and the endings of a method, without duplicates.

    Example:
        >>> joined((".lora_A",), (".lora_A", ".gain"))
        ('.lora_A', '.gain')
    """
    return tuple(dict.fromkeys([*planned, *resting]))

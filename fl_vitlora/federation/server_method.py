"""Applies a fine-tuning method at the server: freezes tensors before a round, changes them after.

A strategy does not know the fine-tuning method. Therefore the server loop does three things for the
method. Before a round, the loop adds the tensors that the method freezes to the strategy's plan.
After a round, the loop restores properties of tensors that were lost by averaging, for example the
orthogonality of factors. Finally, the loop lets the method change tensors for the next rounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fl_vitlora.errors import UserError
from fl_vitlora.federation.aggregator import Aggregator, OwnAggregator, check_endings
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import Instruction
from fl_vitlora.finetuning.method import Method
from fl_vitlora.finetuning.part import Aggregated
from fl_vitlora.state import State, mean
from fl_vitlora.strategy import Update

ROUNDING = 1e-3  # of the largest entry of a measured tensor


def check_method_fits(method: Method, aggregator: Aggregator) -> None:
    """Refuses a Flower strategy if the method freezes tensors in some rounds.

    Args:
        method: The fine-tuning method of the run.
        aggregator: The aggregator of the strategy.

    Raises:
        UserError: If the method freezes tensors in some rounds and the strategy belongs to Flower,
            because Flower's strategies average every tensor in every round.
    """
    if method.has_rests and not isinstance(aggregator, OwnAggregator):
        raise UserError(
            f"method {method.name} freezes some tensors in some rounds, but Flower's strategies "
            "average every tensor in every round; choose a strategy of this project, for example "
            "--strategy fedavg"
        )


def with_method(
    method: Method, server_round: int, instructions: Sequence[Instruction]
) -> list[Instruction]:
    """Adds the frozen and the measured tensors of a method to every instruction of a round.

    The endings of the frozen tensors are added to the plan of the instruction.

    Args:
        method: The fine-tuning method of the run.
        server_round: The number of the round, from 1.
        instructions: The instructions of the strategy.

    Raises:
        UserError: If the method returns an ending that fits the name of no exchanged tensor.
    """
    told = [replace(one, measured=method.measured) for one in instructions]
    if not (method.has_rests and told):
        return told
    model = told[0].model
    resting = method.resting(server_round, model.memory, model.tensors)
    check_endings(resting, f"rests of method {method.name}", model.tensors)
    return [
        replace(one, plan=replace(one.plan, frozen=joined(one.plan.frozen, resting)))
        for one in told
    ]


def check_not_clipped(method: Method, frozen: Sequence[str], clipped: int | None) -> None:
    """Refuses a round in which clients measured means and secure aggregation clipped numbers.

    Args:
        method: The fine-tuning method of the run.
        frozen: The endings of the names of tensors that were frozen in the round.
        clipped: The number of clipped numbers of all clients; None without secure aggregation.

    Raises:
        UserError: If clients measured means in this round, and numbers were clipped.
    """
    if clipped and not set(method.measured) <= set(frozen):
        raise UserError(
            f"method {method.name} with privacy.secure_aggregation: {clipped} numbers were larger "
            "than privacy.range and were clipped, so the measured means are wrong; set a larger "
            "range, for example --set privacy.range=64"
        )


def check_means(
    method: Method, before: GlobalModel, updates: Sequence[Update], aggregated: GlobalModel
) -> None:
    """Refuses a strategy that changes the means that clients measured for a method.

    A strategy treats a measured tensor like a trained one. An optimiser at the server, or a median,
    returns numbers for it that are no means over the images of all clients (`Part.measured`).

    Args:
        method: The fine-tuning method of the run.
        before: The model before the round.
        updates: The updates that the strategy has aggregated.
        aggregated: The model that the strategy returned.

    Raises:
        UserError: If a measured tensor differs from the mean by more than rounding.
    """
    names = [name for name in before.tensors if method.measured and name.endswith(method.measured)]
    names = [name for name in names if all(name in update.delta for update in updates)]
    if not (names and updates):
        return
    deltas = [{name: update.delta[name] for name in names} for update in updates]
    means = mean(deltas, [update.samples for update in updates])
    for name in names:
        expected, found = before.tensors[name] + means[name], aggregated.tensors[name]
        largest = max(float(expected.abs().max()), float(means[name].abs().max()))
        if float((found - expected).abs().max()) > ROUNDING * largest:
            raise UserError(
                f"method {method.name}: clients measure the tensor {name}, but the strategy "
                "returned other numbers than the mean of all clients; choose a strategy that "
                "averages, for example --strategy fedavg"
            )


def after_round(
    method: Method,
    before: GlobalModel,
    aggregated: GlobalModel,
    server_round: int,
    rounds: int,
    *,
    loss: float = 0.0,
    seed: int = 0,
) -> GlobalModel:
    """Returns the model of the next round: the aggregated model with the method's changes.

    Tensors that only the server changes (`Method.control`) keep exactly the values that they had
    before the aggregation.

    Args:
        method: The fine-tuning method of the run.
        before: The model before the round.
        aggregated: The model that the strategy returned.
        server_round: The number of the round, from 1.
        rounds: The number of rounds of the run.
        loss: The mean training loss of the participants.
        seed: The seed for random choices of the server.

    Raises:
        UserError: If the method returns a tensor whose name or shape does not fit the model.
    """
    tensors = dict(aggregated.tensors)
    if method.control:
        tensors |= {n: t for n, t in before.tensors.items() if n.endswith(method.control)}
    if method.retracts:
        tensors = _replaced(method, "retract", tensors, method.retract(dict(tensors)))
    memory = aggregated.memory
    if method.decides:
        known = Aggregated(
            round=server_round,
            rounds=rounds,
            before=dict(before.tensors),
            after=dict(tensors),
            loss=loss,
            seed=seed,
        )
        changed, memory = method.decide(known, dict(memory))
        tensors = _replaced(method, "decide", tensors, changed)
    return replace(aggregated, tensors=tensors, memory=memory)


def _replaced(method: Method, function: str, tensors: State, new: State) -> State:
    """Returns `tensors`, in which the tensors of `new` replace tensors of the same name."""
    for name, tensor in new.items():
        if name not in tensors or tensor.shape != tensors[name].shape:
            raise UserError(
                f"method {method.name}: {function} returned tensor {name} with shape "
                f"{tuple(tensor.shape)}, but the model has no tensor of this name and shape"
            )
    return {n: new[n].to(w.dtype).contiguous() if n in new else w for n, w in tensors.items()}


def joined(planned: tuple[str, ...], resting: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the endings of a plan and the endings of a method, without duplicates.

    Example:
        >>> joined((".lora_A",), (".lora_A", ".gain"))
        ('.lora_A', '.gain')
    """
    return tuple(dict.fromkeys([*planned, *resting]))

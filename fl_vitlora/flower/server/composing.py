"""Makes the message to a client from its instruction, without the tensors it does not need.

A client does not need tensors that it already has. A strategy may broadcast further tensors in
addition to the model. If a tensor is frozen in the round, the further tensors that belong to this
tensor are not sent. The state of the strategy stays at the server, and covers frozen tensors too.
"""

from __future__ import annotations

from dataclasses import replace

from fl_vitlora.federation.client_records import Memory
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import Instruction
from fl_vitlora.flower.wire.round_message import RoundMessage, read_scalars
from fl_vitlora.state import State
from fl_vitlora.strategy import ClientPlan


def compose(asked: Instruction, memory: Memory, cached: frozenset[str]) -> RoundMessage:
    """Makes the message to one client.

    Args:
        asked: The instruction to the client.
        memory: The server's record of the tensors that the client remembers.
        cached: The names of the tensors that the client already has.

    Returns:
        The message, with the tensors that the client lacks and the scalars of the round.
    """
    stated, plan = read_scalars(asked.config), asked.plan
    message = replace(
        stated,
        tensors={n: t for n, t in asked.model.tensors.items() if n not in cached},
        cached=cached,
        since=memory.round if cached and memory.tensors else 0,
        broadcast=without_frozen(asked.broadcast, plan),
        frozen=plan.frozen,
        restarted=plan.restarted,
        proximal_mu=plan.proximal_mu or stated.proximal_mu,
        taken=memory.taken if memory.missed else None,
    )
    return _with_merges(message, asked.model, memory.merges)


def without_frozen(broadcast: State, plan: ClientPlan) -> State:
    """Returns the tensors of a strategy's broadcast that belong to tensors trained in the round.

    Example:
        >>> import torch
        >>> broadcast = {"a.lora_A": torch.zeros(1), "a.lora_B": torch.zeros(1)}
        >>> list(without_frozen(broadcast, ClientPlan(frozen=(".lora_A",))))
        ['a.lora_B']
    """
    return {name: t for name, t in broadcast.items() if not name.endswith(plan.frozen)}


def _with_merges(message: RoundMessage, model: GlobalModel, known: int) -> RoundMessage:
    """Adds the merged pairs that the client missed, or all increments if these are smaller."""
    merges = model.merges_since(known)
    if merges is None:
        return replace(message, increments=model.increments, merges=(0, model.rounds))
    return replace(message, merged=merges, merges=(known, model.rounds))

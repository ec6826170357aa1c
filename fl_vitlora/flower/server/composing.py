"""Makes the message to a client: the instruction, without tensors that the client already has."""

from __future__ import annotations

from dataclasses import replace

from fl_vitlora.federation.client_records import Memory
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import Instruction
from fl_vitlora.flower.wire.round_message import RoundMessage, read_scalars


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
        broadcast=asked.broadcast,
        frozen=plan.frozen,
        restarted=plan.restarted,
        proximal_mu=plan.proximal_mu or stated.proximal_mu,
        taken=memory.taken if memory.missed else None,
    )
    return _with_merges(message, asked.model, memory.merges)


def _with_merges(message: RoundMessage, model: GlobalModel, known: int) -> RoundMessage:
    """Adds merged pairs that the client missed; adds all increments instead if they are smaller."""
    merges = model.merges_since(known)
    if merges is None:
        return replace(message, increments=model.increments, merges=(0, model.rounds))
    return replace(message, merged=merges, merges=(known, model.rounds))

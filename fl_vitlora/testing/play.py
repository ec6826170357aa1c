"""Runs rounds with made-up clients: calls a strategy's methods in the order of a real run.

A play is a few rounds with made-up clients. Every value that a method returns is checked in each
play (`checked_calls`). Most rules compare two plays that differ in one respect, for example the
order of the updates (`rules`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from fl_vitlora import lowrank
from fl_vitlora.privacy.noise import mean_update
from fl_vitlora.state import State, add
from fl_vitlora.strategy import (
    ClientPlan,
    LocalWork,
    RoundResult,
    Strategy,
    Update,
)
from fl_vitlora.testing import made_up
from fl_vitlora.testing.checked_calls import CheckedCalls, Handover

ROUNDS = 3


class Ending(NamedTuple):
    """The result of all rounds of a play.

    Attributes:
        model: The tensors of the global model, by name.
        merged: The sum of all products that were merged into the frozen weight of each low-rank
            pair, by path.
        state: The state of the strategy, that is, the server's memory.
    """

    model: State
    merged: State
    state: State


@dataclass(frozen=True, kw_only=True)
class Play:
    """A few rounds with made-up clients that test a strategy.

    Attributes:
        strategy: The strategy that is tested.
        attendance: For each round, the clients that send an update.
        ranks: The rank of each client. `ranks` is None if all clients have the rank of the model.
        dtype: The type of the tensors of the model and of the deltas.
        size: The standard deviation of the deltas (a client's tensors after training minus before).
        images: The factor by which the number of images of every client is multiplied.
        backwards: True if the updates are listed from the last client to the first.
        summed: True if the server gets only the mean of the updates.
        resting: For some rounds, endings of the names of tensors that a fine-tuning method freezes.
        hand: A function through which all tensors reach the strategy. The arguments of `hand` are
            the number of the round, a text that says what the tensors are, and the tensors. The
            function returns the tensors that the strategy gets.
        send: A function that returns the copy of the strategy that a client gets.
    """

    strategy: Strategy
    attendance: Sequence[Sequence[int]] = (made_up.CLIENTS,) * ROUNDS
    ranks: Sequence[int] | None = None
    dtype: torch.dtype = torch.float32
    size: float = 0.1
    images: int = 1
    backwards: bool = False
    summed: bool = False
    resting: Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    hand: Handover = lambda _round, _what, tensors: tensors
    send: Callable[[Strategy], Strategy] = lambda strategy: strategy

    @property
    def calls(self) -> CheckedCalls:
        """Returns the methods of the strategy, with checks of the values that they return."""
        return CheckedCalls(
            strategy=self.strategy,
            ranks=self.ranks,
            dtype=self.dtype,
            hand=self.hand,
            send=self.send,
        )

    def start(self) -> Ending:
        """Returns the model before the first round, with no merged products and no state.

        A matrix B that starts every round at its initial value is zero, as in a real run.
        """
        model = made_up.made_up_model(self.strategy, self.dtype)
        restarted = [n for n in model if n.endswith(self.plan(1).restarted)]
        zeros = {n: torch.zeros_like(model[n]) for n in restarted if n.endswith(lowrank.B)}
        return Ending(model | zeros, {}, {})

    def run(self) -> Ending:
        """Runs all rounds, and returns their result."""
        ending = self.start()
        memories: dict[int, State] = {}
        for server_round, clients in enumerate(self.attendance, start=1):
            broadcast = self.broadcast(server_round, ending)
            updates = []
            for client in clients:
                update, memories[client] = self.answer(
                    server_round, client, broadcast, memories.get(client, {}), ending.state
                )
                updates.append(update)
            ending = self.aggregate(server_round, ending, self._listed(server_round, updates))
            those = tuple(sorted(clients))
            result = RoundResult(accuracy=0.5, loss=1.0, train_loss=1.0, participants=those)
            self.calls.should_stop(server_round, result)  # the rounds go on even after True
        return ending

    def plan(
        self, server_round: int, state: State | None = None, client: int = made_up.CLIENTS[0]
    ) -> ClientPlan:
        """Returns the strategy's plan for one client, from the state of the server."""
        return self.calls.plan(server_round, state, client)

    def broadcast(self, server_round: int, ending: Ending) -> State:
        """Returns the tensors that the strategy sends to the clients in addition to the model."""
        return self.calls.broadcast(server_round, ending.model, ending.state)

    def answer(
        self,
        server_round: int,
        client: int,
        broadcast: State,
        memory: State,
        state: State | None = None,
    ) -> tuple[Update, State]:
        """Calls the client's methods of the strategy with a made-up delta.

        Args:
            server_round: The number of the round, from 1.
            client: The number of the client.
            broadcast: The tensors that the server sends to the clients in addition to the model.
            memory: The tensors that the client remembers from its last round.
            state: The state of the server, from which the plan follows.

        Returns:
            A pair: the update of the client, and the tensors that the client remembers. As in
            training, the drift of every step is part of the delta. As in a run, the strategy gets
            no tensor of the broadcast or of the memory that belongs to a frozen tensor.
        """
        rank = self.ranks[client] if self.ranks else None
        plan = self.plan(server_round, state, client)
        frozen = (*plan.frozen, *self.resting.get(server_round, ()))
        drawn = made_up.made_up_delta(self.strategy, server_round, client, self.size, self.dtype)
        whole = {name: tensor for name, tensor in drawn.items() if not name.endswith(frozen)}
        start = LocalWork(
            delta=lowrank.cut(whole, rank),
            steps=made_up.STEPS[client] * (plan.epochs or 1),
            rate=made_up.RATE * plan.rate,
        )
        awake = {name: t for name, t in broadcast.items() if not name.endswith(frozen)}
        received = lowrank.cut(awake, rank)
        put_aside = {n: t for n, t in memory.items() if n in drawn and n.endswith(frozen)}
        known = {name: t for name, t in memory.items() if name not in put_aside}
        work = self._drifted(server_round, start, received, known)
        report, kept = self.calls.report(server_round, work, received, known)
        update = Update(
            client=client,
            samples=made_up.SAMPLES[client] * self.images,
            loss=1.0 + client,
            delta=lowrank.pad(work.delta, whole),
            steps=work.steps,
            rank=rank,
            report=lowrank.pad(report, whole),
            population=len(made_up.CLIENTS),
        )
        return update, {**put_aside, **kept}

    def aggregate(self, server_round: int, ending: Ending, updates: Sequence[Update]) -> Ending:
        """Lets the strategy aggregate the updates of a round.

        Args:
            server_round: The number of the round, from 1.
            ending: The result of the earlier rounds.
            updates: The updates of this round.

        Returns:
            The result of all rounds so far. New merged products are added to the products of
            earlier rounds.
        """
        model, products, state = self.calls.aggregate(
            server_round, ending.model, updates, ending.state
        )
        before = {path: ending.merged.get(path, torch.zeros(())) for path in products}
        return Ending(model, ending.merged | add(before, products), state)

    def _drifted(
        self, server_round: int, work: LocalWork, broadcast: State, memory: State
    ) -> LocalWork:
        """Adds the drift of all training steps to the client's delta."""
        drift = self.calls.drift(server_round, work, broadcast, memory)
        moved = {
            name: work.delta[name] + (work.steps * work.rate * d).to(self.dtype)
            for name, d in drift.items()
        }
        return replace(work, delta=work.delta | moved)

    def _listed(self, server_round: int, updates: Sequence[Update]) -> Sequence[Update]:
        """Returns the updates in the order and form in which the server gets them."""
        if self.summed:
            with self.calls.blame(server_round, "the mean of the updates"):
                return [mean_update(updates, [update.samples for update in updates])]
        return updates[::-1] if self.backwards else updates


def answer_while_resting(play: Play) -> None:
    """Runs a round, and then lets all clients train in a second round with frozen tensors."""
    start, clients = play.start(), made_up.CLIENTS
    broadcast = play.broadcast(1, start)
    answers = {client: play.answer(1, client, broadcast, {}) for client in clients}
    ending = play.aggregate(1, start, [update for update, _ in answers.values()])
    broadcast = play.broadcast(2, ending)
    for client, (_, memory) in answers.items():
        play.answer(2, client, broadcast, memory, ending.state)


def made_up_updates(
    strategy: Strategy,
    server_round: int,
    clients: Sequence[int] = made_up.CLIENTS,
    size: float = 0.1,
    ranks: Sequence[int] | None = None,
) -> list[Update]:
    """Makes the updates that clients of a strategy would send in their first round.

    Args:
        strategy: The strategy. The personal and frozen tensors of this strategy are left out of the
            updates.
        server_round: The number of the round, from 1. The random numbers differ from round to
            round.
        clients: The clients that send an update. The four made-up clients have the numbers 0 to 3.
        size: The standard deviation of the deltas (tensors after training minus before).
        ranks: The rank of each of the four clients. `ranks` is None if all clients have the rank of
            the model.

    Returns:
        A list with one update for each client in `clients`.
    """
    play = Play(strategy=strategy, size=size, ranks=ranks)
    broadcast = play.broadcast(server_round, play.start())
    return [play.answer(server_round, client, broadcast, {})[0] for client in clients]

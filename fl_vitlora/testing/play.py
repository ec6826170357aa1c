"""Runs rounds with made-up clients: calls a strategy's methods in the order of a real run.

A play is a few such rounds. Every value that a method returns is checked in each play (`returned`).
Most rules compare two plays that differ in one respect, for example the order of the updates
(`rules`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from fl_vitlora import lowrank
from fl_vitlora.privacy.noise import mean_update
from fl_vitlora.state import State, add
from fl_vitlora.strategy import (
    SEVERAL,
    ClientPlan,
    LocalWork,
    RoundContext,
    RoundResult,
    Strategy,
    Update,
)
from fl_vitlora.strategy.extras import call
from fl_vitlora.testing import declared, made_up, returned
from fl_vitlora.testing.blaming import blaming

ROUNDS = 3
Handover = Callable[[int, str, State], State]


class Ending(NamedTuple):
    """The result of all rounds of a play.

    Attributes:
        model: A dictionary: the tensors of the global model, by name.
        merged: A dictionary: for the path of each low-rank pair, the sum of all products that were
            merged into the frozen weight of this pair.
        state: The state of the strategy, that is the server's memory.
    """

    model: State
    merged: State
    state: State


@dataclass(frozen=True, kw_only=True)
class Play:
    """A few rounds with made-up clients that test a strategy.

    Attributes:
        strategy: The strategy that is tested.
        attendance: For each round, the clients that answer.
        ranks: The rank of each client. `ranks` is None if all clients have the rank of the model.
        dtype: The type of the tensors of the model and of the deltas.
        size: The standard deviation of the deltas (a client's tensors after training minus before).
        images: The factor by which the number of images of every client is multiplied.
        backwards: True if the updates are listed from the last client to the first.
        summed: True if the server gets only the mean of the updates.
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
    hand: Handover = lambda _round, _what, tensors: tensors
    send: Callable[[Strategy], Strategy] = lambda strategy: strategy

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
            self._stop(server_round, clients)
        return ending

    def plan(
        self, server_round: int, state: State | None = None, client: int = made_up.CLIENTS[0]
    ) -> ClientPlan:
        """Calls `plan` with the state of the server, for one client, and checks its result."""
        sent = [n for n in made_up.shapes(self.strategy) if not n.endswith(self.strategy.personal)]
        with self._blame(server_round, "plan"):
            given = self.hand(server_round, "the state", state or {})
            plan = call(self.strategy.plan, server_round, state=given, client=client)
            declared.expect_plan(plan, made_up.known_names(self.strategy))
            returned.expect_plan(plan, sent)
        return plan

    def broadcast(self, server_round: int, ending: Ending) -> State:
        """Calls the strategy's method `broadcast`, and checks its result."""
        with self._blame(server_round, "broadcast"):
            sent = self.strategy.broadcast(self.hand(server_round, "the state", ending.state))
            returned.expect_numbers(sent, "the broadcast")
            if sent:
                returned.expect_like(sent, ending.model, "the broadcast")
        return sent

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
            training, the drift of every step is part of the delta.
        """
        rank = self.ranks[client] if self.ranks else None
        plan = self.plan(server_round, state, client)
        frozen = plan.frozen
        drawn = made_up.made_up_delta(self.strategy, server_round, client, self.size, self.dtype)
        whole = {name: tensor for name, tensor in drawn.items() if not name.endswith(frozen)}
        start = LocalWork(
            delta=lowrank.cut(whole, rank),
            steps=made_up.STEPS[client] * (plan.epochs or 1),
            rate=made_up.RATE * plan.rate,
        )
        received = lowrank.cut(broadcast, rank)
        work = self._drifted(server_round, start, received, memory)
        report, memory = self._report(server_round, work, received, memory)
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
        return update, memory

    def aggregate(self, server_round: int, ending: Ending, updates: Sequence[Update]) -> Ending:
        """Calls `aggregate` and `metrics`, and checks their results.

        Args:
            server_round: The number of the round, from 1.
            ending: The result of the rounds before.
            updates: The updates of this round.

        Returns:
            The result of all rounds so far. New merged products are added to the products of
            earlier rounds.
        """
        given = [
            replace(
                update,
                delta=self.hand(server_round, "an update", update.delta),
                report=self.hand(server_round, "a report", update.report),
            )
            for update in updates
        ]
        model = self.hand(server_round, "the model", ending.model)
        state = self.hand(server_round, "the state", ending.state)
        plan = self.plan(server_round, ending.state)
        context = context_of(server_round, updates)
        with self._blame(server_round, "aggregate", f" with {len(updates)} of 4 clients"):
            pair = call(self.strategy.aggregate, model, given, state, context=context)
            new, state = returned.expect_pair(pair, "aggregate", "(model, state)")
            returned.expect_numbers(state, "the new state")
            shapes = made_up.shapes(self.strategy)
            rest, products = returned.expect_model(new, ending.model, shapes, plan.restarted)
        with self._blame(server_round, "metrics"):
            after = self.hand(server_round, "the new model", rest)
            state = self.hand(server_round, "the new state", state)
            returned.expect_metrics(self.strategy.metrics(after, given, state))
        before = {path: ending.merged.get(path, torch.zeros(())) for path in products}
        return Ending(rest, ending.merged | add(before, products), state)

    def _stop(self, server_round: int, clients: Sequence[int]) -> None:
        """Calls `should_stop` and checks its result.

        The rounds continue even if the result is True.
        """
        those = tuple(sorted(clients))
        result = RoundResult(accuracy=0.5, loss=1.0, train_loss=1.0, participants=those)
        with self._blame(server_round, "should_stop"):
            returned.expect_answer(self.strategy.should_stop(server_round, result))

    def _drifted(
        self, server_round: int, work: LocalWork, broadcast: State, memory: State
    ) -> LocalWork:
        """Calls `drift`, and adds the drift of all training steps to the client's delta."""
        with self._blame(server_round, "drift"):
            drift = self.send(self.strategy).drift(
                self.hand(server_round, "the broadcast", broadcast),
                self.hand(server_round, "the memory", memory),
            )
            returned.expect_numbers(drift, "the drift")
            of_these = {name: d for name, d in work.delta.items() if name in drift}
            returned.expect_like(drift, of_these, "the drift")
        moved = {
            name: work.delta[name] + (work.steps * work.rate * d).to(self.dtype)
            for name, d in drift.items()
        }
        return replace(work, delta=work.delta | moved)

    def _report(
        self, server_round: int, work: LocalWork, broadcast: State, memory: State
    ) -> tuple[State, State]:
        """Calls `report`, and returns the client's report and its new memory."""
        given = replace(work, delta=self.hand(server_round, "the delta", work.delta))
        with self._blame(server_round, "report"):
            report, new = returned.expect_pair(
                self.send(self.strategy).report(
                    given,
                    self.hand(server_round, "the broadcast", broadcast),
                    self.hand(server_round, "the memory", memory),
                ),
                "report",
                "(report, memory)",
            )
            returned.expect_numbers(report, "the report")
            returned.expect_numbers(new, "the new memory")
            if report:
                returned.expect_like(report, work.delta, "the report")
        return report, {name: _as_stored(tensor) for name, tensor in new.items()}

    def _listed(self, server_round: int, updates: Sequence[Update]) -> Sequence[Update]:
        """Returns the updates in the order and form in which the server gets them."""
        if self.summed:
            with self._blame(server_round, "the mean of the updates"):
                return [mean_update(updates, [update.samples for update in updates])]
        return updates[::-1] if self.backwards else updates

    def _blame(
        self, server_round: int | None, half: str = "", who: str = ""
    ) -> contextlib.AbstractContextManager[None]:
        """Returns a context in which an error becomes a `StrategyError` of one line.

        Args:
            server_round: The number of the round. The number is None if the method is called
                outside of rounds.
            half: The name of the strategy's method that is called.
            who: The clients for which the method is called, as the end of a sentence.
        """
        ranks = f" (clients of ranks {', '.join(map(str, self.ranks))})" if self.ranks else ""
        dtype = f" (all in {self.dtype})" if self.dtype != torch.float32 else ""
        return blaming(self.strategy, server_round, half, who, ranks + dtype)


def context_of(server_round: int, updates: Sequence[Update]) -> RoundContext:
    """Makes the context of a round, in which the made-up clients without an update have failed."""
    answered = {update.client for update in updates}
    missing = () if answered == {SEVERAL} else sorted(set(made_up.CLIENTS) - answered)
    return RoundContext(
        round=server_round,
        participants=made_up.CLIENTS,
        failures=dict.fromkeys(missing, "no reply within 1 s"),
    )


def _as_stored(tensor: Tensor) -> Tensor:
    """Returns a tensor in the type in which a client stores it: bfloat16 becomes float32."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


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

"""Calls the methods of a strategy, and checks every value that a method returns.

A method gets its tensors through a function, `hand`, which can record or change these tensors.
An error in a method, or a value that breaks the contract, becomes a `StrategyError` of one line
that names the round and the method.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fl_vitlora.state import State
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

Handover = Callable[[int, str, State], State]


@dataclass(frozen=True, kw_only=True)
class CheckedCalls:
    """The methods of one strategy, as the server and the clients of a play call them.

    A play is a few rounds with made-up clients (`play`).

    Attributes:
        strategy: The strategy that is tested.
        ranks: The rank of each client. `ranks` is None if all clients have the rank of the model.
        dtype: The type of the tensors of the model and of the deltas.
        hand: A function through which all tensors reach the strategy; see `play.Play`.
        send: A function that returns the copy of the strategy that a client gets.
    """

    strategy: Strategy
    ranks: Sequence[int] | None
    dtype: torch.dtype
    hand: Handover
    send: Callable[[Strategy], Strategy]

    def plan(self, server_round: int, state: State | None, client: int) -> ClientPlan:
        """Calls `plan` with the state of the server, for one client."""
        sent = [n for n in made_up.shapes(self.strategy) if not n.endswith(self.strategy.personal)]
        with self.blame(server_round, "plan"):
            given = self.hand(server_round, "the state", state or {})
            plan = call(self.strategy.plan, server_round, state=given, client=client)
            declared.expect_plan(plan, made_up.known_names(self.strategy))
            returned.expect_plan(plan, sent)
        return plan

    def broadcast(self, server_round: int, model: State, state: State) -> State:
        """Calls `broadcast`, which must return no tensors or tensors for all names of the model."""
        with self.blame(server_round, "broadcast"):
            sent = self.strategy.broadcast(self.hand(server_round, "the state", state))
            returned.expect_numbers(sent, "the broadcast")
            if sent:
                returned.expect_like(sent, model, "the broadcast")
        return sent

    def drift(self, server_round: int, work: LocalWork, broadcast: State, memory: State) -> State:
        """Calls `drift` for a client; the result must have only names of the client's delta."""
        with self.blame(server_round, "drift"):
            drift = self.send(self.strategy).drift(
                self.hand(server_round, "the broadcast", broadcast),
                self.hand(server_round, "the memory", memory),
            )
            returned.expect_numbers(drift, "the drift")
            of_these = {name: d for name, d in work.delta.items() if name in drift}
            returned.expect_like(drift, of_these, "the drift")
        return drift

    def report(
        self, server_round: int, work: LocalWork, broadcast: State, memory: State
    ) -> tuple[State, State]:
        """Calls `report`; returns the client's report, and its new memory as a client stores it."""
        given = replace(work, delta=self.hand(server_round, "the delta", work.delta))
        with self.blame(server_round, "report"):
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

    def aggregate(
        self, server_round: int, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State, State]:
        """Calls `aggregate` and `metrics`.

        Args:
            server_round: The number of the round, from 1.
            model: The tensors of the global model before the round.
            updates: The updates of this round.
            state: The state of the strategy before the round.

        Returns:
            The tensors of the new model; the products of the merged pairs, by path; and the new
            state.
        """
        given = [
            replace(
                update,
                delta=self.hand(server_round, "an update", update.delta),
                report=self.hand(server_round, "a report", update.report),
            )
            for update in updates
        ]
        before = self.hand(server_round, "the model", model)
        known = self.hand(server_round, "the state", state)
        plan = self.plan(server_round, state, made_up.CLIENTS[0])
        context = context_of(server_round, updates)
        with self.blame(server_round, "aggregate", f" with {len(updates)} of 4 clients"):
            pair = call(self.strategy.aggregate, before, given, known, context=context)
            new, after = returned.expect_pair(pair, "aggregate", "(model, state)")
            returned.expect_numbers(after, "the new state")
            shapes = made_up.shapes(self.strategy)
            rest, products = returned.expect_model(new, model, shapes, plan.restarted)
        with self.blame(server_round, "metrics"):
            shown = self.hand(server_round, "the new model", rest)
            after = self.hand(server_round, "the new state", after)
            returned.expect_metrics(self.strategy.metrics(shown, given, after))
        return rest, products, after

    def should_stop(self, server_round: int, result: RoundResult) -> None:
        """Calls `should_stop`, which must return True or False."""
        with self.blame(server_round, "should_stop"):
            returned.expect_answer(self.strategy.should_stop(server_round, result))

    def blame(
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

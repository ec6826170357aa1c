"""The contract of an aggregation strategy: one frozen dataclass for the server and the clients.

A strategy says how the server combines the clients' updates, and may say what clients train. A
strategy is a frozen, keyword-only dataclass whose fields are its hyper-parameters. An instance
does not store anything between rounds. The methods of a strategy take and return the tensors that
must be remembered: `state` on the server, and `memory` at a client. So a strategy can be sent to
worker processes, and a run can be stored in checkpoints and repeated.

Only the method `aggregate`, which runs on the server, must be written. The following class is a
complete FedAvg (arXiv 1602.05629):

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Mine(Strategy):
    ...     def aggregate(self, model, updates, state):
    ...         return averaged(model, updates), state

All other methods are optional. A round calls the methods in this order (the arguments of
``report(...)`` are work, broadcast and memory):

    before   objection(config, participants)                    why this strategy cannot run
    server   select(round, drawn, clients, state)               which clients take part
    server   plan(round), broadcast(state)                      what clients train and receive
    client   penalty(parameters, anchor), in every step         a term of the loss
    client   drift(broadcast, memory); trains; report(...)      corrections of the training steps
    server   aggregate(model, updates, state)                   the next model
    server   metrics(model, updates, state)                     numbers for `rounds.jsonl`
    after    should_stop(round, result)                         True ends the run early

Two methods may declare further arguments. The caller passes only the arguments that a method
declares (`strategy.extras`):

    plan(self, server_round, *, state, client)            the server's state; the plan's client
    aggregate(self, model, updates, state, *, context)    the round and its failed clients

`contract` has the class `Strategy`, `values` has the dataclasses of its arguments and results, and
`moving` has the arithmetic that most strategies need. `strategies/README.md` explains how to write
a strategy on one page. `fl_vitlora.lowrank` has the algebra of low-rank pairs, and
`fl_vitlora.testing` checks a strategy.
"""

from fl_vitlora.strategy.contract import Strategy
from fl_vitlora.strategy.moving import averaged, moved, proximal, shares
from fl_vitlora.strategy.values import (
    SEVERAL,
    ClientPlan,
    LocalWork,
    RoundContext,
    RoundResult,
    Update,
)

__all__ = [
    "SEVERAL",
    "ClientPlan",
    "LocalWork",
    "RoundContext",
    "RoundResult",
    "Strategy",
    "Update",
    "averaged",
    "moved",
    "proximal",
    "shares",
]

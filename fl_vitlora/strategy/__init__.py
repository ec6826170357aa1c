"""The contract of an aggregation strategy: both halves of the algorithm in one frozen value.

A strategy is a frozen, keyword-only dataclass whose fields are its hyper-parameters. It keeps no
state of its own; what it must remember from round to round it takes and returns, on the server as
`state`, at a client as `memory`. So it can be sent to workers, checkpointed, and run again.

Only `aggregate`, the server's half, must be written. The whole of FedAvg (arXiv 1602.05629):

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Mine(Strategy):
    ...     def aggregate(self, model, updates, state):
    ...         return averaged(model, updates), state

Everything else is optional. A round calls, in this order:

    before   objection(config, participants)                    why it cannot be run
    server   select(round, drawn, clients, state)               which clients take part
    server   plan(round), broadcast(state)                      what clients train and receive
    client   penalty(parameters, anchor), in every step         a term of the loss
    client   drift(broadcast, memory); trains; report(...)      control variates
    server   aggregate(model, updates, state)                   the next model
    server   metrics(model, updates, state)                     numbers for `rounds.jsonl`
    after    should_stop(round, result)                         True ends the run early

Two methods receive more if they name it among their arguments (`strategy.extras`):

    plan(self, server_round, *, state, client)         the state; the client that the plan is for
    aggregate(self, model, updates, state, *, context)    the round and its failures

`contract` has the class, `values` what it takes and returns, and `moving` the arithmetic that most
strategies need. `strategies/README.md` teaches all of it on one page; `fl_vitlora.lowrank` has the
algebra of low-rank pairs; `fl_vitlora.testing` checks a strategy.
"""

from fl_vitlora.strategy.contract import Strategy
from fl_vitlora.strategy.moving import averaged, moved, shares
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
    "shares",
]

"""What every strategy of Flower must keep to here, checked on a small made-up model.

Flower's own loop is not used: the project's server loop calls the strategy's public methods, one
round after the other. The rules look for what such a run would lose or ignore. The strategies of
this project have a longer list, `fl_vitlora.testing`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from flwr.supercore.task_identity import TaskIdentity

from fl_vitlora.communication.packing import Layout
from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.errors import UserError
from fl_vitlora.federation.evaluation import Answer
from fl_vitlora.federation.failures import Failure
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import LEARNING_RATE, SERVER_ROUND
from fl_vitlora.flower.strategies import strategy_state
from fl_vitlora.flower.strategies.flower_aggregator import FlowerAggregator, own_evaluation
from fl_vitlora.flower.wire import messages
from fl_vitlora.state import State, is_finite
from fl_vitlora.strategy import Strategy, Update, averaged
from fl_vitlora.testing import Finding, made_up_model, made_up_updates
from fl_vitlora.testing.made_up import CLIENTS, RATE
from fl_vitlora.testing.uncalled import uncalled

ROUNDS = 3
CALLED = (
    "configure_train",
    "aggregate_train",
    "configure_evaluate",
    "aggregate_evaluate",
    "privacy_spent",
    "summary",  # Flower's base class demands it
)
Make = Callable[[], FlowerStrategy]


class Rule(NamedTuple):
    """What a strategy of Flower must do.

    Attributes:
        told: The rule in words.
        check: Returns what breaks it, in one line; None if it is kept.
    """

    told: str
    check: Callable[[Make], str | None]


def flower_findings(make: Make) -> list[Finding]:
    """Holds a strategy of Flower to `RULES`.

    Args:
        make: Makes a new instance for four clients, each time that it is called.

    Returns:
        One finding for each rule; only the first where the strategy cannot play a round.
    """
    found: list[Finding] = []
    for rule in RULES:
        try:
            with within_a_run():
                problem = rule.check(make)
        except (UserError, ValueError) as error:
            problem = str(error)
        found.append(Finding(rule.told, problem))
        if problem is not None and rule is RULES[0]:
            break
    return found


@contextlib.contextmanager
def within_a_run() -> Iterator[None]:
    """Lets messages be made as in a run of Flower, which gives every message the run's id."""
    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


def flower_understood(strategy: FlowerStrategy) -> list[str]:
    """Tells what was understood of a strategy: what it replaces, and what nobody will call."""
    own = [n for n in CALLED if not _is_flowers_own(type(strategy), n)]
    unused = uncalled(type(strategy), FlowerStrategy, CALLED)
    measures = own_evaluation(strategy)
    return [
        f"a strategy of Flower; replaces: {', '.join(own) or 'nothing'}",
        f"nobody calls: {', '.join(unused) or 'everything public is called'}"
        if unused
        else "every public method is called",
        *(["its evaluation needs --set evaluation.by=clients"] if measures else []),
    ]


def _is_flowers_own(kind: type[object], name: str) -> bool:
    return getattr(getattr(kind, name, None), "__module__", "flwr").startswith("flwr")


class _Mean(Strategy):
    """Stands for the strategy whose made-up clients train everything."""

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Returns the mean."""
        return averaged(model, updates), state


def _play(
    strategy: FlowerStrategy, first: int = 1, last: int = ROUNDS, missing: int | None = None
) -> State:
    """Plays rounds with made-up clients, of which one may fail in every round."""
    model = made_up_model()
    aggregator = FlowerAggregator(strategy, Layout.of(model), seed=0)
    current = GlobalModel(tensors=model)
    for number in range(first, last + 1):
        config = {SERVER_ROUND: number, LEARNING_RATE: RATE}
        asked = aggregator.instruct(number, current, CLIENTS, config)
        clients = [one.client for one in asked]
        if not clients or not set(clients) <= set(CLIENTS):
            raise UserError(f"round {number}: configure_train sends messages to {clients}")
        there = [client for client in clients if client != missing]
        failures = [Failure.of(number, c, "made up") for c in clients if c == missing]
        updates = made_up_updates(_Mean(), number, there)
        current = aggregator.aggregate(number, current, _noted(updates), failures)
        if not is_finite(current.tensors):
            raise UserError(f"round {number}: the model holds NaN or infinity")
    return current.tensors


def _same(one: State, other: State) -> bool:
    """Returns True if two models have the same bits."""
    return one.keys() == other.keys() and all(torch.equal(one[n], t) for n, t in other.items())


def _noted(updates: Sequence[Update]) -> list[Update]:
    """Returns updates of clients that clipped nothing, should a wrapper ask."""
    report = {messages.NORM_BIT: torch.tensor(1)}
    return [Update(**{**vars(update), "report": report}) for update in updates]


def _plays(make: Make) -> str | None:
    _play(make())
    return None


def _repeats(make: Make) -> str | None:
    if _same(_play(make()), _play(make())):
        return None
    return (
        "the same rounds gave another model the second time; draw from Python's random or numpy's "
        "shared generator, which are seeded for every round"
    )


def _bears_failures(make: Make) -> str | None:
    _play(make(), missing=CLIENTS[0])
    return None


def _evaluates(make: Make) -> str | None:
    model = made_up_model()
    aggregator = FlowerAggregator(make(), Layout.of(model), seed=0)
    answers = [Answer(client, 10, {RIGHT_KEY: (0.5, 1.0)}) for client in CLIENTS]
    aggregator.evaluated(1, GlobalModel(tensors=model), answers)
    return None


def _is_stored(make: Make) -> str | None:
    for name, kind in strategy_state.unstorable(make()).items():
        return f"its {name} is a {kind}, which no checkpoint can hold"
    return None


def _goes_on(make: Make) -> str | None:
    """Compares rounds 2 and 3 of a strategy with those of one that takes up its state."""
    one, other = make(), make()
    _play(one, last=1)
    strategy_state.restore(other, *strategy_state.snapshot(one))
    if _same(_play(one, first=2), _play(other, first=2)):
        return None
    return "after a resume it gives another model than without; keep its memory in attributes"


def _starts_nothing(make: Make) -> str | None:
    if _is_flowers_own(type(make()), "start"):
        return None
    return "start is never called: the rounds are run by this project's server loop"


RULES = (
    Rule("plays rounds, with messages that clients understand, and returns every tensor", _plays),
    Rule("returns the same model when the same rounds are played again", _repeats),
    Rule("goes on without a client that failed", _bears_failures),
    Rule("sums up what clients measure", _evaluates),
    Rule("keeps nothing that a checkpoint cannot hold", _is_stored),
    Rule("goes on after a resume as if nothing had been", _goes_on),
    Rule("leaves the loop over rounds to this project", _starts_nothing),
)

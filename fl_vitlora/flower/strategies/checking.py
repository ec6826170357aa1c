"""The rules that a strategy of Flower must obey in this project, checked on a small made-up model.

This project does not use Flower's own loop over rounds: this project's server loop calls the public
methods of the strategy. The rules find values that this loop would lose, and methods that it would
never call.
`fl_vitlora.testing` has the longer list of rules for this project's own strategies.
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
    "should_stop",
    "summary",  # Flower's base class requires this method
)
Make = Callable[[], FlowerStrategy]


class Rule(NamedTuple):
    """A rule that a strategy of Flower must obey.

    Attributes:
        text: The rule as one line of text for the user.
        check: A function that returns the problem in one line, or None if the strategy obeys the
            rule.
    """

    text: str
    check: Callable[[Make], str | None]


def flower_findings(make: Make) -> list[Finding]:
    """Checks a strategy of Flower against `RULES`.

    Args:
        make: A function that makes a new instance for four clients at every call.

    Returns:
        One finding for each rule. If the strategy cannot run a round, only the first finding is
        returned.
    """
    found: list[Finding] = []
    for rule in RULES:
        try:
            with within_a_run():
                problem = rule.check(make)
        except (UserError, ValueError) as error:
            problem = str(error)
        found.append(Finding(rule.text, problem))
        if problem is not None and rule is RULES[0]:
            break
    return found


@contextlib.contextmanager
def within_a_run() -> Iterator[None]:
    """Sets the task, run and node ids that Flower needs to create messages."""
    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(TaskIdentity, name, value)


def flower_understood(strategy: FlowerStrategy) -> list[str]:
    """Returns lines of text: which methods a strategy replaces, and which are never called."""
    own = [n for n in CALLED if not _is_flowers_own(type(strategy), n)]
    unused = uncalled(type(strategy), FlowerStrategy, CALLED)
    measures = own_evaluation(strategy)
    return [
        f"a strategy of Flower; replaces: {', '.join(own) or 'nothing'}",
        f"never called: {', '.join(unused) or 'everything public is called'}"
        if unused
        else "every public method is called",
        *(["its evaluation needs --set evaluation.by=clients"] if measures else []),
    ]


def _is_flowers_own(kind: type[object], name: str) -> bool:
    """Returns True if a class inherits a method from Flower, or does not have the method."""
    return getattr(getattr(kind, name, None), "__module__", "flwr").startswith("flwr")


class _Mean(Strategy):
    """A strategy whose made-up clients train every tensor."""

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Returns the model moved by the mean of the updates."""
        return averaged(model, updates), state


def _play(
    strategy: FlowerStrategy, first: int = 1, last: int = ROUNDS, missing: int | None = None
) -> State:
    """Runs rounds with made-up clients, and returns the model after the last round.

    Args:
        strategy: The strategy.
        first: Number of the first round.
        last: Number of the last round.
        missing: A client that fails in every round; None if no client fails.

    Raises:
        UserError: If the strategy asks clients that do not exist, or the model is not finite.
    """
    model = made_up_model()
    aggregator = FlowerAggregator(strategy, Layout.of(model), seed=0)
    current = GlobalModel(tensors=model)
    for number in range(first, last + 1):
        config = {SERVER_ROUND: number, LEARNING_RATE: RATE}
        asked = aggregator.instruct(number, current, CLIENTS, config)
        clients = [instruction.client for instruction in asked]
        if not clients or not set(clients) <= set(CLIENTS):
            raise UserError(
                f"round {number}: configure_train must send messages to one or more participants "
                f"of the round, and to no other client; got messages to {clients}"
            )
        there = [client for client in clients if client != missing]
        failures = [Failure.of(number, c, "made up") for c in clients if c == missing]
        updates = made_up_updates(_Mean(), number, there)
        current = aggregator.aggregate(number, current, _noted(updates), failures)
        if not is_finite(current.tensors):
            raise UserError(f"round {number}: the model holds NaN or infinity")
    return current.tensors


def _same(a: State, b: State) -> bool:
    """Returns True if two models have the same bits."""
    return a.keys() == b.keys() and all(torch.equal(a[n], t) for n, t in b.items())


def _noted(updates: Sequence[Update]) -> list[Update]:
    """Adds to each update a report that the update was clipped; Flower's wrappers need a report."""
    report = {messages.NORM_BIT: torch.tensor(1)}
    return [Update(**{**vars(update), "report": report}) for update in updates]


def _plays(make: Make) -> str | None:
    """Runs some rounds; `_play` raises an error if a round fails."""
    _play(make())
    return None


def _repeats(make: Make) -> str | None:
    """Runs the same rounds twice and compares the models."""
    if _same(_play(make()), _play(make())):
        return None
    return (
        "the same rounds gave another model the second time; draw random numbers only from "
        "Python's random or numpy's shared generator, which are seeded for every round"
    )


def _bears_failures(make: Make) -> str | None:
    """Runs some rounds in which one client fails."""
    _play(make(), missing=CLIENTS[0])
    return None


def _evaluates(make: Make) -> str | None:
    """Lets the strategy aggregate the clients' evaluation results, which are all equal."""
    model = made_up_model()
    aggregator = FlowerAggregator(make(), Layout.of(model), seed=0)
    answers = [Answer(client, 10, {RIGHT_KEY: (0.5, 1.0)}) for client in CLIENTS]
    aggregator.evaluated(1, GlobalModel(tensors=model), answers)
    return None


def _is_stored(make: Make) -> str | None:
    """Names the first attribute that a checkpoint cannot store."""
    for name, kind in strategy_state.unstorable(make()).items():
        return f"the attribute {name} is a {kind}, which a checkpoint cannot store"
    return None


def _goes_on(make: Make) -> str | None:
    """Compares rounds 2 and 3 of a strategy and of a copy that is restored after round 1."""
    unbroken, resumed = make(), make()
    _play(unbroken, last=1)
    strategy_state.restore(resumed, *strategy_state.snapshot(unbroken))
    if _same(_play(unbroken, first=2), _play(resumed, first=2)):
        return None
    return "a resumed run gives another model; the strategy must keep its memory in attributes"


def _starts_nothing(make: Make) -> str | None:
    """Refuses a strategy that defines its own `start` method."""
    if _is_flowers_own(type(make()), "start"):
        return None
    return "start is never called: this project's server loop runs the rounds"


RULES = (
    Rule("runs rounds, with messages that clients understand, and returns every tensor", _plays),
    Rule("returns the same model when the same rounds are run again", _repeats),
    Rule("continues without a client that failed", _bears_failures),
    Rule("aggregates the evaluations of clients", _evaluates),
    Rule("keeps only values that a checkpoint can store", _is_stored),
    Rule("gives the same model with and without a resume", _goes_on),
    Rule("leaves the loop over rounds to this project", _starts_nothing),
)

"""Tests of an author's own code against its contract: the rules that the code must obey.

    from fl_vitlora.testing import check_strategy

    def test_my_strategy():
        check_strategy(MyStrategy(rate=0.5))

A strategy is tested on a small made-up model, whatever its algorithm is. The tests look for
mistakes that would make any run wrong: tensors that are lost or have another shape, NaN, memory
outside of the state, results that depend on the order of the updates, changed arguments, and errors
when clients are missing. This command runs the same tests and prints a result for every rule:

    python simulate.py --check-strategy my_strategy --set strategy.rate=0.5

`made_up` makes the model and the deltas (a client's tensors after training minus before). `play`
runs the rounds with made-up clients. `rules` has the rules. `declared` checks a strategy's Python
class, and `returned` checks what the methods of the strategy return. `understood` describes a
strategy to its author. `method`, `predictor`, `observer` and `attack` test fine-tuning methods,
predictors, observers and attacks.
"""

from __future__ import annotations

from typing import NamedTuple

from fl_vitlora.strategy import Strategy
from fl_vitlora.testing.blaming import StrategyError
from fl_vitlora.testing.made_up import made_up_model
from fl_vitlora.testing.observer import ObserverError, check_observer
from fl_vitlora.testing.play import made_up_updates
from fl_vitlora.testing.rules import RULES, Rule
from fl_vitlora.testing.understood import understood

__all__ = [
    "Finding",
    "ObserverError",
    "StrategyError",
    "check_observer",
    "check_strategy",
    "findings",
    "made_up_model",
    "made_up_updates",
    "rules_for",
    "understood",
]


class Finding(NamedTuple):
    """The result of testing one rule.

    Attributes:
        rule: The rule in words.
        problem: One line that says how the rule is broken. The problem is None if the code obeys
            the rule.
    """

    rule: str
    problem: str | None


def check_strategy(strategy: Strategy) -> None:
    """Checks one instance of a strategy against the rules of `fl_vitlora.strategy`.

    The check runs a few rounds with four made-up clients. In the made-up rounds, the methods for
    the server and the methods for clients are called, and `RULES` test the results.

    Args:
        strategy: The strategy with the hyper-parameters that are checked.

    Raises:
        StrategyError: If a rule is broken. The message explains the first broken rule.

    Example:
        >>> import strategies
        >>> check_strategy(strategies.load("fedavg", {}))
    """
    for rule in rules_for(strategy):
        rule.check(strategy)


def rules_for(strategy: Strategy) -> list[Rule]:
    """Returns the rules that apply to a strategy, in the order in which they are tested."""
    return [rule for rule in RULES if rule.concerns(strategy)]


def findings(strategy: Strategy) -> list[Finding]:
    """Checks a strategy by all rules, and returns a finding for each rule.

    If a rule with the attribute `first` is broken, later rules are not tested, because they would
    fail for the same reason.

    Args:
        strategy: The strategy with the hyper-parameters that are checked.

    Returns:
        A list with one finding for each rule that was tested, in the order of `rules_for`.

    Example:
        >>> import strategies
        >>> findings(strategies.load("fedavg", {}))[0]
        Finding(rule='declares only names and values that the contract knows', problem=None)
    """
    found = []
    for rule in rules_for(strategy):
        try:
            rule.check(strategy)
        except StrategyError as error:
            found.append(Finding(rule.told, str(error)))
            if rule.first:
                break
        else:
            found.append(Finding(rule.told, None))
    return found

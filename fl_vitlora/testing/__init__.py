"""What every aggregation strategy must keep to, checked on a small made-up model.

    from fl_vitlora.testing import check_strategy

    def test_my_strategy():
        check_strategy(MyStrategy(rate=0.5))

The checks know no algorithm. They look for what would spoil a run of any: tensors lost or reshaped,
results that are not numbers, hidden memory, dependence on who answered first, inputs that were
written to, a client that is missing. The same from the command line, every rule with its finding:

    python simulate.py --check-strategy my_strategy --set strategy.rate=0.5

`made_up` has the model and the deltas, `play` the rounds, `rules` what is looked for, `declared`
and `returned` what is looked at, `understood` what a person is told first.
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
    """What became of one rule.

    Attributes:
        rule: The rule in words.
        problem: One line on how the rule is broken; None if it is kept.
    """

    rule: str
    problem: str | None


def check_strategy(strategy: Strategy) -> None:
    """Checks one instance of a strategy against the rules of `fl_vitlora.strategy`.

    It plays a few rounds of four made-up clients, both halves, and holds what comes of them to
    `RULES`.

    Args:
        strategy: The strategy with the hyper-parameters that are checked.

    Raises:
        StrategyError: If a rule is broken; the message names the first.

    Example:
        >>> import strategies
        >>> check_strategy(strategies.load("fedavg", {}))
    """
    for rule in rules_for(strategy):
        rule.check(strategy)


def rules_for(strategy: Strategy) -> list[Rule]:
    """Finds the rules that concern a strategy, in their order."""
    return [rule for rule in RULES if rule.concerns(strategy)]


def findings(strategy: Strategy) -> list[Finding]:
    """Does what `check_strategy` does, but goes on and tells what became of the rules.

    It ends early where one of the first is broken, since all others would find the same.

    Args:
        strategy: The strategy with the hyper-parameters that are checked.

    Returns:
        One finding for each rule that was tried, in the order of `rules_for`.

    Example:
        >>> import strategies
        >>> findings(strategies.load("fedavg", {}))[0]
        Finding(rule='says of itself what the contract knows', problem=None)
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

"""Turns mistakes in a strategy's own code into findings: error messages of one line each.

A mistake is an exception in the code, or a returned value that breaks the contract of strategies.
"""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Iterator
from dataclasses import FrozenInstanceError

from fl_vitlora.errors import UserError
from fl_vitlora.strategy import Strategy
from fl_vitlora.strategy.extras import call, wants
from fl_vitlora.testing.returned import ContractError


class StrategyError(ValueError):
    """An error: a strategy breaks a rule of its contract. The message says which rule and where."""


def broken(strategy: Strategy, server_round: int | None, finding: str) -> StrategyError:
    """Returns an error whose message names the strategy, the round and the finding, in one line."""
    where = "" if server_round is None else f"round {server_round}: "
    return StrategyError(f"strategy {type(strategy).__name__}: {where}{finding}")


@contextlib.contextmanager
def blaming(
    strategy: Strategy, server_round: int | None, half: str, who: str, circumstances: str
) -> Iterator[None]:
    """Turns an error that is raised in a ``with`` block into a `StrategyError` of one line.

    Args:
        strategy: The strategy that is checked.
        server_round: The number of the round. The number is None if the method is called outside of
            rounds.
        half: The name of the strategy's method that is called in the block.
        who: The clients for which the method is called, as the end of a sentence.
        circumstances: Text in brackets that says what is special about the tested rounds, for
            example the ranks of the clients. The text is empty if nothing is special.

    Raises:
        StrategyError: If the block raises an error. The message of this error says what is wrong.
        UserError: If the block raises a `UserError`, which is passed on without a change.
    """
    try:
        yield
    except (UserError, StrategyError):
        raise
    except ContractError as error:
        raise broken(strategy, server_round, f"{error}{circumstances}") from None
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}{_line(error, strategy)}".split())
        advice = "" if half == "plan" else _advice(strategy, server_round, error)
        finding = f"{half} fails{who}: {cause}{advice}{circumstances}"
        raise broken(strategy, server_round, finding) from error


def _advice(strategy: Strategy, server_round: int | None, error: Exception) -> str:
    """Returns advice for an error that authors often meet, or an empty text for another error."""
    if isinstance(error, FrozenInstanceError):
        return " (a strategy cannot be changed: return what must be remembered as the state)"
    frozen = () if wants(strategy.plan, "state") else _frozen(strategy, server_round or 1)
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str):
        if error.args[0].endswith(strategy.personal):
            return " (this tensor is personal, so neither model nor deltas have it)"
        if error.args[0].endswith(frozen):
            return " (this tensor was frozen in this round, so deltas do not have it)"
    if frozen and isinstance(error, ValueError) and str(error).startswith("states differ"):
        return (
            " (deltas do not have the tensors that were frozen in this round; "
            "fl_vitlora.strategy.moved adds such deltas to a model)"
        )
    return ""


def _frozen(strategy: Strategy, server_round: int) -> tuple[str, ...]:
    """Returns the endings of the names of tensors that were frozen in a round."""
    return call(strategy.plan, server_round, client=0).frozen


def _line(error: Exception, strategy: Strategy) -> str:
    """Returns the number of the line in a strategy's own file that raised the error, as a text."""
    file = getattr(sys.modules.get(type(strategy).__module__), "__file__", None)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return f", line {lines[-1]}" if lines else ""

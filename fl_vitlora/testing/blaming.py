"""Findings: what a strategy's own code raised, or returned against its contract, in one line."""

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
    """A strategy breaks a rule of its contract; the message says which one and where."""


def broken(strategy: Strategy, server_round: int | None, finding: str) -> StrategyError:
    """Writes a finding in one line."""
    where = "" if server_round is None else f"round {server_round}: "
    return StrategyError(f"strategy {type(strategy).__name__}: {where}{finding}")


@contextlib.contextmanager
def blaming(
    strategy: Strategy, server_round: int | None, half: str, who: str, circumstances: str
) -> Iterator[None]:
    """Turns what a strategy raised, and what is wrong with what it returned, into a finding.

    Args:
        strategy: The strategy.
        server_round: The number of the round; None outside of rounds.
        half: The name of the method that is called.
        who: The clients that it is called for.
        circumstances: What is special about the rounds that are played.

    Raises:
        StrategyError: With the finding.
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
    """Explains some errors that authors meet first."""
    if isinstance(error, FrozenInstanceError):
        return " (what must be remembered belongs into the state)"
    frozen = () if wants(strategy.plan, "state") else _frozen(strategy, server_round or 1)
    if isinstance(error, KeyError) and error.args and isinstance(error.args[0], str):
        if error.args[0].endswith(strategy.personal):
            return " (it is personal, so neither model nor deltas have it)"
        if error.args[0].endswith(frozen):
            return " (it rested in this round, so deltas lack it)"
    if frozen and isinstance(error, ValueError) and str(error).startswith("states differ"):
        return " (what rested in this round is not in deltas; fl_vitlora.strategy.moved helps)"
    return ""


def _frozen(strategy: Strategy, server_round: int) -> tuple[str, ...]:
    """Returns the endings of tensors that rested in a round."""
    return call(strategy.plan, server_round, client=0).frozen


def _line(error: Exception, strategy: Strategy) -> str:
    """Returns the line of a strategy's own file where something was raised."""
    file = getattr(sys.modules.get(type(strategy).__module__), "__file__", None)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    return f", line {lines[-1]}" if lines else ""

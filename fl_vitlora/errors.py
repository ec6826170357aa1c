"""The one exception that means: the user can mend this."""

from __future__ import annotations

import contextlib
import difflib
import reprlib
import traceback
from collections.abc import Iterable, Iterator

MOST_SHOWN = 20
LONGEST_SHOWN = 80


class UserError(ValueError):
    """A mistake in what the user asked for; its message is one line that tells how to mend it."""


def shown(value: object) -> str:
    """Writes a value as Python does, cut short where it is long, deep or in a circle.

    Example:
        >>> shown([1, "two"]), shown([0] * 1000)
        ("[1, 'two']", '[0, 0, 0, 0, 0, 0, ...]')
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = LONGEST_SHOWN
    return short.repr(value)


def unknown(what: str, given: object, choices: Iterable[str]) -> UserError:
    """Says that a name is not known, what there is, and which of it comes nearest.

    Args:
        what: The thing that was named, for example ``"strategy"``.
        given: What the user wrote.
        choices: All valid names.

    Returns:
        The error to raise.

    Example:
        >>> str(unknown("strategy", "fedavgg", ["fedavg", "fedprox"]))
        "unknown strategy 'fedavgg'; did you mean 'fedavg'? (choices: fedavg, fedprox)"
    """
    names = sorted(choices)
    lower = {name.lower(): name for name in names}
    found = difflib.get_close_matches(str(given)[:LONGEST_SHOWN].lower(), lower, n=5, cutoff=0.5)
    near = [lower[name] for name in found]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    few = names if len(names) <= MOST_SHOWN else [*near, f"{len(names)} in all"]
    told = f"choices: {', '.join(few)}" if names else "there is none"
    return UserError(f"unknown {what} {shown(given)}{hint} ({told})")


@contextlib.contextmanager
def blame(strategy: object, server_round: int) -> Iterator[None]:
    """Turns what a strategy's own code raises into one line that names its place."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"strategy {type(strategy).__name__}, round {server_round}: "
            f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        ) from error

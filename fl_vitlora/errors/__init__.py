"""The exception for a user's mistake, `UserError`, and functions that write its message."""

from __future__ import annotations

import contextlib
import difflib
import reprlib
import traceback
from collections.abc import Iterable, Iterator

from fl_vitlora.errors.abbreviations import meant

MOST_SHOWN = 20
LONGEST_SHOWN = 80


class UserError(ValueError):
    """An error that the user can correct. The message is one line that says how to correct it."""


def shown(value: object) -> str:
    """Returns a value as Python writes it (its `repr`), shortened if it is long or nested.

    Example:
        >>> shown([1, "two"]), shown([0] * 1000)
        ("[1, 'two']", '[0, 0, 0, 0, 0, 0, ...]')
    """
    short = reprlib.Repr()
    short.maxstring = short.maxother = LONGEST_SHOWN
    return short.repr(value)


def unknown(
    what: str, given: object, choices: Iterable[str], elsewhere: Iterable[str] = ()
) -> UserError:
    """Returns an error for an unknown name, with the valid names and the most similar of them.

    Args:
        what: A noun for the thing that the user named, for example ``"strategy"``.
        given: The name that the user wrote.
        choices: All valid names.
        elsewhere: Names that are valid in another place, such as settings of another group. The
            error may suggest one of these names, too.

    Returns:
        The error, which the caller raises.

    Example:
        >>> str(unknown("strategy", "fedavgg", ["fedavg", "fedprox"]))
        "unknown strategy 'fedavgg'; did you mean 'fedavg'? (choices: fedavg, fedprox)"
    """
    names, others = sorted(choices), list(elsewhere)
    close = _close(str(given), names, cutoff=0.5)
    ends = {name.rpartition(".")[2]: name for name in others}
    same = meant(given, dict.fromkeys([*names, *others]))
    far = [ends[end] for end in _close(str(given).rpartition(".")[2], ends, cutoff=0.8)]
    near = same or close[:1] or far[:1]
    if not same and far and not _close(str(given), names, cutoff=0.8):
        near = far[:1]
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    few = dict.fromkeys([*near, *close, f"{len(names)} in all"])
    shown_names = names if len(names) <= MOST_SHOWN else few
    told = f"choices: {', '.join(shown_names)}" if names else "there are no choices"
    return UserError(f"unknown {what} {shown(given)}{hint} ({told})")


def _close(given: str, names: Iterable[str], cutoff: float) -> list[str]:
    """Returns the valid names whose spelling is similar to a wrong name, the most similar first.

    Upper and lower case are not distinguished.
    """
    lower = {name.lower(): name for name in names}
    found = difflib.get_close_matches(given[:LONGEST_SHOWN].lower(), lower, n=5, cutoff=cutoff)
    return [lower[name] for name in found]


@contextlib.contextmanager
def errors_named(owner: str, *passed: type[Exception]) -> Iterator[None]:
    """Turns an error inside a `with` block into a `UserError` with one line of text.

    The block runs code that is not part of this project, for example a user's strategy. The text
    names the file and the line in which the error was raised.

    Args:
        owner: A description of the code inside the block, for example "strategy Mine, round 3".
        passed: Types of errors that are raised unchanged; a `UserError` is always raised unchanged.

    Raises:
        UserError: If the code inside the block raises an exception whose type is not in `passed`.
    """
    unchanged: tuple[type[Exception], ...] = (UserError, *passed)
    try:
        yield
    except unchanged:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"{owner}: {type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        ) from error


def blame(strategy: object, server_round: int) -> contextlib.AbstractContextManager[None]:
    """Returns a context manager that turns an error in a strategy's code into one line of text.

    Args:
        strategy: The strategy whose code runs inside the block.
        server_round: The number of the current round.
    """
    return errors_named(f"strategy {type(strategy).__name__}, round {server_round}")

"""Failures: the clients that sent no usable update, with the round and the reason.

The server gets an exception of a client as text, in one of three forms. The workers of a simulation
send a traceback. Flower's nodes send either `<class 'X'>:<'...'>`, where the dots are the message
of the exception, or the message of a `ClientAppException`, which contains the message of the
exception.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

LONGEST = 300  # the largest number of characters of a reason
MOST_NAMED = 3  # the largest number of clients whose reasons are in the error message of a round
FRAME = re.compile(r"^\s+File .*$", re.MULTILINE)  # a frame of a traceback
WRAPPED = re.compile(r"(\s*Exception \w+ occurred\. Message:)+")  # each sender adds one such text
QUOTED = re.compile(r"\s*<class '([^']*)'>:<'(.*)'>\s*", re.DOTALL)
DIVERGED = re.compile(r"a smaller learning rate may help|it reports a loss of ")
SELF_EVIDENT = re.compile(r"([\w.]+\.)?(UserError|ValueError|RuntimeError|WorkerLostError): ")


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A client that sent no usable update.

    Attributes:
        round: The number of the round, from 1.
        client: The number of the client.
        reason: The reason of the failure in one line.
        trace: The error reports of all attempts, including tracebacks if the client sent
            tracebacks.
    """

    round: int
    client: int
    reason: str
    trace: str

    @classmethod
    def of(cls, server_round: int, client: int, *reports: str) -> Failure:
        """Makes a failure from a client's error reports, one report for each attempt.

        The reason is in the first report, because a second failure may be a consequence of the
        first failure.
        """
        traces = dict.fromkeys(map(unwrapped, reports))
        return cls(
            round=server_round,
            client=client,
            reason=first_line(reports[0]),
            trace="\n\nasked again:\n\n".join(traces),
        )


def first_line(report: str) -> str:
    r"""Returns the cause of a failure from the report of an exception.

    Args:
        report: The text: a traceback, Flower's text of an exception, or any other text.

    Returns:
        The first line of the exception's message. If the message is not clear without the type of
        the exception, the line begins with the type.

    Example:
        >>> first_line("Traceback (most recent call last):\n  File ...\nKeyError: 'head'\n")
        "KeyError: 'head'"
        >>> first_line("<class 'ValueError'>:<'no images\nsee above'>")
        'no images'
    """
    *_, after = FRAME.split(unwrapped(report))
    lines = [line for line in after.splitlines() if line.strip() and not line[0].isspace()]
    return SELF_EVIDENT.sub("", lines[0], count=1)[:LONGEST] if lines else "unknown"


def unwrapped(report: str) -> str:
    r"""Removes the text that Flower and Ray add before and after the text of an exception.

    Example:
        >>> unwrapped("<class 'KeyError'>:<''head''>")
        "KeyError: 'head'"
    """
    text = report if "\n" in report else report.replace("\\n", "\n")  # some reports are a `repr`
    kind, text = quoted.groups() if (quoted := QUOTED.fullmatch(text)) else ("", text)
    if wrapped := WRAPPED.match(text):
        return text[wrapped.end() :].strip()
    return f"{kind}: {text}".strip() if kind else text.strip()


def diverged(failures: Sequence[Failure]) -> bool:
    """Returns True if all clients failed because their numbers were not finite or too large.

    Example:
        >>> diverged([Failure.of(1, 0, "its update holds NaN; a smaller learning rate may help")])
        True
        >>> diverged([Failure.of(1, 0, "late")]), diverged([])
        (False, False)
    """
    return bool(failures) and all(DIVERGED.search(one.reason) for one in failures)


def first_reasons(failures: Sequence[Failure]) -> str:
    """Returns a text with the reasons of the first clients' failures, and the number of others.

    Example:
        >>> first_reasons([Failure.of(1, client, "late") for client in range(5)])
        '; client 0: late; client 1: late; client 2: late; and 2 more'
    """
    named = [f"; client {f.client}: {f.reason}" for f in failures[:MOST_NAMED]]
    more = len(failures) - len(named)
    return "".join(named) + (f"; and {more} more" if more else "")

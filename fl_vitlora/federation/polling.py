"""How long the server waits before it looks for replies again.

A look takes time from workers on the same machine, and finds nothing while all of them train. The
replies so far predict the last one: if clients with n images answered within t seconds, all N
images take about t·N/n seconds. The server waits a part of the remaining time. So looks become more
frequent towards the end of a round, when a late look delays the whole run.
"""

from __future__ import annotations

SHARE = 0.25  # the share of the predicted remaining time to wait
LEAST_SECONDS = 0.01  # the shortest wait
MOST_SECONDS = 0.05  # the longest wait, except for slow looks
LOOKS = 3  # a wait is at least as long as this many looks


def pause(elapsed: float, looked: float, *, last: float, answered: int, awaited: int) -> float:
    """Returns the time to wait until the next look.

    Args:
        elapsed: Seconds since the messages were sent.
        looked: Seconds that the last look took.
        last: Seconds from sending until the last reply so far was found.
        answered: The number of images of all clients whose replies have arrived.
        awaited: The number of images of the other clients.

    Returns:
        The seconds until the next look. Before the first reply, the remaining time is assumed to
        equal the time so far.

    Example:
        >>> pause(0.6, 0.0, last=0.6, answered=300, awaited=600)
        0.05
        >>> pause(0.625, 0.0, last=0.5, answered=256, awaited=128)
        0.03125
    """
    rest = last * (answered + awaited) / answered - elapsed if answered else elapsed
    return max(min(SHARE * rest, MOST_SECONDS), LEAST_SECONDS, LOOKS * looked)

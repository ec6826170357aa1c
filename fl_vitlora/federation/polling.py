"""How long the server waits before it looks for replies again.

A look costs time that workers on the same machine could use, and finds nothing while all of them
train. The replies that have come tell when the last one is due: if clients with n images answered
within t seconds, all N images take about t·N/n seconds. The server waits a part of the time that is
left. So looks become more frequent towards the end of a round, when a late look delays everything.
"""

from __future__ import annotations

SHARE = 0.25  # of the time that is foretold,
LEAST_SECONDS = 0.01  # not less than this,
MOST_SECONDS = 0.05  # not more than this,
LOOKS = 3  # nor less than so many looks take


def pause(elapsed: float, looked: float, *, last: float, answered: int, awaited: int) -> float:
    """Returns how long to wait until the next look.

    Args:
        elapsed: Seconds since the messages were sent.
        looked: Seconds that the last look took.
        last: Seconds from sending until the last reply so far was found.
        answered: The number of images of all clients whose replies have arrived.
        awaited: The number of images of the other clients.

    Returns:
        Seconds until the next look. Before the first reply it is assumed that the rest takes as
        long as has passed so far.

    Example:
        >>> pause(0.6, 0.0, last=0.6, answered=300, awaited=600)
        0.05
        >>> pause(0.625, 0.0, last=0.5, answered=256, awaited=128)
        0.03125
    """
    rest = last * (answered + awaited) / answered - elapsed if answered else elapsed
    return max(min(SHARE * rest, MOST_SECONDS), LEAST_SECONDS, LOOKS * looked)

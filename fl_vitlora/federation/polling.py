"""How long the server waits before it looks for replies again.

A look takes time that on the same machine workers could have, and finds nothing as long as all of
them train. When the last reply will come can be foretold from those that have come: where clients
with n images had answered after t seconds, all N are to have after t·N/n. A part of what is left
until then is waited, so that looks become more frequent towards the end of a round, which is when a
late look holds up everybody.
"""

from __future__ import annotations

SHARE = 0.25  # of the time that is foretold,
LEAST_SECONDS = 0.01  # not less than this,
MOST_SECONDS = 0.05  # not more than this,
LOOKS = 3  # nor less than so many looks take


def pause(elapsed: float, looked: float, *, last: float, answered: int, awaited: int) -> float:
    """Tells how long to wait until the next look.

    Args:
        elapsed: Seconds since messages were sent.
        looked: Seconds that the last look took.
        last: Elapsed seconds when the last of the replies was found.
        answered: Images of all clients whose replies are there.
        awaited: Images of the others.

    Returns:
        Seconds; before the first reply as if all took as long again.

    Example:
        >>> pause(0.6, 0.0, last=0.6, answered=300, awaited=600)
        0.05
        >>> pause(0.625, 0.0, last=0.5, answered=256, awaited=128)
        0.03125
    """
    rest = last * (answered + awaited) / answered - elapsed if answered else elapsed
    return max(min(SHARE * rest, MOST_SECONDS), LEAST_SECONDS, LOOKS * looked)

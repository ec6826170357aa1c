"""Computes the time that the server waits before it looks for replies again.

A "look" is one request to Flower for new replies. Each look takes CPU time from the workers on the
same machine, and finds no reply while all workers are training. The replies so far predict the time
of the last reply: if clients with n images have answered within t seconds, all N images take about
t·N/n seconds. The server waits for a share of the remaining time. Therefore the server looks for
replies more often at the end of a round, when a late look delays the whole run.
"""

from __future__ import annotations

SHARE = 0.25  # the server waits for this share of the predicted remaining time
LEAST_SECONDS = 0.01  # the shortest wait
MOST_SECONDS = 0.05  # the longest wait, unless looks are slow
LOOKS = 3  # a wait is at least as long as this number of looks


def pause(elapsed: float, looked: float, *, last: float, answered: int, awaited: int) -> float:
    """Returns the time in seconds that the server waits before it looks for replies again.

    Args:
        elapsed: The time in seconds since the messages were sent.
        looked: The time in seconds that the last look took.
        last: The time in seconds from sending the messages to finding the most recent reply.
        answered: The number of images of all clients whose replies have arrived.
        awaited: The number of images of all clients whose replies are missing.

    Returns:
        The time in seconds until the next look. Before the first reply, the function assumes that
        the remaining time equals the time since the messages were sent.

    Example:
        >>> pause(0.6, 0.0, last=0.6, answered=300, awaited=600)
        0.05
        >>> pause(0.625, 0.0, last=0.5, answered=256, awaited=128)
        0.03125
    """
    rest = last * (answered + awaited) / answered - elapsed if answered else elapsed
    return max(min(SHARE * rest, MOST_SECONDS), LEAST_SECONDS, LOOKS * looked)

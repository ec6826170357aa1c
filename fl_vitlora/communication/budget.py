"""A limit for the bytes of a run: decides whether the run may begin another round."""

from __future__ import annotations

from fl_vitlora.communication.ledger import Ledger


def affords(budget: int | None, ledger: Ledger, server_round: int, *, reserve: int = 0) -> bool:
    """Returns True if enough bytes are left for a round as expensive as the most expensive so far.

    The cost of the first round is not known beforehand, so the first round may begin if any bytes
    are left. A round can still cost more than every earlier round. For example, the round may send
    a group of tensors that is sent only in every n-th round, or a client that was absent may need
    the full state.

    Args:
        budget: The number of bytes that the whole run may send; None means no limit.
        ledger: The ledger (the sizes of all messages) of the run so far.
        server_round: The number of the next round, from 1.
        reserve: The number of bytes that must be left after the round, for a last evaluation.

    Example:
        >>> from fl_vitlora.communication.ledger import Entry
        >>> round_1 = Entry(round=1, client=0, direction="uplink", overhead=40)
        >>> [affords(budget, Ledger([round_1]), 2) for budget in (79, 80, None)]
        [False, True, True]
    """
    if budget is None:
        return True
    sizes = ledger.by_round()
    costliest = max((sizes.get(number, 0) for number in range(1, server_round)), default=1)
    return ledger.total() + costliest + reserve <= budget


def cost_of_evaluation(ledger: Ledger, clients: int) -> int:
    """Returns about how many bytes an evaluation by all clients sends.

    The estimate is the size of the most expensive evaluation so far. Before the first evaluation,
    the estimate is the number of clients times the sum of the largest downlink message and the
    largest uplink message: an evaluation sends each client the model, and each reply is shorter
    than an update.

    Args:
        ledger: The ledger of the run so far.
        clients: The number of all clients.
    """
    evaluations = ledger.by_round("evaluation").values()
    largest = ledger.largest("uplink") + ledger.largest("downlink")
    return max(evaluations, default=clients * largest)

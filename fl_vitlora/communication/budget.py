"""A budget of bytes: whether a run may begin another round."""

from __future__ import annotations

from fl_vitlora.communication.ledger import Ledger


def affords(budget: int | None, ledger: Ledger, server_round: int) -> bool:
    """Tells whether a round may begin: as costly as the costliest so far, it stays in the budget.

    The first round's cost is not known before it; it may begin if the greeting left anything. A
    round may also cost more than all before it: one in which a group travels that rested
    (``every(n)``), or in which somebody returns who must be sent the whole.

    Args:
        budget: Bytes of the whole run; None for as many as it takes.
        ledger: Of the run so far.
        server_round: The one in question, from 1.

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
    return ledger.total() + costliest <= budget

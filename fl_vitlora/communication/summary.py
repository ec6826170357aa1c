"""Sums up the messages of a run for the file `result.json`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from fl_vitlora.communication.carrier import with_flower
from fl_vitlora.communication.ledger import Ledger
from fl_vitlora.communication.link import Link, transfer_seconds


def summarise(ledger: Ledger, link: Link, full: Ledger) -> dict[str, Any]:
    """Sums up the bytes of a run, and the bytes that full fine-tuning would have sent.

    Args:
        ledger: The ledger (the sizes of all messages) of the run.
        link: The network connection that every client is assumed to have.
        full: The ledger of full fine-tuning with FedAvg (`reference.full_fine_tuning`).

    Returns:
        A dictionary with the bytes, transfer times and savings by name. The entry
        `full_fine_tuning_by_round` is a list: the bytes before round 1, then those of each round.
        The entry `saving` is the number of bytes of full fine-tuning divided by the number of bytes
        of the run. The entry `saving_with_flower` is the same ratio, but both numbers include the
        bytes that Flower's transport adds (`carrier`).
    """
    total, groups = ledger.total(), ledger.by_group()
    both = (ledger, full)
    own, whole = (round(sum(transfer_seconds(one, link).values()), 3) for one in both)
    carried, whole_carried = map(with_flower, both)
    sizes = full.by_round()
    return {
        "uplink_bytes": ledger.total("uplink"),
        "downlink_bytes": ledger.total("downlink"),
        "greeting_bytes": ledger.total(server_round=0),
        "payload_bytes": sum(groups.values()),
        "overhead_bytes": total - sum(groups.values()),
        "by_group": groups,
        "messages": len(ledger),
        "with_flower_bytes": carried,
        "full_fine_tuning_bytes": full.total(),
        "full_fine_tuning_by_round": [sizes.get(number, 0) for number in range(max(sizes) + 1)],
        "full_fine_tuning_messages": len(full),
        "full_fine_tuning_with_flower_bytes": whole_carried,
        "saving": full.total() / total,
        "saving_with_flower": whole_carried / carried,
        "transfer_seconds": own,
        "full_fine_tuning_transfer_seconds": whole,
    }


def reached(
    target: float | None, accuracy: Sequence[float | None], ledger: Ledger, link: Link
) -> dict[str, Any] | None:
    """Returns the round that first reached the target accuracy, and the bytes sent until then.

    Args:
        target: The target accuracy in (0, 1], or None for no target.
        accuracy: The accuracy after each round; None for a round that was not evaluated.
        ledger: The ledger (the sizes of all messages) of the run.
        link: The network connection that every client is assumed to have.

    Returns:
        A dictionary of numbers by name, or None without a target. Round, bytes and seconds are None
        if the target was never reached.

    Example:
        >>> from fl_vitlora.communication.ledger import Entry
        >>> sent = [Entry(round=n, client=0, direction="uplink", overhead=5) for n in range(4)]
        >>> line = Link(uplink=1, downlink=1, latency=2.0)
        >>> reached(0.9, [None, 0.92, 0.95], Ledger(sent), line)
        {'accuracy': 0.9, 'reached': True, 'round': 2, 'bytes': 15, 'transfer_seconds': 6.0}
    """
    if target is None:
        return None
    sizes, seconds = ledger.by_round(), transfer_seconds(ledger, link)
    sent = list(accumulate(sizes.get(number, 0) for number in range(len(accuracy) + 1)))
    spent = list(accumulate(seconds.get(number, 0.0) for number in range(len(accuracy) + 1)))
    numbered = enumerate(accuracy, start=1)
    first = next((n for n, value in numbered if value is not None and value >= target), None)
    return {
        "accuracy": target,
        "reached": first is not None,
        "round": first,
        "bytes": None if first is None else sent[first],
        "transfer_seconds": None if first is None else round(spent[first], 3),
    }

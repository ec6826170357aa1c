"""Reads the mean update out of a secure sum; the server calls this function."""

from __future__ import annotations

from collections.abc import Mapping

from fl_vitlora.communication.fixed_point import MOST_LOSS, Words, decode
from fl_vitlora.communication.packing import Layout
from fl_vitlora.privacy.secure_sum import Roster
from fl_vitlora.strategy import SEVERAL, Update


def open_sum(
    total: Words,
    roster: Roster,
    layout: Layout,
    *,
    samples: Mapping[int, int],
    steps: Mapping[int, int],
    population: int,
) -> tuple[Update, int]:
    """Returns the mean update of a secure sum.

    Args:
        total: The sum that `secure_sum.add_up` returned.
        roster: The roster of the sum, with its members and their shares.
        layout: The names and shapes of the tensors in the sum.
        samples: The number of images of each client in the sum.
        steps: The number of optimiser steps of each client in the sum.
        population: The number of all clients of the run.

    Returns:
        The mean, weighted by the shares, and the number of scalars that clients clipped to the
        range ±R.

    Raises:
        ValueError: If the masks have not cancelled, because clients got different instructions.
    """
    left = frozenset(samples)
    share = roster.share(left)
    mean = decode(total, layout, limit=roster.limit, share=share)
    if mean.clipped > len(left) * len(total) or not 0 <= mean.loss <= MOST_LOSS:
        raise ValueError(
            f"the masks of round {roster.round} did not cancel, because clients got different "
            "instructions, or built different models"
        )
    update = Update(
        client=SEVERAL,
        samples=sum(samples.values()),
        loss=mean.loss,
        delta=mean.delta,
        steps=round(sum(roster.of(client).share * steps[client] for client in left) / share),
        report=mean.report,
        members=len(left),
        population=population,
    )
    return update, mean.clipped

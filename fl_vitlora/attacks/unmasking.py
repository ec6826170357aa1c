"""Reads the update of one client out of a secure sum: the common part of the attacks on masks.

Client v sends y = x + mask(seeds). A server that knows the seeds that v shares with all other
clients subtracts the mask and gets x, the words of the update in fixed point.

Letters in shapes: W words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import HostileServerView, Order
from fl_vitlora.communication.fixed_point import ONE, Words, decode
from fl_vitlora.communication.packing import Layout
from fl_vitlora.privacy.secure_sum import FEWEST, Member, Roster, Seeds, mask
from fl_vitlora.state import State, l2_norm

NUMBERS, ERROR, REFUSED = (
    "numbers of the update read",
    "relative error of the update",
    "clients that refused",
)
FIGURES = (NUMBERS, ERROR, REFUSED)


@dataclass(frozen=True, kw_only=True)
class Read:
    """A guess: the update of one client.

    Attributes:
        client: The number of the client.
        delta: The update; zeros where the server has read nothing.
        step: The distance between two neighbouring fixed-point numbers.
        refused: The share of the asked clients that refused a message.
    """

    client: int
    delta: State = field(repr=False)
    step: float
    refused: float


class Unmasking(Attack[HostileServerView, Read]):
    """An attack on one client of a secure sum; a subclass says how it gets the seeds."""

    adversaries = (HostileServerView,)
    figures = FIGURES

    def lacks(self, view: HostileServerView) -> str:
        """Returns why the run has no secure sum that can be attacked; "" if it has one."""
        if not view.public.settings.privacy.secure_aggregation:
            return "there are no secure sums; the server sees each update"
        return lacks_clients(view)

    def score(self, guess: Read, truth: Truth) -> Sequence[Figure]:
        """Compares the update that was read with the update that the client sent.

        A number counts as read if it differs from the client's number by at most half a fixed-point
        step. The figure by chance is that of guessing zeros, which is right for numbers that have
        not changed.
        """
        true = truth.updates[guess.client]
        near = [_near(guess.delta[name], tensor, guess.step) for name, tensor in true.items()]
        zero = [_near(torch.zeros_like(tensor), tensor, guess.step) for tensor in true.values()]
        apart = {name: guess.delta[name] - tensor for name, tensor in true.items()}
        return [
            Figure(name=NUMBERS, value=_share(near), floor=_share(zero), ceiling=100),
            Figure(name=ERROR, value=100 * l2_norm(apart) / max(l2_norm(true), 1e-30)),
            Figure(name=REFUSED, value=100 * guess.refused),
        ]


def lacks_clients(view: HostileServerView) -> str:
    """Returns why there is no secure sum of enough clients; "" if there is one."""
    least = max(FEWEST, view.public.settings.min_clients)
    return f"a sum takes {least} clients" if len(view.sum_clients()) < least else ""


def members_of(view: HostileServerView, clients: Sequence[int]) -> tuple[int, ...]:
    """Returns the victim and as many other clients as a sum needs, sorted by number."""
    least = max(FEWEST, view.public.settings.min_clients)
    others = [client for client in clients if client != view.client]
    return tuple(sorted([view.client, *others[: least - 1]]))


def roster_of(view: HostileServerView, keys: dict[int, bytes]) -> Roster:
    """Returns the roster of round 1, in which all clients weigh the same."""
    members = [Member(client=c, share=1 / len(keys), key=keys[c]) for c in sorted(keys)]
    limit = view.public.settings.privacy.range
    return Roster(round=1, members=tuple(members), limit=limit)


def honest_order(view: HostileServerView) -> Order:
    """Returns the message (the `Order`) that an honest server sends in round 1."""
    return Order(tensors=view.start, round=1, rate=view.public.rates[0])


def read(
    view: HostileServerView, roster: Roster, words: Words | None, seeds: Seeds, refused: float
) -> Read:
    """Returns the update in the masked words of the victim.

    Args:
        view: The view of the hostile server.
        roster: The roster by which the victim masked its update.
        words: The masked words (W,); None if the victim has sent none.
        seeds: The seeds that the victim shares with the others, by client.
        refused: The share of the asked clients that refused a message.
    """
    layout, share = Layout.of(view.start), roster.of(view.client).share
    delta = {name: torch.zeros(shape) for name, shape in layout.shapes}
    if words is not None and seeds.keys() == roster.clients - {view.client}:
        opened = words - mask(view.client, seeds, len(words))
        delta = decode(opened, layout, limit=roster.limit, share=share).delta
    step = roster.limit / (ONE * share)
    return Read(client=view.client, delta=delta, step=step, refused=refused)


def _near(found: Tensor, true: Tensor, step: float) -> Tensor:
    rounding = 2.0**-23 * true.abs()  # of float32
    return (found - true).abs() <= step / 2 + rounding


def _share(near: Sequence[Tensor]) -> float:
    return 100 * float(torch.cat([tensor.flatten() for tensor in near]).double().mean())

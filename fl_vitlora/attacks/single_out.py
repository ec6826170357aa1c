"""Makes a secure sum in which the update of one client outweighs all others.

Participants, public keys, signatures and masks of such a sum are genuine, and the server opens
nothing but the sum. There are two ways, which can be combined:

* *Silence.* A client does not see what the server sends to the others. The server sends a message
  to one client, the victim, and a copy of this message with the learning rate 0 to all others. The
  others do not change the model, so the sum is the update of the victim. In this project the attack
  fails: the masks depend on the server's message (`privacy.agreement.told`). Masks of clients with
  different messages do not cancel. Therefore the sum stays hidden.
* *Weights.* The server states the share of each client in the mean. It gives the victim almost the
  whole share. Therefore the others hardly count. Clients with a limit (``max_client_share``) refuse
  such a roster.

Source: Pasquini et al., "Eluding secure aggregation in federated learning via model inconsistency",
CCS 2022 (arXiv 2111.07380). In the paper, the model of the others gives gradients of zero.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fl_vitlora.attacks.unmasking import Read, honest_order, members_of
from fl_vitlora.attacks.views import HostileServerView, Order
from fl_vitlora.communication.fixed_point import ONE, decode
from fl_vitlora.communication.packing import Layout
from fl_vitlora.privacy.secure_sum import Member, Roster
from fl_vitlora.state import State

LEAST_SHARE = 1e-9  # the share of each other client, if the victim gets almost the whole


class SingleOut:
    """A conversation with one client through secure sums; each message takes a round of one run.

    Args:
        view: What the hostile server has.
        silence: True if all others get the learning rate 0.
        outweigh: True if the victim gets almost the whole share. Otherwise all weigh the same.
    """

    def __init__(self, view: HostileServerView, *, silence: bool, outweigh: bool) -> None:
        self._victim, self._limit = view.client, view.public.settings.privacy.range
        self._layout, clients = Layout.of(view.start), view.sum_clients()
        self._clients = {client: clients[client] for client in members_of(view, list(clients))}
        self._keys = {client: one.key() for client, one in self._clients.items()}
        others = len(self._clients) - 1
        self._share = 1 - LEAST_SHARE * others if outweigh else 1 / (others + 1)
        self._total = self._share if silence or outweigh else 1.0
        self._silence, self._rounds, self._rates = silence, 0, view.public.rates
        self.refusals = 0

    @property
    def clients(self) -> int:
        """Returns the number of clients in each sum."""
        return len(self._clients)

    @property
    def step(self) -> float:
        """Returns the distance of two neighbouring fixed-point numbers, in units of the update."""
        return self._limit / (ONE * self._total)

    def ask(self, order: Order) -> State | str:
        """Sends a message (the `Order`) to the victim, and returns its update.

        Returns:
            The update, as the sum shows it; or a text with the reason why there is none. The
            attribute `refusals` then has the number of clients that refused their message.
        """
        self._rounds += 1
        roster, total, reasons = self._roster(), np.zeros(0, dtype=np.uint32), list[str]()
        answers = {client: one.vouch(roster) for client, one in self._clients.items()}
        signatures = {c: one for c, one in answers.items() if not isinstance(one, str)}
        for client, one in self._clients.items():
            quiet = self._silence and client != self._victim
            rate = 0.0 if quiet else self._planned(order.rate)
            own = replace(order, round=self._rounds, rate=rate)
            words = one.train(own, roster, signatures)
            if isinstance(words, str):
                reasons.append(words)
            else:
                total = total + words if len(total) else words
        self.refusals = len(reasons)
        if reasons:
            return reasons[0]
        layout = self._layout.without(self._layout.ending_with(order.frozen))
        found = decode(total, layout, limit=self._limit, share=self._total)
        if found.clipped > self.clients * len(total):  # the clients count what they clip
            return "the masks do not cancel"
        return found.delta

    def _planned(self, rate: float) -> float:
        """Returns the planned rate of this round in place of the planned rate of another round."""
        last = min(self._rounds, len(self._rates))
        return self._rates[last - 1] if rate in self._rates else rate

    def _roster(self) -> Roster:
        rest = (1 - self._share) / (len(self._clients) - 1)
        members = tuple(
            Member(client=c, share=self._share if c == self._victim else rest, key=self._keys[c])
            for c in sorted(self._clients)
        )
        return Roster(round=self._rounds, members=members, limit=self._limit)


def read_alone(view: HostileServerView, single: SingleOut) -> Read:
    """Returns the victim's update after an honest message; zeros if a client refuses."""
    view.clock.check()
    answer = single.ask(honest_order(view))
    if isinstance(answer, str):
        answer = {name: torch.zeros_like(tensor) for name, tensor in view.start.items()}
    return Read(
        client=view.client,
        delta=answer,
        step=single.step,
        refused=single.refusals / single.clients,
    )

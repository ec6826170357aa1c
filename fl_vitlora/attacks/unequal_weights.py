"""A hostile server reads the update of one client in a secure sum, by giving it all the weight.

The server states the share of each client in the mean. If one client has almost the whole share,
the sum is almost the update of this client (`single_out`). All clients get the same honest model,
and sign the same roster. Clients with a limit of shares (``max_client_share``) refuse such a
roster.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl_vitlora.attacks.single_out import SingleOut, read_alone
from fl_vitlora.attacks.unmasking import Read, Unmasking
from fl_vitlora.attacks.views import HostileServerView


@dataclass(frozen=True, kw_only=True)
class UnequalWeights(Unmasking):
    """The attack on one client of a secure sum."""

    goal = "The update of one client in a secure sum, by a share of almost 1 for this client."

    def guess(self, view: HostileServerView) -> Read:
        """Lets a sum take place in which the victim has almost the whole share."""
        return read_alone(view, SingleOut(view, silence=False, outweigh=True))

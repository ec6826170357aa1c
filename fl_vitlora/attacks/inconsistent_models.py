"""A hostile server reads the update of one client in a secure sum, by silencing all others.

All other clients get the learning rate 0. If no mask remained, the sum would then be the update of
the victim (`single_out`). Signed rosters do not prevent this, and neither does
``privacy.reveal_seeds=false``, because the server changes no roster and asks for no seed. The
attack fails because each mask depends on the server's instruction (`privacy.agreement.told`): the
masks of clients that got different instructions do not cancel.
"""

from __future__ import annotations

from dataclasses import dataclass

from fl_vitlora.attacks.single_out import SingleOut, read_alone
from fl_vitlora.attacks.unmasking import Read, Unmasking
from fl_vitlora.attacks.views import HostileServerView


@dataclass(frozen=True, kw_only=True)
class InconsistentModels(Unmasking):
    """The attack on one client of a secure sum."""

    goal = "The update of one client in a secure sum, by a learning rate of 0 for all others."

    def guess(self, view: HostileServerView) -> Read:
        """Lets a sum take place in which only the victim trains."""
        return read_alone(view, SingleOut(view, silence=True, outweigh=False))

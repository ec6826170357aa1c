"""A hostile server reads the update of one client in a secure sum, by silencing all others.

All other clients get the learning rate 0, so that the sum would be the update of the victim
(`single_out`). Signed rosters do not prevent this, and neither does
``privacy.reveal_seeds=false``, because the server changes no roster and asks for no seed. What
prevents it is that masks depend on the instruction (`privacy.agreement.told`): if clients got
different ones, their masks do not cancel.
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

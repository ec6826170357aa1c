"""The server's instruction to one client in one round.

The class `Instruction` does not depend on the format of messages.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.state import State
from fl_vitlora.strategy import ClientPlan

# Names of a round's scalars, in `Instruction.config` and in messages.
SERVER_ROUND = "server-round"
LEARNING_RATE = "learning-rate"
LOCAL_EPOCHS = "local-epochs"  # epochs of one client in one round, if the strategy sets them
PROXIMAL_MU = "proximal-mu"  # the name that Flower's FedProx uses

Scalar = int | float | str | bytes | bool
ConfigValue = Scalar | list[int] | list[float] | list[str] | list[bytes] | list[bool]


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """The instruction to one client in one round.

    Attributes:
        client: The number of the client.
        model: The global model that the client starts from.
        config: The scalars and lists of the round, by name.
        plan: The strategy's plan for the client in this round: for example, the tensors that are
            frozen, and the weight of the proximal penalty.
        broadcast: The tensors that the strategy sends in addition to the model. If a tensor is
            frozen, its broadcast is not sent.
        measured: Endings of the names of tensors that clients measure instead of training. These
            tensors are not sent, because the clients know their initial values.
    """

    client: int
    model: GlobalModel
    config: Mapping[str, ConfigValue]
    plan: ClientPlan = field(default_factory=ClientPlan)
    broadcast: State = field(default_factory=dict)
    measured: tuple[str, ...] = ()

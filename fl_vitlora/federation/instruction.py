"""What the server asks of one client in one round, as a value that knows nothing of messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.state import State
from fl_vitlora.strategy import ClientPlan

# Names of a round's scalars, in `Instruction.config` and in messages.
SERVER_ROUND = "server-round"
LEARNING_RATE = "learning-rate"
LOCAL_EPOCHS = "local-epochs"  # of one client in one round, where a strategy asks for a number
PROXIMAL_MU = "proximal-mu"  # the name that Flower's FedProx uses

Scalar = int | float | str | bytes | bool
ConfigValue = Scalar | list[int] | list[float] | list[str] | list[bytes] | list[bool]


@dataclass(frozen=True, kw_only=True)
class Instruction:
    """What one client is asked to do in one round.

    Attributes:
        client: The number of the client.
        model: The global model that the client starts from.
        config: The round's scalars and lists, by name.
        plan: The plan of the round: tensors that rest, and the penalty that clients add.
        broadcast: The tensors that the strategy sends beside the model.
    """

    client: int
    model: GlobalModel
    config: Mapping[str, ConfigValue]
    plan: ClientPlan = field(default_factory=ClientPlan)
    broadcast: State = field(default_factory=dict)

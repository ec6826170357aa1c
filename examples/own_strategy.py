"""Write an aggregation strategy that depends on the number of the round, check it, and run it.

    python own_strategy.py

Look at the bytes of each round: in the first two rounds the clients train and send only the head,
and afterwards all tensors. The learning rate is halved every four rounds.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import fl_vitlora as fv
from fl_vitlora.config import setting
from fl_vitlora.state import State
from fl_vitlora.strategy import ClientPlan, Strategy, Update, averaged
from fl_vitlora.testing import check_strategy


@dataclass(frozen=True, kw_only=True)
class HeadFirst(Strategy):
    """FedAvg whose clients train only the head in the first rounds.

    Attributes:
        head_rounds: The number of rounds in which only the head is trained.
        halved_every: The number of rounds after which the learning rate is halved.
    """

    sums_suffice = True  # the mean of the updates is enough, so secure aggregation is possible

    head_rounds: int = setting(2, "The number of rounds that train only the head.", "[0, inf)")
    halved_every: int = setting(4, "The rounds after which the rate is halved.", "[1, inf)")

    def plan(self, server_round: int) -> ClientPlan:
        """Returns the instructions for the clients of a round; the first round is 1."""
        frozen = (".lora_A", ".lora_B", "patch_embed.proj.weight", "patch_embed.proj.bias")
        return ClientPlan(
            frozen=frozen if server_round <= self.head_rounds else (),
            rate=0.5 ** ((server_round - 1) // self.halved_every),
        )

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Adds the mean of the clients' changes, weighted by their numbers of images."""
        return averaged(model, updates), state


if __name__ == "__main__":
    check_strategy(HeadFirst())  # raises an error that names the first broken rule
    run = fv.run({"clients": 8, "rounds": 6}, strategy=HeadFirst(head_rounds=2))
    for line in run.history:
        kilobytes = line["uplink_bytes"] / 1000
        print(f"round {line['round']}: {line['accuracy']:.1%}, clients sent {kilobytes:.0f} kB")

"""The values of a round: the plan, the update of a client, and the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_vitlora.state import State

SEVERAL = -1  # the client of an update that is the mean of several


@dataclass(frozen=True, kw_only=True)
class Update:
    """What one client sent back.

    Attributes:
        client: Number of its shard; -1 for the mean of several (`members`).
        samples: The number of images that the client trained on.
        loss: Its mean training loss.
        delta: Its tensors after training minus those it had received, in the model's shapes: a
            client of a smaller rank has zeros beyond it.
        steps: Optimiser steps that it took.
        rank: The rank of the client's low-rank matrices, if clients differ in that.
        report: The tensors that `Strategy.report` returned at the client.
        members: The number of clients in the mean; more than one where the server sees only sums.
        population: The number of all clients, in this round or not.
    """

    client: int
    samples: int
    loss: float
    delta: State
    steps: int = 1
    rank: int | None = None
    report: State = field(default_factory=dict)
    members: int = 1
    population: int = 1


@dataclass(frozen=True, kw_only=True)
class ClientPlan:
    """What clients do in a round, as far as it can be said without code.

    The plan of a round is the same for every participant, except for `epochs` and `rate`.

    Attributes:
        frozen: Endings of the names of tensors that clients neither train nor send in this round,
            for example ``(".lora_A",)``. Clients remember them: they are sent down again only when
            they have changed, and their initial values never.
        restarted: Endings of tensors that are at their initial values again in every round, so
            that they are never sent down; `aggregate` must return them as it was given them.
        proximal_mu: Weight μ of the penalty μ/2 · ‖w - w_global‖². This is the older way;
            `Strategy.penalty` can express any penalty.
        epochs: Passes over the shard in this round; None for the number of the run.
        rate: Factor on the learning rate of the round, positive.
    """

    frozen: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    proximal_mu: float = 0.0
    epochs: int | None = None
    rate: float = 1.0


@dataclass(frozen=True, kw_only=True)
class LocalWork:
    """What a client's training came to in a round.

    Attributes:
        delta: Its tensors after training minus those before, without the frozen ones.
        steps: Optimiser steps that it took.
        rate: The learning rate η of this client in the round.
    """

    delta: State
    steps: int
    rate: float


@dataclass(frozen=True, kw_only=True)
class RoundContext:
    """The circumstances of a round, for an `aggregate` that names its argument ``context``.

    Attributes:
        round: The number of the round, from 1.
        participants: The numbers of the clients that were asked for an update, sorted.
        failures: The reason in one line for each client that sent no usable update.
    """

    round: int
    participants: tuple[int, ...]
    failures: Mapping[int, str]


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """The result of a round, once its model is measured.

    Attributes:
        accuracy: The accuracy of the round's model on the test images, in [0, 1].
        loss: The mean cross-entropy of the round's model on the test images.
        train_loss: The mean training loss of the participants, weighted by images.
        participants: The numbers of the clients whose updates were aggregated.
    """

    accuracy: float
    loss: float
    train_loss: float
    participants: tuple[int, ...]

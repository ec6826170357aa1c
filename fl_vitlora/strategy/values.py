"""The dataclasses of a round: the plan, the work and update of a client, and the result."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fl_vitlora.state import State

SEVERAL = -1  # `Update.client` of an update that is the mean of several clients


@dataclass(frozen=True, kw_only=True)
class Update:
    """The update of one client, or the mean of several updates.

    Attributes:
        client: The number of the client; -1 (`SEVERAL`) if the update is a mean of several clients.
        samples: The number of images on which the client trained.
        loss: The mean training loss of the client in this round.
        delta: The client's tensors after training minus before, in the shapes of the model. If the
            client has a smaller rank, rows and columns beyond this rank are zero.
        steps: The number of optimiser steps.
        rank: The rank of the client's low-rank matrices; None if all clients have the same rank.
        report: The tensors that `Strategy.report` returned at the client.
        members: The number of clients in the mean. `members` is above 1 only if the server sees
            only the sum of the updates.
        population: The number of all clients of the run.
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
    """The instructions for clients in a round that are only data, not code of the strategy.

    The plan of a round is the same for every participant; only `epochs` and `rate` may differ.

    Attributes:
        frozen: Endings of the names of tensors that clients neither train nor send in this round,
            for example ``(".lora_A",)``. Clients remember these tensors: the server sends them
            again only after they have changed, and never sends their initial values.
        restarted: Endings of the names of tensors that start every round at their initial values,
            so the server never sends these tensors. `Strategy.aggregate` must return tensors with
            these endings unchanged.
        proximal_mu: The weight μ of the penalty μ/2 · ‖w - w_global‖², where w are the client's
            tensors and w_global the server's tensors. New strategies should use `Strategy.penalty`,
            which can compute any penalty.
        epochs: The number of passes over the shard in this round; None for the setting of the run.
        rate: A positive factor by which the learning rate of the round is multiplied.
    """

    frozen: tuple[str, ...] = ()
    restarted: tuple[str, ...] = ()
    proximal_mu: float = 0.0
    epochs: int | None = None
    rate: float = 1.0


@dataclass(frozen=True, kw_only=True)
class LocalWork:
    """The result of a client's training in a round.

    Attributes:
        delta: The client's tensors after training minus before, without the frozen tensors.
        steps: The number of optimiser steps.
        rate: The learning rate η of this client in the round.
    """

    delta: State
    steps: int
    rate: float


@dataclass(frozen=True, kw_only=True)
class RoundContext:
    """Data of a round that `aggregate` gets if it declares the argument ``context``.

    Attributes:
        round: The number of the round, from 1.
        participants: The numbers of the clients that were asked for an update, sorted.
        failures: For each client that sent no usable update, the reason in one line.
    """

    round: int
    participants: tuple[int, ...]
    failures: Mapping[int, str]


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """The result of a round, after its model was evaluated.

    Attributes:
        accuracy: The accuracy of the round's model in [0, 1], on the validation images if the run
            has some (`data.validation_fraction`, `data.validation_split`), or else on the test
            images.
        loss: The mean cross-entropy of the round's model on the images of `accuracy`.
        train_loss: The mean training loss of the participants, weighted by images.
        participants: The numbers of the clients whose updates were aggregated.
    """

    accuracy: float
    loss: float
    train_loss: float
    participants: tuple[int, ...]

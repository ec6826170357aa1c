"""The class that every aggregation strategy derives from; the package's page has the overview."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from fl_vitlora.config import Config
from fl_vitlora.state import State
from fl_vitlora.strategy.values import ClientPlan, LocalWork, RoundResult, Update

Metric = float | Mapping[int, float]
"""One number of a round, or one for each client by its number."""


@dataclass(frozen=True, kw_only=True)
class Strategy(ABC):
    """An aggregation strategy; `fl_vitlora.strategy` has the rules and an example.

    Attributes:
        low_rank: True if the strategy works on LoRA's pairs; a model without them is refused.
        any_rank: Clients may have ranks of their own: each is sent the first rows of every A and
            the first columns of every B, as many as its rank.
        sums_suffice: All that the server needs of the updates is their mean weighted by samples.
            Then they can be summed securely, or be made noisy, before the strategy sees them: it
            is given one update, the mean.
        personal: Endings of the names of tensors that every client trains for itself, keeps from
            round to round and never sends. Accuracy is then measured by the clients.
        rebased: Endings of the names of tensors that the server writes in new coordinates in every
            round, as factors of a product that it factors anew: what a codec withheld of them in
            one round says nothing in the next, and is dropped.
        adapter: The low-rank matrices of the method ``lora``: "lora" has B·A. "lora_xs", or
            "sandwich" as it was called before, has B·R·A, where A and B are singular vectors of the
            pre-trained weight; the plan says which of the three rest.
    """

    low_rank: ClassVar[bool] = False
    any_rank: ClassVar[bool] = False
    sums_suffice: ClassVar[bool] = False
    personal: ClassVar[tuple[str, ...]] = ()
    rebased: ClassVar[tuple[str, ...]] = ()
    adapter: ClassVar[Literal["lora", "lora_xs", "sandwich"]] = "lora"

    def objection(self, config: Config, participants: int) -> str:
        """Says why an experiment cannot be run as this strategy means it, before it begins.

        Args:
            config: The experiment.
            participants: The number of clients that take part in a round.

        Returns:
            One line with what would do instead; empty, as by default, if nothing is against it.
        """
        del config, participants
        return ""

    def select(
        self, server_round: int, drawn: Sequence[int], clients: Sequence[int], state: State
    ) -> Sequence[int]:
        """Chooses the participants of a round.

        Args:
            server_round: The number of the round, from 1.
            drawn: The participants that were drawn at random, with the seed of the run.
            clients: The numbers of all clients.
            state: The state that `aggregate` returned in the round before; empty at first.

        Returns:
            As many different clients as were drawn; by default those.
        """
        del server_round, clients, state
        return drawn

    def plan(self, server_round: int) -> ClientPlan:
        """Says what clients do in a round.

        A strategy may add an argument ``state``, the state of the server before the round, or an
        argument ``client``. With ``client`` it is asked once for each participant, and the plans
        may differ in `ClientPlan.epochs` and `ClientPlan.rate`.

        Args:
            server_round: The number of the round, from 1.

        Returns:
            By default: train and send everything, without a penalty.
        """
        del server_round
        return ClientPlan()

    def broadcast(self, state: State) -> State:
        """Says what clients are sent beside the model.

        Args:
            state: The state that `aggregate` returned in the round before; empty at first.

        Returns:
            Nothing, as by default; or tensors of all the model's names and shapes.
        """
        del state
        return {}

    def drift(self, broadcast: State, memory: State) -> State:
        """At a client: what is added to its tensors after every step, times the learning rate.

        Args:
            broadcast: The tensors that the server sent beside the model.
            memory: The memory that `report` returned in the client's last round; empty at first.

        Returns:
            Nothing, as by default; or tensors of some of the trained names.
        """
        del broadcast, memory
        return {}

    def penalty(
        self, parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]
    ) -> Tensor | float:
        """Returns what a client adds to its loss in every step.

        The value must be a sum over the entries of the tensors: several clients may be stacked,
        with a first dimension of their own, and then the value is the sum over these clients.

        Args:
            parameters: The tensors that the client trains in this round.
            anchor: Their values when the client's training began.

        Returns:
            A scalar; by default 0.
        """
        del parameters, anchor
        return 0.0

    def report(self, work: LocalWork, broadcast: State, memory: State) -> tuple[State, State]:
        """At a client, after training: what it sends beside its delta, and what it remembers.

        Args:
            work: The result of the client's training.
            broadcast: The tensors that the server sent beside the model.
            memory: The memory of this client before the round; empty at first.

        Returns:
            Nothing or tensors of all of the delta's names and shapes; and the new memory, which
            stays in the client's Flower context.
        """
        del work, broadcast
        return {}, memory

    @abstractmethod
    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Combines the updates of a round into a new global model.

        A strategy may add an argument ``context``, a `RoundContext`: the number of the round, and
        the clients that failed.

        Args:
            model: The global tensors that the round began with.
            updates: At least one update, ordered by client; the deltas lack the frozen tensors.
            state: The state that this strategy returned in the round before; empty at first.

        Returns:
            The new global tensors, all of ``model``'s names, and the new state. Beside them may
            stand ``PATH.merged_A`` (R, n) and ``PATH.merged_B`` (m, R) for a low-rank pair
            ``PATH.lora_A`` and ``PATH.lora_B``: then everybody adds s·merged_B·merged_A to the
            frozen weight that the pair stands on, s = α / r. They are sent to each client once.
        """

    def metrics(
        self, model: State, updates: Sequence[Update], state: State
    ) -> Mapping[str, Metric]:
        """Computes numbers of a round that are written to `rounds.jsonl`, in `strategy_metrics`.

        Args:
            model: The global tensors that `aggregate` returned, without merged pairs.
            updates: The updates that `aggregate` was given.
            state: The state that `aggregate` returned.

        Returns:
            By default nothing; or by name one number, or one for each client by its number. A
            number that is not finite is written as null.
        """
        del model, updates, state
        return {}

    def should_stop(self, server_round: int, result: RoundResult) -> bool:
        """Says if the run ends with this round, before all of its rounds are run.

        It is called after every round but the last. A resumed run may call it for a round again.

        Args:
            server_round: The number of the round, from 1.
            result: The result of the round.

        Returns:
            True if no further round is to begin; by default False.
        """
        del server_round, result
        return False

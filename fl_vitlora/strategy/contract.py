"""The base class of every aggregation strategy; see `fl_vitlora.strategy` for an overview."""

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
        low_rank: True if the strategy needs LoRA's pairs; a model without pairs is refused.
        any_rank: True if clients may have different ranks. A client of rank r gets the first r rows
            of every A and the first r columns of every B.
        sums_suffice: True if the server needs only the mean of the updates, weighted by samples.
            Then secure aggregation or noise is possible, and the strategy gets one update, the
            mean.
        personal: Endings of the names of tensors that every client trains for itself, keeps from
            round to round and never sends. The accuracy is then measured by the clients.
        rebased: Endings of the names of tensors that the server writes in new coordinates in every
            round, for example because it factors a product again. The part of such a tensor that a
            codec did not send has no meaning in the next round, and is dropped.
        adapter: The low-rank matrices of the method ``lora``. "lora" has B·A. "lora_xs" (formerly
            "sandwich") has B·R·A, where A and B are singular vectors of the pre-trained weight; the
            plan says which of the three matrices are frozen.
    """

    low_rank: ClassVar[bool] = False
    any_rank: ClassVar[bool] = False
    sums_suffice: ClassVar[bool] = False
    personal: ClassVar[tuple[str, ...]] = ()
    rebased: ClassVar[tuple[str, ...]] = ()
    adapter: ClassVar[Literal["lora", "lora_xs", "sandwich"]] = "lora"

    def objection(self, config: Config, participants: int) -> str:
        """Returns the reason why this strategy cannot run an experiment. It is called before a run.

        Args:
            config: The configuration of the experiment.
            participants: The number of clients that take part in a round.

        Returns:
            One line with the reason and a remedy; empty (the default) if the strategy can run.
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
            As many different clients as in `drawn`; by default `drawn` itself.
        """
        del server_round, clients, state
        return drawn

    def plan(self, server_round: int) -> ClientPlan:
        """Returns the plan of a round, for example the tensors that clients do not train.

        A strategy may add an argument ``state``, the server's state before the round, or ``client``
        (or both). With ``client``, this method is called once for each participant, and the plans
        may differ in `ClientPlan.epochs` and `ClientPlan.rate`.

        Args:
            server_round: The number of the round, from 1.

        Returns:
            The plan. By default, clients train and send all tensors, without a penalty.
        """
        del server_round
        return ClientPlan()

    def broadcast(self, state: State) -> State:
        """Returns further tensors that are sent to clients in addition to the model.

        Args:
            state: The state that `aggregate` returned in the round before; empty at first.

        Returns:
            Tensors with all names and shapes of the model; empty by default.
        """
        del state
        return {}

    def drift(self, broadcast: State, memory: State) -> State:
        """Returns, at a client, tensors that are added after every step, times the learning rate.

        Args:
            broadcast: The tensors that the server sent in addition to the model.
            memory: The memory that `report` returned in the client's last round; empty at first.

        Returns:
            Tensors to be added to trained tensors of the same names; empty by default.
        """
        del broadcast, memory
        return {}

    def penalty(
        self, parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]
    ) -> Tensor | float:
        """Returns a term that a client adds to its loss in every step.

        The term must be a sum over the numbers in the tensors. Several clients may be stacked along
        a further first dimension of the tensors; then the term is the sum over these clients.

        Args:
            parameters: The tensors that the client trains in this round.
            anchor: The same tensors before the client's training in this round.

        Returns:
            A scalar; by default 0.
        """
        del parameters, anchor
        return 0.0

    def report(self, work: LocalWork, broadcast: State, memory: State) -> tuple[State, State]:
        """Returns, at a client after training, a report to the server and the client's new memory.

        Args:
            work: The result of the client's training.
            broadcast: The tensors that the server sent in addition to the model.
            memory: The memory of this client before the round; empty at first.

        Returns:
            First the report: tensors with all names and shapes of the delta, or an empty state.
            Second the new memory, which stays in the client's Flower context.
        """
        del work, broadcast
        return {}, memory

    @abstractmethod
    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Combines the updates of a round into a new global model.

        A strategy may add an argument ``context``, a `RoundContext` with the number of the round,
        the participants and the clients that failed.

        Args:
            model: The global tensors at the beginning of the round.
            updates: At least one update, ordered by client; the deltas lack the frozen tensors.
            state: The state that this method returned in the round before; empty at first.

        Returns:
            The new global tensors, with all names of ``model``, and the new state. The tensors may
            also include ``PATH.merged_A`` (R, n) and ``PATH.merged_B`` (m, R) for a low-rank pair
            ``PATH.lora_A`` and ``PATH.lora_B``. Then server and clients add s·merged_B·merged_A,
            s = α / r, to the frozen weight of this pair. Merged tensors are sent once to a client.
        """

    def metrics(
        self, model: State, updates: Sequence[Update], state: State
    ) -> Mapping[str, Metric]:
        """Computes numbers of a round, which are written to `rounds.jsonl` as `strategy_metrics`.

        Args:
            model: The global tensors that `aggregate` returned, without merged pairs.
            updates: The updates that `aggregate` got.
            state: The state that `aggregate` returned.

        Returns:
            For each name, one number, or a mapping from the numbers of clients to numbers; empty by
            default. A number that is not finite is written as null.
        """
        del model, updates, state
        return {}

    def should_stop(self, server_round: int, result: RoundResult) -> bool:
        """Returns True if the run ends after this round, before all planned rounds are run.

        This method is called after every round but the last. After a run was resumed, it may be
        called a second time for the same round.

        Args:
            server_round: The number of the round, from 1.
            result: The result of the round.

        Returns:
            True if no further round may begin; by default False.
        """
        del server_round, result
        return False

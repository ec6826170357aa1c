"""The base class of every aggregation strategy; see `fl_vitlora.strategy` for an overview.

An argument that a method does not explain is one of these:

    server_round   the number of the round, from 1
    state          the state that `aggregate` returned in the round before; empty at first
    broadcast      the tensors that the server sent to the client in addition to the model
    memory         the memory that `report` returned in the client's last round; empty at first

In some rounds some tensors are frozen, by the plan or by the fine-tuning method. A client does not
train frozen tensors, and the methods of its strategy do not get them: `broadcast` and `memory` lack
the tensors with their names. The client's memory of frozen tensors is put aside, and is given back
when these tensors are trained again. The server's `state` has all tensors that `aggregate`
returned.
"""

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
"""A metric of a round: one number, or a dictionary with one number for each client's number."""


@dataclass(frozen=True, kw_only=True)
class Strategy(ABC):
    """The base class of aggregation strategies; `fl_vitlora.strategy` has the rules and an example.

    Attributes:
        low_rank: True if the strategy needs LoRA's pairs of matrices A and B. If `low_rank` is
            True, an experiment whose model has no such pairs is refused.
        any_rank: True if clients may have different ranks. A client of rank r gets the first r rows
            of every A and the first r columns of every B.
        sums_suffice: True if the server needs only the mean of the updates, weighted by samples
            (each client's number of images). If `sums_suffice` is True, secure aggregation and
            differential privacy are possible. The strategy then gets only one update, the mean.
        personal: Endings of the names of tensors that every client trains for itself, keeps from
            round to round and never sends. If a strategy has personal tensors, the clients measure
            the accuracy, not the server.
        rebased: Endings of the names of tensors that the server writes in new coordinates in every
            round, for example because the server factors a product again. If a codec sends only a
            part of a rebased tensor, the rest is dropped, because it has no meaning in the next
            round's coordinates.
        adapter: The low-rank matrices that the fine-tuning method ``lora`` adds to a weight. "lora"
            adds the product B·A. "lora_xs" (formerly "sandwich") adds B·R·A, where A and B are
            singular vectors of the pre-trained weight. With "lora_xs" the plan says which of the
            three matrices are frozen.
    """

    low_rank: ClassVar[bool] = False
    any_rank: ClassVar[bool] = False
    sums_suffice: ClassVar[bool] = False
    personal: ClassVar[tuple[str, ...]] = ()
    rebased: ClassVar[tuple[str, ...]] = ()
    adapter: ClassVar[Literal["lora", "lora_xs", "sandwich"]] = "lora"

    def objection(self, config: Config, participants: int) -> str:
        """Returns the reason why this strategy cannot run an experiment.

        This method is called before a run.

        Args:
            config: The configuration of the experiment.
            participants: The number of clients that take part in a round.

        Returns:
            One line with the reason and a remedy. By default, the text is empty, which means that
            the strategy can run the experiment.
        """
        del config, participants
        return ""

    def step_bound(self) -> float | None:
        """Returns c if a round moves no entry more than c times its largest delta, or else None."""
        return None

    def select(
        self, server_round: int, drawn: Sequence[int], clients: Sequence[int], state: State
    ) -> Sequence[int]:
        """Chooses the participants of a round.

        Args:
            server_round: The number of the round, from 1.
            drawn: The numbers of the participants that were drawn at random, with the run's seed.
            clients: The numbers of all clients.
            state: The state that `aggregate` returned in the round before; empty at first.

        Returns:
            The numbers of as many different clients as in `drawn`. By default `select` returns
            `drawn` itself.
        """
        del server_round, clients, state
        return drawn

    def plan(self, server_round: int) -> ClientPlan:
        """Returns the plan of a round, for example the tensors that clients do not train.

        A strategy may add an argument ``state``, the server's state before the round, or ``client``
        (or both). With ``client``, this method is called once for each participant, and the plans
        may differ in `ClientPlan.epochs` and `ClientPlan.rate`.

        Returns:
            The plan of the round. By default, clients train and send all tensors, without a penalty
            in their loss.
        """
        del server_round
        return ClientPlan()

    def broadcast(self, state: State) -> State:
        """Returns tensors that the server sends to the participants in addition to the model.

        Returns:
            A dictionary: a tensor for every name of the model, with the same shape. Tensors with
            the names of frozen tensors are not sent. The default is an empty dictionary.
        """
        del state
        return {}

    def drift(self, broadcast: State, memory: State) -> State:
        """Returns tensors that a client adds to its trained tensors after every training step.

        Before the client adds these tensors, it multiplies them by the learning rate.

        Returns:
            A dictionary: for some or all trained tensors, by name, the tensor that is multiplied by
            the learning rate and added. The default is an empty dictionary.
        """
        del broadcast, memory
        return {}

    def penalty(
        self, parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]
    ) -> Tensor | float:
        """Returns a term that a client adds to its loss in every step.

        The term must be a sum over the entries of the tensors. If several clients train in one
        batch, their tensors are stacked along a new first dimension. For stacked tensors, the term
        must be the sum over the clients.

        Args:
            parameters: The tensors that the client trains in this round.
            anchor: The values that these tensors had before the client's training in this round.

        Returns:
            The term: a tensor with one number, or a float; by default 0.
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
            A pair of dictionaries. The first dictionary is the report: a tensor for every name of
            the delta, with the same shape, or an empty dictionary. The second dictionary is the new
            memory, which is stored in the client's Flower context and so stays at the client.
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
            updates: At least one update, ordered by client. The deltas do not contain the tensors
                that the plan froze.
            state: The state that this method returned in the round before; empty at first.

        Returns:
            A pair of dictionaries: the new global tensors, with all names of ``model``, and the new
            state. For a low-rank pair ``PATH.lora_A`` (r, n) and ``PATH.lora_B`` (m, r), the first
            dictionary may also have ``PATH.merged_A`` (R, n) and ``PATH.merged_B`` (m, R) of any
            rank R. Server and clients add the product s·merged_B·merged_A to the frozen weight of
            this pair, where s = α / r is LoRA's factor. Each client receives the merged tensors of
            a round once.
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
            A dictionary: for each name, one number, or a dictionary from the numbers of clients to
            numbers. The default is an empty dictionary. A number that is not finite is written as
            null.
        """
        del model, updates, state
        return {}

    def should_stop(self, server_round: int, result: RoundResult) -> bool:
        """Returns True if the run ends after this round, before all planned rounds are run.

        This method is called after every round whose model was evaluated (`evaluation.every`),
        except the last one. After an interrupted run was continued, the method may be called a
        second time for the same round.

        Args:
            server_round: The number of the round, from 1.
            result: The result of the round.

        Returns:
            True if no further round may begin. A strategy that does not define `should_stop` never
            ends a run.
        """
        del server_round, result
        return False

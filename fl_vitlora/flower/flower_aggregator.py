"""Flower's strategies, unmodified: the aggregator plays the grid for them.

It shows the participants as the only nodes, takes the messages that the strategy would send, and
gives it replies as it expects them: whole tensors instead of deltas, each by its name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from flwr.supercore.run import Run

from fl_vitlora.communication.packing import Layout
from fl_vitlora.errors import UserError, blame
from fl_vitlora.flower import messages, strategy_state
from fl_vitlora.flower.contents import ConfigValue, Instruction
from fl_vitlora.flower.failures import Failure
from fl_vitlora.global_model import GlobalModel
from fl_vitlora.rng import derive_seed, seeded
from fl_vitlora.state import State, add
from fl_vitlora.strategy import Update

FAILED = 1  # Flower's error code for a client app that raised


class FlowerAggregator:
    """Drives a strategy of Flower through the methods of its public contract.

    Args:
        strategy: Flower's; it keeps its memory in itself.
        layout: Of the exchanged tensors.
        seed: What the strategy draws is derived from it, so that a run can be repeated.
    """

    def __init__(self, strategy: FlowerStrategy, layout: Layout, seed: int) -> None:
        self._strategy = strategy
        self._layout = layout
        self._seed = seed
        self._asked: dict[int, Message] = {}

    def instruct(
        self,
        server_round: int,
        model: GlobalModel,
        clients: Sequence[int],
        config: Mapping[str, ConfigValue],
    ) -> list[Instruction]:
        """Takes the messages that the strategy would send."""
        chance = derive_seed(self._seed, "flower sampling", server_round)
        with seeded(chance), blame(self._strategy, server_round):
            sent = list(
                self._strategy.configure_train(
                    server_round,
                    messages.to_arrays(model.tensors),
                    ConfigRecord(dict(config)),
                    Participants(clients),
                )
            )
        self._asked = {message.metadata.dst_node_id: message for message in sent}
        states: dict[int, GlobalModel] = {}
        for message in sent:
            arrays = _only(message.content.array_records)
            if id(arrays) not in states:
                tensors = messages.from_arrays(arrays, self._layout)
                states[id(arrays)] = GlobalModel(tensors=tensors)
        return [
            Instruction(
                client=client,
                model=states[id(_only(message.content.array_records))],
                config=dict(_only(message.content.config_records)),
            )
            for client, message in sorted(self._asked.items())
        ]

    def aggregate(
        self,
        server_round: int,
        model: GlobalModel,
        updates: Sequence[Update],
        failures: Sequence[Failure],
    ) -> GlobalModel:
        """Gives the strategy its replies; keeps the model where it declines to aggregate."""
        replies = [self._reply(update) for update in updates]
        replies += [
            Message(Error(FAILED, failure.reason), reply_to=self._asked[failure.client])
            for failure in failures
        ]
        chance = derive_seed(self._seed, "flower noise", server_round)
        with seeded(chance), blame(self._strategy, server_round):
            arrays, _ = self._strategy.aggregate_train(server_round, replies)
        if arrays is None:
            return model
        return GlobalModel(tensors=messages.from_arrays(arrays, self._layout))

    def privacy(self) -> dict[str, Any] | None:
        """Asks the strategy's accountant."""
        spent = getattr(self._strategy, "privacy_spent", lambda: None)()
        if spent is None:
            return None
        return {
            "epsilon": spent.epsilon,
            "delta": spent.delta,
            "releases": spent.num_releases,
            "accountant": spent.accounting_method,
        }

    def snapshot(self) -> tuple[State, dict[str, Any]]:
        """Returns what the strategy keeps in itself."""
        return strategy_state.snapshot(self._strategy)

    def restore(self, tensors: State, plain: Mapping[str, Any]) -> None:
        """Puts it back."""
        strategy_state.restore(self._strategy, tensors, plain)

    def _reply(self, update: Update) -> Message:
        asked = self._asked[update.client]
        sent = messages.from_arrays(_only(asked.content.array_records), self._layout)
        trained = add({name: sent[name] for name in update.delta}, update.delta)
        metrics = MetricRecord(
            {
                messages.SAMPLES: update.samples,
                messages.LOSS: update.loss,
                messages.EQUAL_WEIGHT: 1,
            }
        )
        if messages.NORM_BIT in update.report:
            metrics[messages.NORM_BIT] = int(update.report[messages.NORM_BIT])
        content = RecordDict(
            {
                messages.ARRAYS: messages.to_arrays(trained),
                messages.METRICS: metrics,
            }
        )
        return Message(content, reply_to=asked)


class Participants(Grid):
    """The grid as a Flower strategy sees it: the participants of the round, and no wire."""

    def __init__(self, clients: Sequence[int]) -> None:
        self._clients = list(clients)

    def get_node_ids(self) -> Iterable[int]:
        """Names the participants by the numbers of their shards."""
        return list(self._clients)

    def set_run(self, run: Run) -> NoReturn:
        """Refuses."""
        self._refuse()

    @property
    def run(self) -> Run:
        """Refuses."""
        self._refuse()

    def create_message(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuses."""
        self._refuse()

    def push_messages(self, messages: Iterable[Message]) -> NoReturn:
        """Refuses."""
        self._refuse()

    def pull_messages(self, message_ids: Iterable[str]) -> NoReturn:
        """Refuses."""
        self._refuse()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> NoReturn:
        """Refuses."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UserError(
            "a strategy may ask the grid for its nodes; messages are sent by the server loop"
        )


def _only(records: Mapping[str, Any]) -> Any:
    if len(records) != 1:
        raise UserError(
            f"expected the strategy to send one record of its kind, got {list(records)}"
        )
    return next(iter(records.values()))

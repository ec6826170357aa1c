"""Runs Flower's unmodified strategies in this project's server loop.

The aggregator gives the strategy a grid (Flower's interface to the nodes) that lists only the
participants of the round. The aggregator translates the strategy's messages into instructions. The
aggregator also translates the clients' updates into the replies that the strategy expects: the
trained tensors by name, instead of their changes.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from flwr.supercore.run import Run

from fl_vitlora.communication.packing import Layout
from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.errors import UserError, blame
from fl_vitlora.federation.evaluation import Answer, Reported
from fl_vitlora.federation.failures import Failure
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.hooks import Metrics
from fl_vitlora.federation.instruction import SERVER_ROUND, ConfigValue, Instruction
from fl_vitlora.flower.strategies import client_keys, strategy_state
from fl_vitlora.flower.wire import messages
from fl_vitlora.rng import derive_seed, seeded
from fl_vitlora.state import State, add
from fl_vitlora.strategy import RoundResult, Update

Values = dict[str, int | float | list[int] | list[float]]  # the metrics in a record, by name
FAILED = 1  # Flower's error code for a client app that raised an error


class FlowerAggregator:
    """Runs a strategy of Flower through its public methods.

    Args:
        strategy: The strategy of Flower, which keeps its memory in its attributes.
        layout: Names and shapes of the exchanged tensors.
        seed: Seed of the strategy's random numbers, so that a run can be repeated.
    """

    def __init__(self, strategy: FlowerStrategy, layout: Layout, seed: int) -> None:
        self._strategy = strategy
        self._layout = layout
        self._seed = seed
        self._asked: dict[int, Message] = {}
        self._metrics: Values = {}

    def select(
        self, server_round: int, drawn: Sequence[int], clients: Sequence[int]
    ) -> Sequence[int]:
        """Returns the drawn clients; the strategy chooses among these clients in `instruct`."""
        del server_round, clients
        return drawn

    def instruct(
        self,
        server_round: int,
        model: GlobalModel,
        clients: Sequence[int],
        config: Mapping[str, ConfigValue],
    ) -> list[Instruction]:
        """Returns the strategy's messages of a round as instructions to the clients.

        Args:
            server_round: Number of the round.
            model: The global model.
            clients: The participants of the round.
            config: Configuration from the server loop: the round and the learning rate.
        """
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
                config=client_keys.understood(
                    dict(_only(message.content.config_records)), config, self._name
                ),
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
        """Returns the strategy's new model, or the old model if the strategy returns no model."""
        replies = [self._reply(update) for update in updates]
        replies += [
            Message(Error(FAILED, failure.reason), reply_to=self._asked[failure.client])
            for failure in failures
        ]
        chance = derive_seed(self._seed, "flower noise", server_round)
        with seeded(chance), blame(self._strategy, server_round):
            arrays, metrics = self._strategy.aggregate_train(server_round, replies)
        self._metrics = _plain(metrics)
        if arrays is None:
            return model
        return replace(model, tensors=messages.from_arrays(arrays, self._layout))

    @property
    def may_stop(self) -> bool:
        """Returns True if the strategy has `should_stop`, a method of newer versions of Flower."""
        return callable(getattr(self._strategy, "should_stop", None))

    def should_stop(self, server_round: int, result: RoundResult) -> bool:
        """Asks the strategy whether the run ends; the strategy gets the results of this round."""
        told = Result(
            train_metrics_clientapp={server_round: MetricRecord(self._metrics)},
            evaluate_metrics_serverapp={
                server_round: MetricRecord(
                    {messages.ACCURACY: result.accuracy, messages.EVALUATION_LOSS: result.loss}
                )
            },
        )
        with blame(self._strategy, server_round):
            return bool(getattr(self._strategy, "should_stop")(server_round, told))  # noqa: B009

    def metrics(self) -> Metrics:
        """Returns the strategy's aggregated training metrics of the last round."""
        return {**self._metrics}

    def evaluated(
        self, server_round: int, model: GlobalModel, answers: Sequence[Answer]
    ) -> Metrics:
        """Lets the strategy aggregate the evaluation results of the clients that it asks.

        All clients evaluate the model before this method is called. If the strategy asks only some
        clients, the strategy gets only the answers of these clients.

        Returns:
            The aggregated metrics.
        """
        clients = [answer.client for answer in answers]
        chance = derive_seed(self._seed, "flower evaluation", server_round)
        with seeded(chance), blame(self._strategy, server_round):
            sent = self._strategy.configure_evaluate(
                server_round,
                messages.to_arrays(model.tensors),
                ConfigRecord({SERVER_ROUND: server_round}),
                Participants(clients),
            )
            asked = {message.metadata.dst_node_id: message for message in sent}
            for message in asked.values():
                _expect_no_keys(message, self._name)
            replies = [
                Message(_evaluation(answer.images, answer.measured), reply_to=asked[answer.client])
                for answer in answers
                if answer.client in asked
            ]
            metrics = self._strategy.aggregate_evaluate(server_round, replies)
        return {**_plain(metrics)}

    def privacy(self) -> dict[str, Any] | None:
        """Returns the privacy loss that the strategy's accountant computes, or None."""
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
        """Returns the strategy's memory for a checkpoint: tensors, and the other values as JSON."""
        return strategy_state.snapshot(self._strategy)

    def restore(self, tensors: State, plain: Mapping[str, Any]) -> None:
        """Restores the strategy's memory from a snapshot."""
        strategy_state.restore(self._strategy, tensors, plain)

    @property
    def _name(self) -> str:
        return type(self._strategy).__name__

    def _reply(self, update: Update) -> Message:
        """Converts an update to the reply that Flower's strategies expect."""
        asked = self._asked[update.client]
        sent = messages.from_arrays(_only(asked.content.array_records), self._layout)
        trained = add({name: sent[name] for name in update.delta}, update.delta)
        metrics = MetricRecord(
            {
                messages.SAMPLES: update.samples,
                messages.LOSS: update.loss,
                messages.STEPS: update.steps,
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
    """A grid for a Flower strategy, which lists the participants and sends no messages."""

    def __init__(self, clients: Sequence[int]) -> None:
        self._clients = list(clients)

    def get_node_ids(self) -> Iterable[int]:
        """Returns the participants' client numbers as node ids."""
        return list(self._clients)

    def set_run(self, run: Run) -> NoReturn:
        """Raises UserError, because this project's server loop sends the messages."""
        self._refuse()

    @property
    def run(self) -> Run:
        """Raises UserError, because this project's server loop sends the messages."""
        self._refuse()

    def create_message(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raises UserError, because this project's server loop sends the messages."""
        self._refuse()

    def push_messages(self, messages: Iterable[Message]) -> NoReturn:
        """Raises UserError, because this project's server loop sends the messages."""
        self._refuse()

    def pull_messages(self, message_ids: Iterable[str]) -> NoReturn:
        """Raises UserError, because this project's server loop sends the messages."""
        self._refuse()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> NoReturn:
        """Raises UserError, because this project's server loop sends the messages."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UserError(
            "a strategy may call only get_node_ids of the grid, but it called another method; the "
            "server loop sends the messages"
        )


def own_evaluation(strategy: object) -> str | None:
    """Returns the name of the strategy's own method or option for evaluation, or None."""
    for name in ("configure_evaluate", "aggregate_evaluate"):
        if not _is_flowers(getattr(type(strategy), name, None)):
            return name
    chosen = "evaluate_metrics_aggr_fn"
    return None if _is_flowers(getattr(strategy, chosen, None)) else chosen


def asks_for_evaluation(strategy: FlowerStrategy, participants: int) -> bool:
    """Returns True if a copy of a strategy asks clients to evaluate. The strategy is not called."""
    try:
        sent = copy.deepcopy(strategy).configure_evaluate(
            1,
            ArrayRecord(),
            ConfigRecord({SERVER_ROUND: 1}),
            Participants(range(participants)),
        )
        return bool(list(sent))
    except Exception:  # the strategy's own code needs a real model, so it does evaluate
        return True


def _is_flowers(code: object) -> bool:
    """Returns True if a function is defined by Flower, or is None."""
    return code is None or str(getattr(code, "__module__", "")).startswith("flwr.")


def _evaluation(images: int, measured: Reported) -> RecordDict:
    """Converts the result of one client's evaluation to the reply that Flower's strategies expect.

    Args:
        images: Number of the images that the client evaluated.
        measured: The accuracy and the loss for each view (version) of the images.
    """
    accuracy, loss = measured[RIGHT_KEY]
    metrics = MetricRecord(
        {
            messages.SAMPLES: images,
            messages.ACCURACY: accuracy,
            messages.EVALUATION_LOSS: loss,
            messages.EQUAL_WEIGHT: 1,
        }
    )
    return RecordDict({messages.METRICS: metrics})


def _expect_no_keys(message: Message, strategy: str) -> None:
    """Refuses a message for the evaluation with configuration keys, which clients would ignore.

    Raises:
        UserError: If there is a key other than the round.
    """
    for record in message.content.config_records.values():
        for name in record.keys() - {SERVER_ROUND}:
            raise UserError(
                f"strategy {strategy} sends clients the key {name!r} for their evaluation, but "
                f"clients read only {SERVER_ROUND!r} for an evaluation; leave the key out"
            )


def _plain(metrics: MetricRecord | None) -> Values:
    """Returns aggregated metrics as a dictionary, without `EQUAL_WEIGHT`, which is constant."""
    return {name: value for name, value in (metrics or {}).items() if name != messages.EQUAL_WEIGHT}


def _only(records: Mapping[str, Any]) -> Any:
    """Returns the single record of a mapping.

    Raises:
        UserError: If the mapping does not have exactly one record.
    """
    if len(records) != 1:
        raise UserError(
            "expected one record of arrays and one configuration in each message of the strategy, "
            f"got several or none of a kind: {list(records)}"
        )
    return next(iter(records.values()))

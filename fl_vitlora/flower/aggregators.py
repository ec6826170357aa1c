"""Two kinds of strategies behind one interface: this project's, and Flower's, unmodified.

The server loop asks an aggregator what to send to the participants of a round and hands it their
updates. For a Flower strategy the aggregator plays the grid: it shows the participants as the only
nodes, takes the messages that the strategy would send, and gives it replies as it expects them:
whole tensors instead of deltas, each by its name.
"""

from __future__ import annotations

import contextlib
import random
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, Protocol

from flwr.app import ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from flwr.supercore.run import Run

from fl_vitlora.communication.packing import Layout
from fl_vitlora.errors import UserError, unknown
from fl_vitlora.flower import messages
from fl_vitlora.flower.contents import ConfigValue, Instruction
from fl_vitlora.flower.transport import Failure
from fl_vitlora.global_model import GlobalModel, split
from fl_vitlora.lowrank import MERGED_A, MERGED_B, A, B
from fl_vitlora.rng import derive_seed
from fl_vitlora.state import State, add
from fl_vitlora.strategy import Strategy, Update

AnyStrategy = Strategy | FlowerStrategy
LoadStrategy = Callable[[str, Mapping[str, Any]], AnyStrategy]  # of its name and its options
FAILED = 1  # Flower's error code for a client app that raised


class Aggregator(Protocol):
    """What the server loop needs of a strategy."""

    def instruct(
        self,
        server_round: int,
        model: GlobalModel,
        clients: Sequence[int],
        config: Mapping[str, ConfigValue],
    ) -> list[Instruction]:
        """Says what the participants of a round are sent."""
        ...

    def aggregate(
        self,
        server_round: int,
        model: GlobalModel,
        updates: Sequence[Update],
        failures: Sequence[Failure],
    ) -> GlobalModel:
        """Makes the next global model of at least one update."""
        ...


def make_aggregator(strategy: AnyStrategy, layout: Layout, seed: int) -> Aggregator:
    """Wraps a strategy of either kind."""
    if isinstance(strategy, Strategy):
        return OwnAggregator(strategy)
    return FlowerAggregator(strategy, layout, seed)


class Unaided(Strategy):
    """What a strategy of Flower leaves to clients in code: nothing."""

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        """Is never called; the server's half is Flower's."""
        raise NotImplementedError


def client_half(strategy: AnyStrategy) -> Strategy:
    """Returns what clients run of a strategy, and what it asks of an experiment."""
    return strategy if isinstance(strategy, Strategy) else Unaided()


def check_cohort(strategy: AnyStrategy, participants: int) -> None:
    """Refuses a Flower strategy that would wait forever for more clients than take part.

    Raises:
        UserError: When it asks for more.
    """
    for name in ("min_available_nodes", "min_train_nodes"):
        needed = getattr(strategy, name, 0)
        if needed > participants:
            raise UserError(
                f"strategy.{name} {needed}: only {participants} clients take part in a round; "
                "raise --clients or --fraction"
            )


@contextlib.contextmanager
def blame(strategy: AnyStrategy, server_round: int) -> Iterator[None]:
    """Turns what a strategy's own code raises into one line that names its place."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise UserError(
            f"strategy {type(strategy).__name__}, round {server_round}: "
            f"{type(error).__name__}: {error} ({place.filename}, line {place.lineno})"
        ) from error


def _check_endings(endings: tuple[str, ...], where: str, model: State) -> None:
    """Refuses endings of what is not there; a typing error would freeze nothing."""
    if isinstance(endings, str):
        raise UserError(f"{where} is {endings!r}, expected a tuple: ({endings!r},)")
    for ending in endings:
        if not any(name.endswith(ending) for name in model):
            last = {f".{name.rpartition('.')[2]}" for name in model}
            raise unknown(f"ending in {where}", ending, last)


class OwnAggregator:
    """Drives a strategy of this project's contract and keeps its state."""

    def __init__(self, strategy: Strategy) -> None:
        self._strategy = strategy
        self._state: State = {}

    def instruct(
        self,
        server_round: int,
        model: GlobalModel,
        clients: Sequence[int],
        config: Mapping[str, ConfigValue],
    ) -> list[Instruction]:
        """Sends the model and the plan to every participant."""
        with blame(self._strategy, server_round):
            plan = self._strategy.plan(server_round)
            broadcast = self._strategy.broadcast(self._state)
        for rested in ("frozen", "restarted"):
            _check_endings(getattr(plan, rested), f"plan.{rested}", model.tensors)
        if broadcast:
            self._check_same("broadcast", model.tensors, broadcast)
        return [
            Instruction(client=client, model=model, config=config, plan=plan, broadcast=broadcast)
            for client in clients
        ]

    def aggregate(
        self,
        server_round: int,
        model: GlobalModel,
        updates: Sequence[Update],
        failures: Sequence[Failure],
    ) -> GlobalModel:
        """Calls the strategy."""
        del failures
        with blame(self._strategy, server_round):
            returned, self._state = self._strategy.aggregate(model.tensors, updates, self._state)
        new, merged = split(returned)
        self._check_same("returned", model.tensors, new)
        self._check_merged(model.tensors, merged)
        return model.followed_by({n: new[n].to(w.dtype) for n, w in model.tensors.items()}, merged)

    def _check_same(self, did: str, model: State, new: State) -> None:
        """Refuses tensors of other names or shapes than the model's."""
        shapes = [{n: tuple(w.shape) for n, w in tensors.items()} for tensors in (model, new)]
        if shapes[0] != shapes[1]:
            differing = sorted({name for name, _ in shapes[0].items() ^ shapes[1].items()})
            raise UserError(
                f"strategy {type(self._strategy).__name__} {did} other tensors than it was "
                f"given; these differ: {differing[:5]}"
            )

    def _check_merged(self, model: State, merged: State) -> None:
        """Refuses merged pairs that fit no pair of the model."""
        shapes = {name: tuple(tensor.shape) for name, tensor in merged.items()}
        for path in {name.rpartition(".")[0] for name in merged}:
            rank, inputs = shapes.get(path + MERGED_A, (0, 0))
            pair = [tuple(model[path + end].shape) for end in (A, B) if path + end in model]
            fitting = pair and [(rank, pair[0][1]), (pair[-1][0], rank)]
            if [(rank, inputs), shapes.get(path + MERGED_B)] != fitting:
                raise UserError(
                    f"strategy {type(self._strategy).__name__} merged what fits no low-rank pair: "
                    f"{path}"
                )


class FlowerAggregator:
    """Drives a strategy of Flower through the methods of its public contract."""

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
        random.seed(derive_seed(self._seed, "flower sampling", server_round))  # Flower's sampler
        with blame(self._strategy, server_round):
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
        with blame(self._strategy, server_round):
            arrays, _ = self._strategy.aggregate_train(server_round, replies)
        if arrays is None:
            return model
        return GlobalModel(tensors=messages.from_arrays(arrays, self._layout))

    def _reply(self, update: Update) -> Message:
        asked = self._asked[update.client]
        sent = messages.from_arrays(_only(asked.content.array_records), self._layout)
        trained = add({name: sent[name] for name in update.delta}, update.delta)
        metrics = MetricRecord({messages.SAMPLES: update.samples, messages.LOSS: update.loss})
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

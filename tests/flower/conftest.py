"""A grid without a wire: the real client app answers real messages on real encrypted shards."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.supercore.task_identity import TaskIdentity

from fl_vitlora.communication.ledger import Ledger
from fl_vitlora.config import Config, DataConfig, EncryptionConfig, ModelConfig, TrainingConfig
from fl_vitlora.data import owner, sources
from fl_vitlora.encryption.steps import STEPS
from fl_vitlora.encryption.storage_keys import StorageKeys, of_secret
from fl_vitlora.federation.exchange import Exchange
from fl_vitlora.federation.failures import Failure
from fl_vitlora.flower.client.app import make_client_app
from fl_vitlora.flower.client.workspace import ClientSettings
from fl_vitlora.flower.server.client_states import ClientStates
from fl_vitlora.flower.server.posting import Post, Tap
from fl_vitlora.flower.server.transport import Transport
from fl_vitlora.flower.strategies.aggregators import Unaided
from fl_vitlora.flower.strategies.flower_aggregator import Participants
from fl_vitlora.flower.wire.folding import fold
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy, Update

SIZES = (20, 12, 8)  # images of each client
TEST_SIZES = (5, 15, 20)  # test images of each
VALIDATION_SIZES = (4, 2, 3)  # validation images of each
SECRET = bytes(range(32))
STORAGE = of_secret(bytes(reversed(range(32))))  # of another secret: workers open files, no images
KEYS = StorageKeys(roots={STORAGE.name: STORAGE.root}, source="a test")


@pytest.fixture(autouse=True)
def _run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's messages know the run that they belong to; tests belong to run 1."""
    for name in ("_run_id", "_node_id", "_task_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def folds(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """A mod for apps that are made up: what they say travels as it must, whatever it is."""
    reply = call_next(message, context)
    reply.content = fold(reply.content, {}, {})
    return reply


class LocalGrid(Participants):
    """Hands every message to the client app at once, and the replies back, the last one first.

    A node's number is 100 more than its client's; what its app keeps in its context stays there.
    What a client app raises comes back as an error, in the words in which Flower's engine puts it.
    """

    def __init__(self, app: ClientApp, clients: int) -> None:
        super().__init__([100 + client for client in range(clients)])
        self.app = app
        self.silent: set[int] = set()
        self.deaf = False  # replies are lost
        self.sent: list[Message] = []
        self.received: list[Message] = []
        self.passed: list[Message] = []  # all so far
        self.kept = [RecordDict() for _ in range(clients)]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:  # type: ignore[override]
        self.sent = list(messages)
        for number, message in enumerate(self.sent):
            message.metadata.__dict__["_message_id"] = f"message {number}"
        asked = [m for m in self.sent if m.metadata.dst_node_id - 100 not in self.silent]
        received = [self.answer(message) for message in reversed(asked)]
        self.received = [] if self.deaf else received
        self.passed += [*self.sent, *self.received]
        return [message.metadata.message_id for message in self.sent]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:  # type: ignore[override]
        wanted = set(message_ids)
        return [m for m in self.received if m.metadata.reply_to_message_id in wanted]

    def answer(self, message: Message) -> Message:
        client = message.metadata.dst_node_id - 100
        config: dict[str, Any] = {"partition-id": client, "num-partitions": len(SIZES)}
        context = Context(1, 100 + client, config, copy.deepcopy(self.kept[client]), {})
        try:
            reply = self.app(message, context)
        except Exception as error:
            told = f"\nException ClientAppException occurred. Message: {error}"
            return Message(Error(2, f"<class 'ClientAppException'>:<'{told}'>"), reply_to=message)
        self.kept[client] = context.state  # as in Flower, not what a client that raised had kept
        return reply


def transport_of(
    grid: Any,
    initial: State,
    ledger: Ledger,
    *,
    timeout: float,
    states: ClientStates | None = None,
    tap: Tap | None = None,
    stop: threading.Event | None = None,
    **others: Any,
) -> Transport:
    """Makes a transport over a grid; `others` are arguments of `Transport`."""
    post = Post(
        grid=grid,
        ledger=ledger,
        timeout=timeout,
        states=states or ClientStates(),
        tap=tap,
        stop=stop or threading.Event(),
    )
    return Transport(post, initial, **others)


def both(exchange: Exchange) -> tuple[list[Update], list[Failure]]:
    """Returns the updates and the failures of an exchange."""
    return list(exchange.updates), list(exchange.failures)


def write_shards(
    folder: Path, config: Config, secret: bytes, strategy: Strategy | None = None
) -> ClientSettings:
    """Writes three encrypted shards of real digits for training, and three for testing.

    Returns:
        What a worker is told.
    """
    train, test = sources.load(DataConfig(limit=sum(SIZES)))
    positions = np.arange(sum(SIZES))
    owner.write_encrypted_shards(
        folder,
        train=train,
        test=test,
        parts=np.split(positions, np.cumsum(SIZES)[:-1]),
        test_parts=np.split(positions, np.cumsum(TEST_SIZES)[:-1]),
        validation=np.split(positions[:9], np.cumsum(VALIDATION_SIZES)[:-1]),
        holder=owner.key_holder(config, patch_size=4, image_shape=(3, 16, 16), secret=secret),
        metadata={},
        storage=None if config.encryption.at_rest == "none" else STORAGE,
    )
    return ClientSettings(
        shards=str(folder),
        class_names=train.class_names,
        device="cpu",
        config=config,
        strategy=strategy or Unaided(),
        storage=KEYS,
    )


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> ClientSettings:
    """Shards under all steps at once, whose key the workers do not have."""
    config = Config(
        model=ModelConfig(weights="random"),
        encryption=EncryptionConfig(steps=tuple(STEPS), key_file=""),  # type: ignore[arg-type]
        training=TrainingConfig(epochs=1, batch_size=8),
    )
    return write_shards(tmp_path_factory.mktemp("shards"), config, bytes(32))


@pytest.fixture
def grid(settings: ClientSettings) -> LocalGrid:
    return LocalGrid(make_client_app(lambda context: settings), len(SIZES))


@pytest.fixture
def shards(settings: ClientSettings) -> Path:
    return Path(settings.shards)

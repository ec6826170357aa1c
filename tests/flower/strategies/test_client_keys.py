"""What a Flower strategy sends to each client is read by the client, or refused by its name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import flwr.serverapp.strategy as flower
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fl_vitlora.errors import UserError
from fl_vitlora.federation.client_records import Memory
from fl_vitlora.federation.instruction import LEARNING_RATE, LOCAL_EPOCHS, SERVER_ROUND, Instruction
from fl_vitlora.flower.server.composing import compose
from fl_vitlora.flower.strategies.client_keys import SYNONYMS, VALUES, understood
from fl_vitlora.flower.wire.round_message import Writer, read
from tests.flower.played import CLIENTS, CONFIG, GLOBAL, LAYOUT, aggregator_of

GIVEN = {SERVER_ROUND: 3, LEARNING_RATE: 0.25}


class EachClientItsOwn(flower.FedAvg):
    """Gives client k a configuration of its own."""

    def __init__(self, keys: dict[int, dict[str, float]]) -> None:
        super().__init__()
        self.keys = keys

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        for message in super().configure_train(server_round, arrays, config, grid):
            client = message.metadata.dst_node_id
            own = ConfigRecord({**config, **self.keys.get(client, {})})
            content = RecordDict({"arrays": arrays, "config": own})
            yield Message(content, dst_node_id=client, message_type="train")


def instructions(strategy: flower.Strategy) -> list[Instruction]:
    return aggregator_of(strategy).instruct(1, GLOBAL, CLIENTS, CONFIG)


def test_each_client_reads_its_own_rate_and_epochs():
    sent = instructions(EachClientItsOwn({1: {"lr": 0.5, "local-epochs": 3}, 2: {"lr": 0.125}}))
    found = [
        read(Writer(LAYOUT).write(compose(one, Memory(), frozenset()), None), LAYOUT, None)
        for one in sent
    ]
    assert [one.rate for one in found] == [0.25, 0.5, 0.125, 0.25]
    assert [one.epochs for one in found] == [None, 3, None, None]


@pytest.mark.parametrize("name", SYNONYMS)
def test_every_other_name_of_a_key_is_that_key(name: str):
    value = 7 if SYNONYMS[name] in (LOCAL_EPOCHS, SERVER_ROUND) else 0.5
    assert understood({**GIVEN, name: value}, GIVEN, "Mine")[SYNONYMS[name]] == value
    assert understood({name: value, **GIVEN}, GIVEN, "Mine")[SYNONYMS[name]] == value


def test_a_key_that_no_client_reads_is_refused_with_the_nearest_that_one_does():
    with pytest.raises(UserError, match=r"EachClientItsOwn.*'local-epoch'.*'local-epochs'"):
        instructions(EachClientItsOwn({0: {"local-epoch": 2}}))
    with pytest.raises(UserError, match="'temperature'"):
        instructions(EachClientItsOwn({3: {"temperature": 2.0}}))


@pytest.mark.parametrize("key", VALUES)
@pytest.mark.parametrize("value", ["1", [1], -1, float("nan"), True])
def test_a_value_of_another_kind_is_refused_by_its_key(key: str, value: object):
    with pytest.raises(UserError, match=f"{key} .*expected"):
        understood({key: value}, GIVEN, "Mine")  # type: ignore[dict-item]


def test_two_names_of_one_key_must_say_the_same():
    assert understood({"epochs": 2, "local_epochs": 2}, {}, "Mine") == {LOCAL_EPOCHS: 2}
    with pytest.raises(UserError, match="epochs 2 and local_epochs 3"):
        understood({"epochs": 2, "local_epochs": 3}, {}, "Mine")


def test_a_client_refuses_epochs_that_are_none():
    message = replace(
        compose(Instruction(client=0, model=GLOBAL, config=CONFIG), Memory(), frozenset()), epochs=0
    )
    with pytest.raises(ValueError, match="local-epochs must be a whole number from 1, got 0"):
        read(Writer(LAYOUT).write(message, None), LAYOUT, None)


@pytest.mark.parametrize("missing", GIVEN)
def test_a_configuration_without_the_round_or_the_rate_is_refused(missing: str):
    sent = {name: value for name, value in GIVEN.items() if name != missing}
    with pytest.raises(UserError, match=f"strategy Mine sends clients no {missing}"):
        understood(sent, GIVEN, "Mine")

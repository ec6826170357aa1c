"""What fine-tuning methods send, message by message, by the ledger.

The clients are real, and so are the messages. The model is the bundled one: six blocks of width 96,
and a head of ten classes. Every method has its defaults, unless a test says otherwise; with the
defaults it adapts q and v, twelve slices of 96 × 96 numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fl_vitlora.communication.ledger import Direction, Entry
from fl_vitlora.config import TrainingConfig
from tests.flower.wire.test_resting_cost import ATTENDANCE, FREEZES, ROUNDS, Played, play

BYTES = 4  # of a number in float32
BLOCKS, SLICES, WIDTH, HIDDEN = 6, 12, 96, 288
HEAD = 10 * (WIDTH + 1)
PAIRS = 2 * 2 * 4 * WIDTH  # the numbers of a block's low-rank pairs of rank 4 on q and v
EVERY_ROUND = ((0, 1, 2),) * ROUNDS
STEPS = TrainingConfig(epochs=1, batch_size=4)  # of AdamW, which moves every entry


def entries(played: Played, direction: Direction) -> list[Entry]:
    """Returns the entries of all messages of the training."""
    return [e for e in played.clients.ledger if e.direction == direction and e.round]


def numbers(played: Played, direction: Direction) -> dict[tuple[int, int], int]:
    """Returns how many numbers each message carries, by round and client."""
    return {(e.round, e.client): e.payload // BYTES for e in entries(played, direction)}


def by_round(played: Played, direction: Direction) -> list[int]:
    """Returns how many numbers a message of each round carries, the same for all clients."""
    found = numbers(played, direction)
    last = max(number for number, _ in found)
    rounds = [{n for (number, _), n in found.items() if number == one + 1} for one in range(last)]
    assert [len(each) for each in rounds] == [1] * last
    return [each.pop() for each in rounds]


SMALL: Mapping[str, dict[str, Any]] = {
    "soda": {"finetuning__method": "soda"},
    "hta exact": {"finetuning__method": "hta", "finetuning__parameters": {"exact": True}},
    "bias of qkv and fc1": {
        "finetuning__method": "bias",
        "finetuning__parameters": {"layers": ["qkv", "fc1"]},
    },
}


@pytest.fixture
def lora(tmp_path: Path) -> list[Entry]:
    """Returns the messages that clients send with LoRA of rank 4."""
    played = play(tmp_path / "lora", "fedavg", "lora", ATTENDANCE[:1])
    found = entries(played, "uplink")
    assert {entry.payload for entry in found} == {BYTES * (BLOCKS * PAIRS + HEAD)}
    return found


@pytest.mark.parametrize("name", SMALL)
def test_whole_messages_are_below_half_of_those_of_lora(
    name: str, lora: list[Entry], tmp_path: Path
) -> None:
    given = dict(SMALL[name])
    method = given.pop("finetuning__method")
    played = play(tmp_path / "small", "fedavg", method, ATTENDANCE[:1], **given)
    for entry, other in zip(entries(played, "uplink"), lora, strict=True):
        assert entry.total < other.total / 2


AFLORA_MATRICES = BLOCKS * 2 * 4 * (WIDTH + HIDDEN)  # on fc1 and fc2
AFLORA_VECTORS = BLOCKS * (2 * 4 + HIDDEN + WIDTH)


def test_a_message_of_aflora_has_only_the_matrices_that_are_not_frozen(tmp_path: Path) -> None:
    """Once a matrix is frozen it stays frozen, so that messages only become shorter."""
    given = {**FREEZES, "finetuning__parameters": {"begin": 0.0, "end": 1.0}}
    sent, trained = list[int](), list[int]()
    for rounds in range(1, ROUNDS + 1):
        played = play(
            tmp_path / str(rounds),
            "fedavg",
            "aflora",
            EVERY_ROUND[:rounds],
            training=STEPS,
            **given,
        )
        sent = by_round(played, "uplink")
        frozen = played.clients.worker.method.rests(rounds + 1, played.model.memory)
        left = [t.numel() for n, t in played.model.tensors.items() if not n.endswith(frozen)]
        trained.append(sum(left))
    assert sent == [AFLORA_MATRICES + AFLORA_VECTORS + HEAD, *trained[:-1]]
    assert sent == sorted(sent, reverse=True)
    assert sent[0] > sent[1]


def test_in_the_end_aflora_sends_its_vectors_and_the_head_alone(tmp_path: Path) -> None:
    played = play(tmp_path, "fedavg", "aflora", EVERY_ROUND, **FREEZES)
    assert by_round(played, "uplink")[2:] == [AFLORA_VECTORS + HEAD] * 2


def test_sift_sends_the_places_to_each_client_once_and_clients_never_send_places(
    tmp_path: Path,
) -> None:
    """The head is zero in round 1, so that the dense change moves, and is chosen from, in round 2.

    In round 3, client 1 trains alone. In round 4, the other two learn the places.
    """
    played = play(tmp_path / "sift", "fedavg", "sift", ATTENDANCE)
    dense, values = SLICES * WIDTH**2, SLICES * 74
    sent, received = (numbers(played, one) for one in ("uplink", "downlink"))
    assert sent.keys() == received.keys()
    for (number, client), carried in sent.items():
        assert carried == (dense if number <= 2 else values) + HEAD
        if number > 2:
            knows = (number, client) == (4, 1)
            assert received[number, client] == values + HEAD + (0 if knows else values)


def test_sara_sends_its_values_and_the_head_and_no_place(tmp_path: Path) -> None:
    """After half of the rounds, one number for each slice says once that entries stop."""
    played = play(tmp_path / "sara", "fedavg", "sara", EVERY_ROUND)
    values = sum(t.numel() for n, t in played.model.tensors.items() if n.endswith(".values"))
    assert values > 0
    assert by_round(played, "uplink") == [values + HEAD] * ROUNDS
    stops = [0, SLICES, 0]
    assert by_round(played, "downlink")[1:] == [values + HEAD + more for more in stops]


def test_each_tie_of_tied_lora_saves_the_pairs_of_one_block(tmp_path: Path) -> None:
    """One more tie a round, after round 1, in whose single step only the zero head moves.

    With one group left, a sixth of the pairs would be sent.
    """
    given: dict[str, Any] = {"finetuning__parameters": {"groups": 1}}
    played = play(tmp_path / "tied", "fedavg", "tied_lora", EVERY_ROUND, **given)
    untied = [BLOCKS - max(0, number - 1) for number in range(ROUNDS)]
    assert by_round(played, "uplink") == [blocks * PAIRS + HEAD for blocks in untied]

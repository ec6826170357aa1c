"""What each strategy sends, by the ledger: its row of the table in docs/strategies.md, to the byte.

|A| and |B| are the scalars of all matrices of a kind, and the rest is the head and the patch
embedding; K clients take part in a round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

import strategies
from fl_vitlora.federation.aggregator import OwnAggregator
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import LEARNING_RATE, SERVER_ROUND
from fl_vitlora.lowrank import A, B, R
from fl_vitlora.strategy import Strategy
from tests.flower.client.test_context_state import HEADER, Clients, size
from tests.flower.conftest import both

ATTENDANCE = ((0, 1, 2), (0, 1), (0, 1, 2), (0, 1, 2))  # client 2 sits out the second round


@dataclass(frozen=True)
class Sizes:
    """Scalars of A, B, R, and of the rest."""

    a: int
    b: int
    r: int
    rest: int

    @property
    def pair(self) -> int:
        return self.a + self.b


@dataclass(frozen=True)
class Row:
    """Scalars up and down, by round: of a client that is always there, and of one that returns."""

    up: Callable[[Sizes, int], int]
    down: Callable[[Sizes, int], int]
    returning: Callable[[Sizes], int] | None = None  # in the third round; as the others if None


def odd(server_round: int) -> bool:
    return server_round % 2 == 1


WHOLE = Row(up=lambda s, _: s.pair + s.rest, down=lambda s, _: s.pair + s.rest)
ROWS = {
    "fedavg": WHOLE,
    "fedprox": WHOLE,
    "fednova": WHOLE,
    "median": WHOLE,
    "trimmed_mean": WHOLE,
    "krum": WHOLE,
    "multi_krum": WHOLE,
    "geometric_median": WHOLE,
    "scaffold": Row(
        up=lambda s, _: 2 * (s.pair + s.rest) + HEADER,
        down=lambda s, n: (s.pair + s.rest) if n == 1 else 2 * (s.pair + s.rest) + HEADER,
    ),
    "lora_fair": WHOLE,
    "flexlora": WHOLE,
    "hetlora": WHOLE,
    "ffa_lora": Row(up=lambda s, _: s.b + s.rest, down=lambda s, _: s.b + s.rest),
    "fedsa_lora": Row(up=lambda s, _: s.a + s.rest, down=lambda s, _: s.a + s.rest),
    "fed_sb": Row(up=lambda s, _: s.r + s.rest, down=lambda s, _: s.r + s.rest),
    "fedsvd": Row(
        up=lambda s, _: s.b + s.rest,
        down=lambda s, n: (s.b if n == 1 else s.pair) + s.rest,  # the first A is everybody's
    ),
    "rolora": Row(
        up=lambda s, n: (s.b if odd(n) else s.a) + s.rest,
        down=lambda s, n: (s.b if n == 1 or not odd(n) else s.a) + s.rest,
        returning=lambda s: s.pair + s.rest,
    ),
    "flora": Row(
        up=lambda s, _: s.pair + s.rest,
        down=lambda s, n: (0 if n == 1 else len(ATTENDANCE[n - 2]) * s.pair) + s.rest,
        returning=lambda s: (3 + 2) * s.pair + s.rest,
    ),
    "fedex_lora": Row(
        up=lambda s, _: s.pair + s.rest,
        down=lambda s, n: (0 if n == 1 else len(ATTENDANCE[n - 2]) - 1) * s.pair + s.pair + s.rest,
        returning=lambda s: (2 + 1) * s.pair + s.pair + s.rest,
    ),
}


def play(folder: Path, strategy: Strategy, attendance: Sequence[Sequence[int]]) -> Clients:
    """Runs rounds of a strategy over a real client app."""
    clients = Clients(folder, strategy)
    aggregator, model = OwnAggregator(strategy), GlobalModel(tensors=clients.initial)
    for server_round, participants in enumerate(attendance, start=1):
        config = {SERVER_ROUND: server_round, LEARNING_RATE: 1e-2}
        asked = aggregator.instruct(server_round, model, participants, config)
        updates, failures = both(clients.transport.exchange(server_round, asked))
        assert failures == []
        model = aggregator.aggregate(server_round, model, updates, failures)
    return clients


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_a_strategy_sends_what_its_row_says(name: str, tmp_path: Path):
    strategy = strategies.load(name, {})
    assert isinstance(strategy, Strategy)
    clients = play(tmp_path, strategy, ATTENDANCE)
    all_of_it = clients.worker.initial
    a, b, r = (size(all_of_it, ending) for ending in (A, B, R))
    sizes = Sizes(a, b, r, sum(tensor.numel() for tensor in all_of_it.values()) - a - b - r)
    row = ROWS[name]
    for server_round, participants in enumerate(ATTENDANCE, start=1):
        merged = name in ("flora", "fedex_lora") and server_round > 1
        for client in participants:
            up = clients.payload(server_round, "uplink", client) - HEADER
            down = clients.payload(server_round, "downlink", client) - HEADER * (1 + merged)
            returns = client == 2 and server_round == 3 and row.returning is not None
            assert up == row.up(sizes, server_round)
            if returns and row.returning is not None:
                assert down == row.returning(sizes)
            else:
                assert down == row.down(sizes, server_round)


def test_every_strategy_of_ours_has_a_row():
    assert set(strategies.available()) == set(ROWS)

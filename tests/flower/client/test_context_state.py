"""What clients remember between rounds, on a real client app, and what the server need not send."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import Context, Error, Message

from fl_vitlora.communication.ledger import Ledger
from fl_vitlora.communication.packing import Layout
from fl_vitlora.config import Config, TrainingConfig, load
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import LEARNING_RATE, SERVER_ROUND, Instruction
from fl_vitlora.finetuning import targets
from fl_vitlora.flower.client import context_state
from fl_vitlora.flower.client.app import make_client_app
from fl_vitlora.flower.client.workspace import workspace
from fl_vitlora.flower.server.secure_sums import SecureAggregator
from fl_vitlora.flower.wire import messages
from fl_vitlora.flower.wire.layouts import products_layout
from fl_vitlora.lowrank import MERGED_A, MERGED_B, A, B, paths
from fl_vitlora.state import State, add, l2_norm, scale, subtract
from fl_vitlora.strategy import ClientPlan, LocalWork, Strategy, Update
from tests.flower.conftest import SIZES, LocalGrid, both, transport_of, write_shards

B_ROUND, A_ROUND = ClientPlan(frozen=(A,)), ClientPlan(frozen=(B,))


RATE = 1e-2
TRAINING = TrainingConfig(  # plain descent keeps rounding small
    epochs=2, batch_size=4, optimizer="sgd", learning_rate=RATE, schedule="constant"
)


@dataclass(frozen=True, kw_only=True)
class Plain(Strategy):
    """A client half without anything."""

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        raise NotImplementedError


class Clients:
    """Three clients of a strategy, on plain images."""

    def __init__(
        self,
        folder: Path,
        strategy: Strategy | None = None,
        sums: SecureAggregator | None = None,
        *,
        repeats_errors: bool = True,
        training: TrainingConfig = TRAINING,
        **given: Any,
    ) -> None:
        overrides = {path.replace("__", "."): value for path, value in given.items()}
        self.config: Config = load(None, {"clients": 3, "encryption.steps": [], **overrides})
        self.config = replace(
            self.config,
            training=training,
            encryption=replace(self.config.encryption, key_file=""),
        )
        folder.mkdir(exist_ok=True)
        self.settings = write_shards(folder, self.config, bytes(32), strategy or Plain())
        self.worker = workspace(self.settings)
        self.initial = {name: self.worker.initial[name] for name, _ in self.worker.layout.shapes}
        self.ledger = Ledger()
        self.grid = LocalGrid(make_client_app(lambda context: self.settings), len(SIZES))
        self.transport = transport_of(
            self.grid,
            self.initial,
            self.ledger,
            config=self.settings.config,
            sums=sums,
            timeout=1,
            repeats_errors=repeats_errors,
        )
        self.transport.greet(len(SIZES))

    def train(
        self,
        server_round: int,
        model: State | GlobalModel,
        *clients: int,
        plan: ClientPlan | None = None,
        broadcast: State | None = None,
        rate: float = RATE,
    ) -> list[Update]:
        whole = model if isinstance(model, GlobalModel) else GlobalModel(tensors=model)
        config: dict[str, Any] = {
            SERVER_ROUND: server_round,
            LEARNING_RATE: rate,
        }
        asked = [
            Instruction(
                client=client,
                model=whole,
                config=config,
                plan=plan or ClientPlan(),
                broadcast=broadcast or {},
            )
            for client in clients or range(3)
        ]
        exchange = self.transport.exchange(server_round, asked)
        updates, self.failures = both(exchange)
        self.clipped = exchange.clipped
        return updates

    def context(self, client: int) -> Context:
        """What a client has kept."""
        return Context(1, client, {}, self.grid.kept[client], {})

    def payload(self, server_round: int, direction: str, client: int = 0) -> int:
        """Counts the scalars of all packed tensors of one message."""
        (entry,) = (
            e
            for e in self.ledger
            if (e.round, e.direction, e.client) == (server_round, direction, client)
            and e.purpose == "training"
        )
        return entry.payload // 4


def size(state: State, ending: str) -> int:
    return sum(tensor.numel() for name, tensor in state.items() if name.endswith(ending))


def moved(model: State, update: Update) -> State:
    """A model that moved where this update did."""
    return {n: w + update.delta[n] if n in update.delta else w for n, w in model.items()}


def equal(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


HEADER = 0  # beside the scalars of a record, no payload travels


def test_what_rests_travels_once_and_only_when_it_has_changed(tmp_path: Path):
    """Alternating halves: each round sends down the half that was trained before it."""
    clients = Clients(tmp_path)
    model, a, b = clients.initial, size(clients.initial, A), size(clients.initial, B)
    rest = sum(tensor.numel() for tensor in model.values()) - a - b
    for server_round, plan in enumerate((B_ROUND, A_ROUND, B_ROUND, A_ROUND), start=1):
        (update,) = clients.train(server_round, model, 0, plan=plan)
        trained_b = plan == B_ROUND
        up = clients.payload(server_round, "uplink") - HEADER - rest
        down = clients.payload(server_round, "downlink") - HEADER - rest
        assert up == (b if trained_b else a)
        first = server_round == 1
        assert down == (b if first or not trained_b else a)
        model = moved(model, update)


def test_a_client_that_is_spared_trains_as_one_that_is_sent_everything(tmp_path: Path):
    """The second client joins in each round anew, so it remembers nothing."""
    clients, model = Clients(tmp_path), None
    model = clients.initial
    for server_round, plan in enumerate((B_ROUND, A_ROUND, B_ROUND), start=1):
        (update,) = clients.train(server_round, model, 0, plan=plan)
        fresh = Clients(tmp_path / f"fresh{server_round}")
        (expected,) = fresh.train(server_round, model, 0, plan=plan)
        assert equal(update.delta, expected.delta)
        model = moved(model, update)


def test_a_client_that_sat_out_is_sent_all_that_has_changed(tmp_path: Path):
    clients = Clients(tmp_path)
    model, plans = clients.initial, (B_ROUND, A_ROUND, B_ROUND)
    for server_round, plan in enumerate(plans, start=1):
        participants = (0, 1) if server_round != 2 else (0,)
        updates = clients.train(server_round, model, *participants, plan=plan)
        assert clients.failures == []
        model = moved(model, updates[0])
    everything = sum(tensor.numel() for tensor in model.values())
    assert clients.payload(3, "downlink", 1) == HEADER + everything
    assert clients.payload(3, "downlink", 0) == HEADER + everything - size(model, B)


def test_who_did_not_answer_is_taken_to_remember_nothing(tmp_path: Path):
    clients = Clients(tmp_path)
    changed = {name: tensor + 1 for name, tensor in clients.initial.items()}
    clients.train(1, changed, 0, plan=B_ROUND)
    clients.grid.silent = {0}
    clients.train(2, changed, 0, plan=B_ROUND)
    assert [failure.client for failure in clients.failures] == [0]
    clients.grid.silent = set()
    clients.train(3, changed, 0, plan=B_ROUND)
    cached = size(changed, A)
    assert clients.payload(3, "downlink") == clients.payload(2, "downlink") + cached
    assert clients.payload(1, "downlink") == clients.payload(3, "downlink")


def test_a_client_that_forgot_refuses_instead_of_training_on_something_else(tmp_path: Path):
    clients = Clients(tmp_path, repeats_errors=False)
    changed = {name: tensor + 1 for name, tensor in clients.initial.items()}
    clients.train(1, changed, 0, plan=B_ROUND)
    clients.grid.kept[0].clear()
    assert clients.train(2, changed, 0, plan=B_ROUND) == []
    assert "relies on the stored record rested number 1, but this client has stored nothing" in (
        clients.failures[0].reason
    )
    assert len(clients.train(3, changed, 0, plan=B_ROUND)) == 1  # it is sent everything again


def test_a_client_that_forgot_is_sent_everything_in_the_same_round(tmp_path: Path):
    clients = Clients(tmp_path)
    changed = {name: tensor + 1 for name, tensor in clients.initial.items()}
    clients.train(1, changed, 0, plan=B_ROUND)
    clients.grid.kept[0].clear()
    (update,) = clients.train(2, changed, 0, plan=B_ROUND)
    (expected,) = Clients(tmp_path / "fresh").train(2, changed, 0, plan=B_ROUND)
    assert clients.failures == []
    assert equal(update.delta, expected.delta)
    down = [e.payload // 4 for e in clients.ledger if (e.round, e.direction) == (2, "downlink")]
    assert down[1] - down[0] == size(changed, A)


def test_what_starts_over_is_never_sent_down(tmp_path: Path):
    clients = Clients(tmp_path)
    plan, model = ClientPlan(restarted=(A, B)), clients.initial
    everything = sum(tensor.numel() for tensor in model.values())
    for server_round in (1, 2):
        (update,) = clients.train(server_round, model, 0, plan=plan)
        pairs = size(model, A) + size(model, B)
        assert clients.payload(server_round, "downlink") == HEADER + everything - pairs
        assert clients.payload(server_round, "uplink") == HEADER + everything
        assert l2_norm({n: t for n, t in update.delta.items() if n.endswith((A, B))}) > 0


def merged_pair(model: State, seed: int, rank: int = 3) -> State:
    chance = torch.Generator().manual_seed(seed)
    made = {}
    for path in paths(model):
        (_, inputs), (outputs, _) = model[path + A].shape, model[path + B].shape
        made[path + MERGED_A] = torch.randn(rank, inputs, generator=chance) * 0.1
        made[path + MERGED_B] = torch.randn(outputs, rank, generator=chance) * 0.1
    return made


def test_merged_pairs_are_sent_once_and_those_that_were_missed_too(tmp_path: Path):
    clients = Clients(tmp_path)
    model = GlobalModel(tensors=clients.initial)
    everything = sum(tensor.numel() for tensor in model.tensors.values())
    clients.train(1, model, 0, 1)
    for server_round in (2, 3):
        pairs = merged_pair(model.tensors, server_round)
        model = model.followed_by(model.tensors, pairs)
        each = sum(tensor.numel() for tensor in pairs.values())
        clients.train(server_round, model, *((0,) if server_round == 2 else (0, 1)))
        assert clients.failures == []
        assert clients.payload(server_round, "downlink", 0) == 2 * HEADER + everything + each
    assert clients.payload(3, "downlink", 1) == 2 * HEADER + everything + 2 * each
    clients.train(4, model, 0, 1)
    assert clients.payload(4, "downlink", 1) == HEADER + everything


@pytest.mark.parametrize("rank", [3, 40], ids=["pairs", "their sum"])
def test_who_missed_rounds_has_the_same_weights_as_who_did_not_to_the_last_bit(
    rank: int, tmp_path: Path
):
    """The second pair moves one path alone; rank 40 of two rounds is longer than the product."""
    clients = Clients(tmp_path)
    model = GlobalModel(tensors=clients.initial)
    first, *_ = paths(clients.initial)
    for server_round in (1, 2, 3):
        pairs = merged_pair(model.tensors, server_round, rank)
        chosen = {n: t for n, t in pairs.items() if server_round != 2 or n.startswith(f"{first}.")}
        model = model.followed_by(model.tensors, chosen)
        clients.train(server_round, model, *((0, 1) if server_round == 3 else (0,)))
        assert clients.failures == []
    products = products_layout(Layout.of(clients.initial))
    for client in (0, 1):
        state = clients.context(client).state
        increments = messages.from_packed(state, products, record=context_state.INCREMENTS)
        assert equal(increments, model.increments)


def test_who_missed_many_rounds_is_sent_their_sum(tmp_path: Path):
    """Rank 40 of 96·96: two rounds' pairs are longer than the product."""
    clients, fresh = Clients(tmp_path), Clients(tmp_path / "fresh")
    model = GlobalModel(tensors=clients.initial)
    clients.train(1, model, 0, 1)
    for server_round in (2, 3, 4):
        pairs = merged_pair(model.tensors, server_round, rank=40)
        model = model.followed_by(model.tensors, {n: t * 0.1 for n, t in pairs.items()})
        clients.train(server_round, model, 0)
    everything = sum(tensor.numel() for tensor in model.tensors.values())
    dense = 96 * 96 * len(paths(model.tensors))
    (steady, returning) = clients.train(5, model, 0, 1)
    assert clients.failures == []
    assert clients.payload(5, "downlink", 0) == HEADER + everything
    assert clients.payload(5, "downlink", 1) == 2 * HEADER + everything + dense
    assert clients.payload(4, "downlink", 0) < clients.payload(5, "downlink", 1)
    assert len(model.merges) == 1
    expected = fresh.train(5, model, 0, 1)
    for found, wanted in zip((steady, returning), expected, strict=True):
        assert l2_norm(subtract(found.delta, wanted.delta)) < 0.01 * l2_norm(wanted.delta)
    clients.train(6, model.followed_by(model.tensors, pairs), 0, 1)
    assert clients.failures == []


def test_a_client_trains_on_the_weights_that_all_merged_pairs_make(tmp_path: Path):
    clients = Clients(tmp_path)
    model = GlobalModel(tensors=clients.initial)
    for seed in (1, 2):
        model = model.followed_by(model.tensors, merged_pair(model.tensors, seed))
    (whole,) = clients.train(3, model, 0)
    stepwise = Clients(tmp_path / "stepwise")
    step = GlobalModel(tensors=clients.initial)
    for server_round, seed in ((1, 1), (2, 2)):
        step = step.followed_by(step.tensors, merged_pair(step.tensors, seed))
        if server_round == 1:
            stepwise.train(server_round, step, 0)
    (update,) = stepwise.train(3, step, 0)
    for name, tensor in update.delta.items():
        assert torch.allclose(whole.delta[name], tensor, atol=1e-4), name
    (plain,) = Clients(tmp_path / "plain").train(3, clients.initial, 0)
    assert l2_norm(subtract(plain.delta, whole.delta)) > 0.01 * l2_norm(plain.delta)


def test_merging_leaves_the_next_client_of_the_worker_its_own_weights(tmp_path: Path):
    clients = Clients(tmp_path)
    model = GlobalModel(tensors=clients.initial)
    (before,) = clients.train(1, model, 1)
    clients.train(1, model.followed_by(model.tensors, merged_pair(model.tensors, 5)), 0)
    (after,) = Clients(tmp_path / "again").train(1, model, 1)
    assert equal(before.delta, after.delta)


def test_measuring_brings_merged_pairs_too(tmp_path: Path):
    clients = Clients(tmp_path)
    torch.manual_seed(0)
    speaking = {"head.weight": torch.randn(clients.initial["head.weight"].shape)}
    model = GlobalModel(tensors={**clients.initial, **speaking})
    clients.train(1, model, 0)
    before = clients.transport.measure(1, model, ["right_key"])
    model = model.followed_by(model.tensors, merged_pair(model.tensors, 3))
    after = clients.transport.measure(1, model, ["right_key"])
    assert before != after
    (update,) = clients.train(2, model, 0)
    assert clients.failures == []
    assert clients.payload(2, "downlink") == HEADER + sum(
        tensor.numel() for tensor in update.delta.values()
    )


def test_a_smaller_rank_trains_as_a_smaller_model_and_sends_no_more(tmp_path: Path):
    """Rank 4 scaled by α/4, cut to two: as rank 2 with α' = α/2, which has the same scale."""
    cut_down = Clients(tmp_path, finetuning__client_ranks=[2, 4, 4])
    small = Clients(tmp_path / "small", finetuning__rank=2, finetuning__alpha=4.0)
    start = {
        name: tensor[:2] if name.endswith(A) else tensor[:, :2] if name.endswith(B) else tensor
        for name, tensor in cut_down.initial.items()
    }
    (update,) = cut_down.train(1, cut_down.initial, 0)
    (expected,) = small.train(1, start, 0)
    assert update.rank == 2
    assert cut_down.payload(1, "uplink") == small.payload(1, "uplink")
    assert cut_down.payload(1, "downlink") == small.payload(1, "downlink")
    for name, tensor in expected.delta.items():
        inside = tuple(slice(extent) for extent in tensor.shape)
        assert torch.allclose(update.delta[name][inside], tensor, atol=1e-6), name
        assert update.delta[name].square().sum() == pytest.approx(
            float(tensor.square().sum()), rel=1e-4
        )


@dataclass(frozen=True, kw_only=True)
class Counting(Plain):
    """Drifts by what it was sent plus what it remembers, and remembers how often it trained."""

    def drift(self, broadcast: State, memory: State) -> State:
        return add(broadcast, memory) if memory and broadcast else broadcast

    def report(self, work: LocalWork, broadcast: State, memory: State) -> tuple[State, State]:
        del broadcast
        taken = scale(work.delta, 1 / (work.steps * work.rate))
        one = {name: torch.ones_like(tensor) for name, tensor in taken.items()}
        return taken, add(memory, one) if memory else one


@dataclass(frozen=True, kw_only=True)
class OwnB(Plain):
    """Every client keeps its B."""

    personal: ClassVar[tuple[str, ...]] = (B,)


def test_what_a_strategy_reports_arrives_and_what_it_remembers_stays(tmp_path: Path):
    clients = Clients(tmp_path, Counting())
    (first,) = clients.train(1, clients.initial, 0)
    assert first.steps == 2 * 5
    for name, tensor in first.report.items():
        assert torch.allclose(tensor * (10 * 1e-2), first.delta[name], atol=1e-6)
    still = {name: torch.zeros_like(tensor) for name, tensor in clients.initial.items()}
    (plain,) = clients.train(1, clients.initial, 1)
    (drifting,) = clients.train(2, clients.initial, 0, broadcast=still)  # memory is all ones
    (fresh,) = Clients(tmp_path / "fresh").train(2, clients.initial, 0)
    gained = subtract(drifting.delta, fresh.delta)
    mean = sum(float(tensor.sum()) for tensor in gained.values()) / sum(
        tensor.numel() for tensor in gained.values()
    )
    assert mean == pytest.approx(10 * 1e-2, rel=0.3)  # ten steps of η, against the gradient
    assert plain.client == 1


def test_what_a_strategy_remembers_and_sends_of_resting_tensors_is_put_aside(tmp_path: Path):
    """A strategy that adds its broadcast to its memory sees the same tensors in both."""
    clients = Clients(tmp_path, Counting())
    still = {name: torch.zeros_like(tensor) for name, tensor in clients.initial.items()}
    clients.train(1, clients.initial, 0, broadcast=still)
    (update,) = clients.train(2, clients.initial, 0, broadcast=still, plan=B_ROUND)
    assert update.delta.keys() == {name for name in clients.initial if not name.endswith(A)}
    trained = {n: float(t.max()) for n, t in context_state.own(clients.context(0), None).items()}
    assert trained == {name: 1 if name.endswith(A) else 2 for name in clients.initial}
    awake = sum(tensor.numel() for name, tensor in still.items() if not name.endswith(A))
    assert clients.payload(2, "downlink") == 2 * awake  # the model and the broadcast


def test_what_clients_send_rarely_is_sent_to_them_and_all_else_that_rests_is_not(tmp_path: Path):
    clients = Clients(tmp_path, compression__uplink__lora_B="every(2)+float32")
    clients.train(1, clients.initial, 0, plan=ClientPlan(frozen=(A, B)))
    assert clients.failures == []
    whole = sum(tensor.numel() for tensor in clients.initial.values())
    assert clients.payload(1, "downlink") == whole - size(clients.initial, A)


def lost(reply: Message, message: Message) -> Message:
    """The client has done its work, and the server hears nothing of it."""
    del reply
    return Message(Error(3, "lost"), reply_to=message)


def test_what_a_client_remembered_of_a_round_that_the_server_missed_is_forgotten(tmp_path: Path):
    """Its reply of the second round is lost: it goes on as if that had not been."""
    losing, whole = Clients(tmp_path, Counting()), Clients(tmp_path / "whole", Counting())
    still = {name: torch.zeros_like(tensor) for name, tensor in losing.initial.items()}
    for clients in (losing, whole):
        clients.train(1, clients.initial, 0)
    answer = losing.grid.answer
    losing.grid.answer = lambda message: lost(answer(message), message)  # type: ignore[method-assign]
    for server_round in (2, 3):
        assert losing.train(server_round, losing.initial, 0, broadcast=still) == []
    losing.grid.answer = answer  # type: ignore[method-assign]
    (found,) = losing.train(4, losing.initial, 0, broadcast=still)
    (expected,) = whole.train(4, whole.initial, 0, broadcast=still)
    assert equal(found.delta, expected.delta)
    assert context_state.own(losing.context(0), None).keys() == losing.initial.keys()
    for clients in (losing, whole):
        assert all(
            float(t.max()) == 2 for t in context_state.own(clients.context(0), None).values()
        )


@pytest.mark.parametrize("strategy", [Counting(), OwnB()], ids=["memory", "personal"])
def test_a_diverged_round_leaves_no_trace(strategy: Strategy, tmp_path: Path):
    clients, fresh = Clients(tmp_path, strategy), Clients(tmp_path / "fresh", strategy)
    clients.train(1, clients.initial, 0)
    fresh.train(1, clients.initial, 0)
    assert clients.train(2, clients.initial, 0, rate=1e30) == []
    assert "NaN or infinity" in clients.failures[0].reason
    (found,) = clients.train(3, clients.initial, 0)
    (expected,) = fresh.train(3, clients.initial, 0)
    assert equal(found.delta, expected.delta)


@dataclass(frozen=True, kw_only=True)
class Backwards(Counting):
    """Reports in another order of names."""

    def report(self, work: LocalWork, broadcast: State, memory: State) -> tuple[State, State]:
        said, kept = super().report(work, broadcast, memory)
        return dict(reversed(said.items())), kept


def test_the_order_of_names_does_not_matter(tmp_path: Path):
    clients, others = Clients(tmp_path, Backwards()), Clients(tmp_path / "others", Counting())
    sent = dict(reversed(clients.initial.items()))
    (found,) = clients.train(1, clients.initial, 0, broadcast=sent)
    (expected,) = others.train(1, clients.initial, 0, broadcast=clients.initial)
    assert clients.failures == []
    assert equal(found.report, expected.report)


def test_different_pairs_may_be_merged_in_different_rounds(tmp_path: Path):
    clients = Clients(tmp_path)
    model = GlobalModel(tensors=clients.initial)
    pairs = merged_pair(model.tensors, 1)
    clients.train(1, model, 0)
    for server_round, path in ((2, paths(model.tensors)[3]), (3, paths(model.tensors)[0])):
        chosen = {name: tensor for name, tensor in pairs.items() if name.startswith(f"{path}.")}
        model = model.followed_by(model.tensors, chosen)
        clients.train(server_round, model, 0)
        assert clients.failures == []
    (update,) = clients.train(4, model, 0)
    (expected,) = Clients(tmp_path / "fresh").train(4, model, 0)
    assert all(torch.allclose(t, expected.delta[n], atol=1e-5) for n, t in update.delta.items())


@pytest.mark.parametrize("method", ["lora+patch_embed", "lora", "head", "full"])
def test_every_method_trains_and_is_measured(method: str, tmp_path: Path):
    clients = Clients(tmp_path, finetuning__method=method)
    updates = clients.train(1, clients.initial)
    assert clients.failures == []
    assert all(l2_norm(update.delta) > 0 for update in updates)
    assert len(clients.transport.measure(1, GlobalModel(tensors=clients.initial), ["right_key"]))


def test_personal_matrices_never_travel_and_go_on_where_they_were(tmp_path: Path):
    clients = Clients(tmp_path, OwnB())
    assert not any(name.endswith(B) for name in clients.initial)
    (first,) = clients.train(1, clients.initial, 0)
    (second,) = clients.train(2, clients.initial, 0)
    (newcomer,) = Clients(tmp_path / "new", OwnB()).train(2, clients.initial, 0)
    assert not any(name.endswith(B) for name in first.delta)
    assert not equal(second.delta, newcomer.delta)


@dataclass(frozen=True, kw_only=True)
class Between(Plain):
    """Trains the matrix between."""

    adapter: ClassVar[Any] = "sandwich"

    def plan(self, server_round: int) -> ClientPlan:
        del server_round
        return ClientPlan(frozen=(A, B))


def test_of_a_sandwich_only_the_filling_travels(tmp_path: Path):
    clients = Clients(tmp_path, Between())
    (update,) = clients.train(1, clients.initial, 0, plan=Between().plan(1))
    rest = sum(t.numel() for n, t in clients.initial.items() if not n.endswith((A, B)))
    assert clients.payload(1, "uplink") == clients.payload(1, "downlink") == HEADER + rest
    filling = {n: t for n, t in update.delta.items() if n.endswith(".lora_R")}
    assert {tuple(t.shape) for t in filling.values()} == {(4, 4)}
    assert l2_norm(filling) > 0


def test_increments_can_be_put_and_taken_away(tmp_path: Path):
    clients = Clients(tmp_path)
    model = clients.worker.backbone.model
    frozen = {n: p.clone() for n, p in model.named_parameters() if n.endswith("qkv.base.weight")}
    (path, *_) = paths(clients.initial)
    targets.put_increments(model, {path: torch.ones(96, 96)})
    changed = dict(model.named_parameters())
    name = "blocks.0.attn.qkv.base.weight"
    assert torch.allclose(changed[name][:96] - frozen[name][:96], torch.full((96, 96), 2.0))
    assert torch.equal(changed[name][96:], frozen[name][96:])
    targets.put_increments(model, {})
    assert all(torch.equal(changed[n], tensor) for n, tensor in frozen.items())


def test_a_coarse_codec_does_not_move_measured_means_away_from_the_measurements(tmp_path: Path):
    """A measurement minus the server's value has all that earlier rounds did not send."""
    method: dict[str, Any] = {"finetuning__method": "lora+feature_statistics"}
    exact = Clients(tmp_path / "exact", **method)
    coarse = Clients(tmp_path / "coarse", **method, compression__uplink="int2")
    measured = exact.worker.method.measured
    names = [name for name in exact.initial if name.endswith(measured)]
    (seen,) = exact.train(1, exact.initial, 0, rate=1e-9)  # too small to change the features
    model = dict(coarse.initial)
    for server_round in range(1, 13):
        (update,) = coarse.train(server_round, model, 0, rate=1e-9)
        model = add(model, {name: update.delta[name] for name in model})
    for name in names:
        expected = exact.initial[name] + seen.delta[name]
        assert float((model[name] - expected).norm()) < 0.05 * float(expected.norm())

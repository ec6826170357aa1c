"""A client under a key of its own trains and measures as it would on plain images."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_vitlora.communication.ledger import Ledger
from fl_vitlora.config import load
from fl_vitlora.data.owner import NO_KEY, RIGHT_KEY, WRONG_KEY, key_holder
from fl_vitlora.encryption.holder import KeyHolder, client_party
from fl_vitlora.encryption.keys import KeyRing, open_ring
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.errors import UserError
from fl_vitlora.federation.evaluation import ALL_VIEWS
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.instruction import LEARNING_RATE, SERVER_ROUND, Instruction
from fl_vitlora.flower.client.app import make_client_app
from fl_vitlora.flower.client.context_state import KEPT
from fl_vitlora.flower.client.workspace import ClientSettings, workspace
from fl_vitlora.flower.wire import messages
from fl_vitlora.models.reading import WEIGHT, exchanged_reader
from fl_vitlora.state import State, add, l2_norm, mean, subtract
from tests.flower.conftest import SECRET, SIZES, LocalGrid, both, transport_of, write_shards
from tests.whole_runs import ROUNDING

BIAS = "patch_embed.proj.bias"
CLIENTS = range(len(SIZES))


class Clients:
    """Three clients with what they were told, their shards and their key ring."""

    def __init__(self, folder: Path, **overrides: Any) -> None:
        ring = folder / "owner.key"
        ring.write_text(SECRET.hex())
        ring.chmod(0o600)
        given = {path.replace("__", "."): value for path, value in overrides.items()}
        config = load(
            None,
            {
                "encryption.key_file": str(ring),
                "training.epochs": 3,
                "training.optimizer": "sgd",
                **given,
            },
        )
        if not config.encryption.steps:
            config = replace(config, encryption=replace(config.encryption, key_file=""))
        self.settings: ClientSettings = write_shards(folder, config, SECRET)
        self.holder: KeyHolder = key_holder(
            config, patch_size=4, image_shape=(3, 16, 16), secret=SECRET
        )
        self.grid = LocalGrid(make_client_app(lambda context: self.settings), len(SIZES))
        self.transport = transport_of(
            self.grid, self.initial(), Ledger(), config=self.settings.config, timeout=1
        )
        self.transport.greet(len(SIZES))

    def initial(self) -> State:
        worker = workspace(self.settings)
        return {name: worker.initial[name] for name, _ in worker.layout.shapes}

    def train(self, model: State, server_round: int = 1) -> list[State]:
        config: dict[str, Any] = {
            SERVER_ROUND: server_round,
            LEARNING_RATE: 5e-2,
        }
        asked = [
            Instruction(client=c, model=GlobalModel(tensors=model), config=config) for c in CLIENTS
        ]
        updates, failures = both(self.transport.exchange(server_round, asked))
        assert failures == []
        return [update.delta for update in updates]

    def kept(self, client: int) -> State:
        return messages.from_packed(
            self.grid.kept[client], workspace(self.settings).kept, record=KEPT
        )


@pytest.fixture
def make(tmp_path: Path) -> Any:
    def clients(name: str, **overrides: Any) -> Clients:
        (tmp_path / name).mkdir()
        return Clients(tmp_path / name, **overrides)

    return clients


ADAPTED = {"encryption__scope": "client", "encryption__adapt": True}


def near(found: State, expected: State) -> bool:
    """Returns True if two differences are equal except for the rounding of float32.

    A difference is that of weights, which may be a hundred times as large, and so is rounding.
    """
    return l2_norm(subtract(found, expected)) < 100 * ROUNDING * l2_norm(expected)


@pytest.mark.parametrize("policy", ["aligned", "local"])
def test_under_keys_of_their_own_adapted_clients_send_what_they_would_of_plain_images(
    make: Any, policy: str
) -> None:
    """For two rounds: what they keep to themselves takes part in the second."""
    plain = make("plain", encryption__steps=[], finetuning__patch_embedding=policy)
    keyed = make("keyed", finetuning__patch_embedding=policy, **ADAPTED)
    model = plain.initial()
    assert all(torch.equal(tensor, model[name]) for name, tensor in keyed.initial().items())
    for server_round in (1, 2):
        expected = plain.train(model, server_round)
        for found, wanted in zip(keyed.train(model, server_round), expected, strict=True):
            assert list(found) == list(wanted)
            assert near(found, wanted)
        assert not near(expected[0], expected[1])
        model = add(model, mean(expected, SIZES))


def test_tensors_that_stay_are_each_clients_own_and_grow_from_round_to_round(make: Any) -> None:
    keyed = make("keyed", finetuning__patch_embedding="local", **ADAPTED)
    model, origin = keyed.initial(), workspace(keyed.settings).origin
    assert {WEIGHT, BIAS}.isdisjoint(model)
    keyed.train(model)
    first = [keyed.kept(client) for client in CLIENTS]
    assert all(set(state) == {WEIGHT, BIAS} for state in first)
    assert len({str(state[WEIGHT].tolist()) for state in first}) == len(SIZES)
    keyed.train(model, 2)
    for client in CLIENTS:
        party, moved = client_party(client), []
        for state in (first[client], keyed.kept(client)):
            reader = exchanged_reader(state, 16)
            start = keyed.holder.adapt(origin, party).weight
            moved.append(float((reader.weight - start).norm() / start.norm()))
            restored = keyed.holder.restore(
                PatchReader(weight=reader.weight, position=reader.position), party
            )
            back = float((restored.weight - origin.weight).norm() / start.norm())
            assert back == pytest.approx(moved[-1], rel=1e-5)
        assert 0 < moved[0] < moved[1] < 0.5


def test_what_stays_is_used_in_the_next_round(make: Any) -> None:
    """A client that has forgotten what it kept trains otherwise."""
    keyed = make("keyed", finetuning__patch_embedding="local", **ADAPTED)
    model = keyed.initial()
    model = add(model, mean(keyed.train(model, 1), SIZES))
    before = keyed.transport.measure(1, GlobalModel(tensors=model), [RIGHT_KEY])
    remembered = keyed.train(model, 2)
    for state in keyed.grid.kept:
        del state.array_records[KEPT]
    forgotten = keyed.train(model, 2)
    assert not any(near(a, b) for a, b in zip(remembered, forgotten, strict=True))
    for state in keyed.grid.kept:
        del state.array_records[KEPT]
    assert keyed.transport.measure(1, GlobalModel(tensors=model), [RIGHT_KEY]) != before


def test_measuring_keeps_nothing(make: Any) -> None:
    keyed = make("keyed", finetuning__patch_embedding="local", **ADAPTED)
    keyed.transport.measure(1, GlobalModel(tensors=keyed.initial()), ALL_VIEWS)
    assert not any(KEPT in state.array_records for state in keyed.grid.kept)


@pytest.mark.parametrize("policy", ["aligned", "local"])
def test_adapted_clients_measure_what_they_would_on_plain_images(make: Any, policy: str) -> None:
    """After a round of training, so that the head tells classes apart."""
    plain = make("plain", encryption__steps=[], finetuning__patch_embedding=policy)
    keyed = make("keyed", finetuning__patch_embedding=policy, **ADAPTED)
    model = plain.initial()
    deltas = plain.train(model)
    keyed.train(model)
    model = add(model, mean(deltas, SIZES))
    expected = plain.transport.measure(1, GlobalModel(tensors=model), [RIGHT_KEY])
    found = keyed.transport.measure(1, GlobalModel(tensors=model), ALL_VIEWS)
    for (_, samples, measured, _), (_, wanted, seen, _) in zip(expected, found, strict=True):
        assert samples == wanted
        assert set(seen) == {RIGHT_KEY, WRONG_KEY, NO_KEY}
        assert seen[RIGHT_KEY][1] == pytest.approx(measured[RIGHT_KEY][1], rel=1e-3)
        for view in (WRONG_KEY, NO_KEY):
            assert seen[view][1] != pytest.approx(measured[RIGHT_KEY][1], rel=1e-2)


def test_without_alignment_each_key_gives_another_difference(make: Any) -> None:
    """What makes a mean of adapted patch embeddings meaningless."""
    keyed = make("keyed", encryption__allow_meaningless=True, **ADAPTED)
    aligned = make("aligned", finetuning__patch_embedding="aligned", **ADAPTED)
    for client, (raw, turned) in enumerate(
        zip(keyed.train(keyed.initial()), aligned.train(aligned.initial()), strict=True)
    ):
        reader = keyed.holder.restore(exchanged_reader(raw, 16), client_party(client))
        weight = {WEIGHT: reader.weight.view_as(raw[WEIGHT])}
        assert near(weight, {WEIGHT: turned[WEIGHT]})
        assert not near({WEIGHT: raw[WEIGHT]}, {WEIGHT: turned[WEIGHT]})


@pytest.mark.parametrize("steps", ["EtC", "PE"])
def test_kernels_for_every_patch_are_exchanged_in_plain_coordinates(make: Any, steps: str) -> None:
    keyed = make("a", encryption__steps=steps, finetuning__patch_embedding="aligned", **ADAPTED)
    shared = make(
        "b",
        encryption__steps=steps,
        finetuning__patch_embedding="aligned",
        encryption__adapt=True,
    )
    model = keyed.initial()
    assert model[WEIGHT].shape == (16, 96, 48)
    for found, wanted in zip(keyed.train(model), shared.train(model), strict=True):
        assert near(found, wanted)  # whosever key it is


def test_of_a_rotated_ring_the_secret_that_the_shards_name_is_taken(make: Any) -> None:
    keyed = make("keyed", finetuning__patch_embedding="aligned", **ADAPTED)
    before = keyed.train(keyed.initial())
    ring: KeyRing = open_ring(Path(keyed.settings.config.encryption.key_file))
    assert ring.rotated().current != SECRET
    workspace.cache_clear()
    for found, wanted in zip(keyed.train(keyed.initial()), before, strict=True):
        assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_a_ring_without_that_secret_is_refused(make: Any) -> None:
    keyed = make("keyed", finetuning__patch_embedding="aligned", **ADAPTED)
    Path(keyed.settings.config.encryption.key_file).write_text(bytes(32).hex())
    workspace.cache_clear()
    with pytest.raises(UserError, match="has no key"):
        workspace(keyed.settings)

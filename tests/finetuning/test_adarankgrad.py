"""Common subspaces: the rank, the steps, what averaging does, and what rests."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.errors import UserError
from fl_vitlora.federation.aggregation_gap import aggregation_gap, places_of
from fl_vitlora.finetuning import methods, shelf
from fl_vitlora.finetuning.common_subspaces import CommonSubspaces
from fl_vitlora.finetuning.method import Method
from fl_vitlora.finetuning.part import Aggregated
from fl_vitlora.finetuning.singular_vectors import leading_directions, smallest_rank
from fl_vitlora.state import State, count
from fl_vitlora.strategy import Update
from tests.conftest import random_vit

RANK, WIDTH, SLICES = 4, 96, 12  # of the defaults on the bundled model


@pytest.fixture
def float64() -> Any:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def trained_model(**parameters: Any) -> nn.Module:
    model = random_vit().model
    methods.prepare(model, FineTuningConfig(method="adarankgrad", parameters=parameters), 0)
    return model


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("error", [0.05, 0.2, 0.5])
def test_the_rank_is_the_smallest_one_within_the_error(error: float):
    matrix = torch.randn(20, 30) * torch.linspace(1, 0.01, 30)
    rank = smallest_rank(matrix, error)
    vectors = leading_directions(matrix)

    def residual(kept: int) -> float:
        some = vectors[:kept]
        return float((matrix - matrix @ some.mT @ some).norm() / matrix.norm())

    assert residual(rank) <= error < residual(rank - 1)


@pytest.mark.usefixtures("float64")
def test_the_rank_of_sixteen_directions_and_a_little_noise_is_sixteen():
    left, right = (torch.linalg.qr(torch.randn(64, 16)).Q for _ in range(2))
    assert smallest_rank(left @ right.mT + 1e-3 * torch.randn(64, 64), 0.2) == 16


@pytest.mark.usefixtures("float64")
def test_singular_vectors_do_not_depend_on_signs_and_are_orthonormal():
    rows = torch.randn(3, 4, 9)
    vectors = leading_directions(rows)
    assert torch.allclose(vectors @ vectors.mT, torch.eye(4).expand(3, 4, 4), atol=1e-14)
    assert torch.allclose(leading_directions(-rows), vectors, atol=1e-13)


def steps(optimizer: type[torch.optim.Optimizer], first: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns W after steps on all entries, and W' after steps in a subspace of full rank."""
    weight, target = torch.randn(6, 6), torch.randn(6, 6)
    adapter = CommonSubspaces(weight, 6, 1)
    if first is not None:
        adapter.first = first
    plain = nn.Parameter(weight.clone())
    results = []
    for parameters, made in (([plain], lambda: plain), (list(adapter.parameters()), None)):
        descent = optimizer(parameters, lr=0.1)  # type: ignore[call-arg]
        for _ in range(5):
            descent.zero_grad()
            now = adapter.adapted(weight) if made is None else made()
            (now - target).pow(4).sum().backward()
            descent.step()
        results.append((adapter.adapted(weight) if made is None else made()).detach())
    return results[0], results[1]


@pytest.mark.usefixtures("float64")
def test_in_the_standard_basis_the_steps_are_those_of_adam():
    one, other = steps(torch.optim.Adam, torch.eye(6))
    assert torch.allclose(one, other, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("float64")
def test_in_full_rank_the_steps_are_those_of_sgd():
    def sgd(parameters: Any, lr: float) -> torch.optim.SGD:
        return torch.optim.SGD(parameters, lr=lr / 100)

    one, other = steps(sgd, None)  # type: ignore[arg-type]
    assert torch.allclose(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("subspace", range(4))
def test_averaging_is_exact_in_every_subspace(subspace: int):
    model = trained_model(subspaces=4)
    state = methods.export_state(model)
    draw = torch.Generator().manual_seed(0)

    def is_in(name: str, last: int) -> bool:
        return any(f".subspaces.{k}." in name for k in range(last + 1))

    before = {
        n: t + 0.1 * torch.randn(t.shape, generator=draw) if is_in(n, subspace) else t
        for n, t in state.items()
    }
    moving = [n for n in state if f".subspaces.{subspace}." in n]
    updates = [
        Update(
            client=client,
            samples=samples,
            loss=1.0,
            delta={n: torch.randn(before[n].shape, generator=draw) for n in moving},
        )
        for client, samples in enumerate((1, 3, 2))
    ]
    shares = [update.samples / 6 for update in updates]
    new = dict(before)
    for name in moving:
        for share, update in zip(shares, updates, strict=True):
            new[name] = new[name] + share * update.delta[name]
    gap = aggregation_gap(places_of(model), before, updates, new)
    assert gap is not None and gap < 1e-6


def test_the_earlier_changes_stay_in_the_weight_when_a_subspace_begins():
    adapter = CommonSubspaces(torch.zeros(8, 5), 2, 3).double()
    weight = torch.zeros(8, 5, dtype=torch.float64)
    for row in adapter.subspaces[0].parameters():
        row.data.normal_()
    first = adapter.adapted(weight).detach()
    for row in adapter.subspaces[1].parameters():
        row.data.normal_()
    moved = adapter.adapted(weight).detach() - first
    assert torch.allclose(first, adapter.first.mT @ adapter.coordinates(0), atol=1e-14)
    assert torch.allclose(moved, adapter.coordinates(1).mT @ adapter.basis(1), atol=1e-14)
    for row in adapter.subspaces[2].parameters():
        row.data.normal_()
    assert torch.linalg.matrix_rank(adapter.adapted(weight)) == 4  # of two row spaces


def test_the_sides_alternate_towards_the_leading_vectors_of_the_gradient():
    """The angle between Q and the gradient's leading vectors becomes smaller in every subspace."""
    torch.manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(30, 30).double()).Q for _ in range(2))
    gradient = left @ torch.diag(0.6 ** torch.arange(30.0).double()) @ right.mT
    adapter = CommonSubspaces(torch.zeros(30, 30), 2, 5).double()
    kept = []
    for index in range(5):
        basis = adapter.basis(index)
        side = gradient if index % 2 == 0 else gradient.mT
        for row, step in zip(adapter.subspaces[index].parameters(), basis @ side, strict=True):
            row.data.copy_(step)
        kept.append(float((basis @ side).norm()))
    assert kept == sorted(kept)
    assert kept[0] < 0.5 * kept[-1]
    assert kept[-1] > 0.98 * float(torch.linalg.svdvals(gradient)[:2].norm())


def test_one_subspace_is_trained_at_a_time_at_half_of_loras_numbers():
    model = trained_model(subspaces=3)
    part = method().parts[0][1]
    names = list(methods.trainable(model))
    assert len(names) == 2 + 3 * SLICES * RANK
    for index in range(3):
        resting = part.rests(1, {"subspace": torch.tensor(index)})
        moving = {n: p for n, p in methods.trainable(model).items() if not n.endswith(resting)}
        assert count(moving) - 970 == SLICES * RANK * WIDTH


def test_the_state_of_the_optimiser_is_as_small_as_the_subspace():
    """Adam keeps two numbers per trained number: 2·r·n for a slice, and not 2·m·n."""
    adapter = CommonSubspaces(torch.zeros(WIDTH, WIDTH), RANK, 1)
    adam = torch.optim.Adam(adapter.parameters())
    adapter.adapted(torch.ones(WIDTH, WIDTH)).square().sum().backward()
    adam.step()
    kept = [t for state in adam.state.values() for n, t in state.items() if n.startswith("exp_avg")]
    assert sum(t.numel() for t in kept) == 2 * RANK * WIDTH
    assert adapter.first.numel() == RANK * WIDTH


def method(**parameters: Any) -> Method:
    given = {"subspaces": 3, "gap": 4, **parameters}
    return shelf.method_of(FineTuningConfig(method="adarankgrad", parameters=given))


def play(lengths: list[float], directions: int = RANK) -> list[tuple[str, ...]]:
    """Returns what rests in each round if the aggregated step of each round has a given length."""
    chosen = method()
    state = {n: torch.zeros_like(t) for n, t in methods.export_state(trained_model()).items()}
    memory, resting = State(), list[tuple[str, ...]]()
    for number, length in enumerate(lengths, start=1):
        resting.append(chosen.rests(number, memory))
        after = dict(state)
        for name, tensor in state.items():
            row = int(name.rpartition(".")[2]) if "subspaces" in name else directions
            if row < directions and not name.endswith(resting[-1]):
                after[name] = tensor.clone()
                after[name][row] += length
        known = Aggregated(round=number, rounds=len(lengths), before=state, after=after)
        changed, memory = chosen.decide(known, memory)
        assert changed == {}
        state = after
    return resting


def present(resting: tuple[str, ...]) -> list[int]:
    return [k for k in range(3) if f".subspaces.{k}.0" not in resting]


def test_a_subspace_ends_when_steps_no_longer_become_shorter_or_after_the_gap():
    falling = play([8.0, 7, 6, 5, 4, 3, 2, 1, 0.5, 0.4])
    assert [present(one) for one in falling] == [[0]] * 4 + [[1]] * 4 + [[2]] * 2
    stuck = play([8.0, 7, 7, 3, 4, 9, 9, 9])
    assert [present(one) for one in stuck] == [[0]] * 3 + [[1]] * 2 + [[2]] * 3


def test_a_round_in_which_nothing_moved_does_not_end_a_subspace():
    """In round 1 of a run with `lda` nothing is trained."""
    resting = play([0.0, 8.0, 7, 6, 5, 4])
    assert [present(one) for one in resting] == [[0]] * 5 + [[1]]


def test_rows_beyond_the_rank_of_the_last_change_rest():
    resting = play([4.0, 3, 2, 1, 1], directions=2)
    row = "lora:blocks.0.attn.qkv.adapters.q.subspaces.1."
    assert [row + str(k) in resting[4] for k in range(RANK)] == [False, False, True, True]
    assert not any(row + str(k) in resting[3] for k in range(RANK))


def test_a_rank_larger_than_a_layer_is_refused():
    with pytest.raises(UserError, match=r"finetuning.rank 97: .* at most 96 "):
        methods.prepare(random_vit().model, FineTuningConfig(method="adarankgrad", rank=97), 0)

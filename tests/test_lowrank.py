"""The algebra of low-rank pairs: what a client holds, stacks, nearest factors, and the error."""

from __future__ import annotations

import pytest
import torch

from fl_vitlora.lowrank import (
    aggregation_error,
    cut,
    factors,
    merged,
    pad,
    refactored,
    stack,
    trained,
)
from fl_vitlora.state import State
from fl_vitlora.strategy import Update, averaged, shares

PATH = "blocks.0.q"
m, n, r = 7, 6, 3


def draw(seed: int, rank: int = r) -> State:
    chance = torch.Generator().manual_seed(seed)
    return {
        f"{PATH}.lora_A": torch.randn(rank, n, generator=chance),
        f"{PATH}.lora_B": torch.randn(m, rank, generator=chance),
        "head.bias": torch.randn(2, generator=chance),
    }


def update(seed: int, samples: int, rank: int | None = None) -> Update:
    delta = pad(cut(draw(seed), rank), like=draw(seed))
    return Update(client=seed, samples=samples, loss=0.0, delta=delta, rank=rank)


def product(state: State) -> torch.Tensor:
    return state[f"{PATH}.lora_B"].double() @ state[f"{PATH}.lora_A"].double()


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_client_ends_with_what_its_rank_holds_and_zeros_beyond(rank: int):
    model, sent = draw(0), update(1, samples=1, rank=rank)
    found = trained(model, sent)
    assert found.keys() == {f"{PATH}.lora_A", f"{PATH}.lora_B"}
    assert {tensor.dtype for tensor in found.values()} == {torch.float64}
    received = pad(cut(model, rank), like=model)
    for name, tensor in found.items():
        close(tensor, received[name] + sent.delta[name])


def test_a_matrix_that_rested_is_the_models():
    model, sent = draw(0), update(1, samples=1)
    del sent.delta[f"{PATH}.lora_A"]
    close(trained(model, sent)[f"{PATH}.lora_A"], model[f"{PATH}.lora_A"])


@pytest.mark.parametrize("rank", [1, 2, 3, None])
def test_cutting_undoes_padding(rank: int | None):
    small = cut(draw(0), rank)
    again = cut(pad(small, like=draw(1)), rank)
    assert {name: tensor.shape for name, tensor in again.items()} == {
        name: tensor.shape for name, tensor in small.items()
    }
    assert all(torch.equal(again[name], small[name]) for name in small)


def test_a_cut_shares_no_memory():
    state = draw(0)
    cut(state, None)["head.bias"] += 1.0
    assert torch.equal(state["head.bias"], draw(0)["head.bias"])


def test_a_stack_is_the_weighted_sum_of_products_of_any_rank():
    clients = [draw(0), draw(1, rank=1), draw(2, rank=2)]
    tall, wide = stack([0.5, 0.2, 0.3], clients, PATH)
    assert (tall.shape, wide.shape) == ((r + 3, n), (m, r + 3))
    expected = 0.5 * product(clients[0]) + 0.2 * product(clients[1]) + 0.3 * product(clients[2])
    close(wide @ tall, expected)


def test_without_clients_nothing_is_merged():
    assert merged([], []) == {}


@pytest.mark.parametrize("inner", [3, 5, 20])
@pytest.mark.parametrize("rank", [1, 3])
def test_factors_are_the_nearest_of_their_rank(inner: int, rank: int):
    pair = draw(0, rank=inner)
    tall, wide = pair[f"{PATH}.lora_A"].double(), pair[f"{PATH}.lora_B"].double()
    A, B = factors(tall, wide, rank)
    left, sizes, right = torch.linalg.svd(wide @ tall, full_matrices=False)
    close(B @ A, left[:, :rank] * sizes[:rank] @ right[:rank])
    close(A @ A.T, torch.eye(rank))


def test_factors_of_a_smaller_rank_are_the_first_rows_and_columns():
    pair = draw(0, rank=5)
    tall, wide = pair[f"{PATH}.lora_A"].double(), pair[f"{PATH}.lora_B"].double()
    A, B = factors(tall, wide, 3)
    small_A, small_B = factors(tall, wide, 2)
    close(A[:2], small_A)
    close(B[:, :2], small_B)


def test_factors_depend_on_the_product_alone():
    pair, chance = draw(0), torch.Generator().manual_seed(1)
    tall, wide = pair[f"{PATH}.lora_A"].double(), pair[f"{PATH}.lora_B"].double()
    mixed = torch.randn(r, r, generator=chance).double()
    A, B = factors(tall, wide, r)
    other_A, other_B = factors(torch.linalg.inv(mixed) @ tall, wide @ mixed, r)
    close(A, other_A)
    close(B, other_B)


@pytest.mark.parametrize("lost", [1, 3])
def test_factors_of_a_lower_rank_still_have_orthonormal_rows(lost: int):
    pair = draw(0)
    tall, wide = pair[f"{PATH}.lora_A"].double(), pair[f"{PATH}.lora_B"].double()
    tall[:lost] = 0.0
    A, B = factors(tall, wide, r)
    close(A @ A.T, torch.eye(r))
    close(B @ A, wide @ tall)


def test_a_pair_without_a_product_keeps_its_a():
    model = draw(0)
    nothing = {name: torch.zeros_like(tensor).double() for name, tensor in model.items()}
    new = refactored(model, [1.0], [nothing])
    assert torch.equal(new[f"{PATH}.lora_A"], model[f"{PATH}.lora_A"])
    assert not new[f"{PATH}.lora_B"].any()
    assert new[f"{PATH}.lora_A"].data_ptr() != model[f"{PATH}.lora_A"].data_ptr()


def test_the_error_is_the_distance_from_the_mean_of_products():
    model, updates = draw(0), [update(1, samples=3), update(2, samples=1, rank=2)]
    ends = [trained(model, sent) for sent in updates]
    exact = 0.75 * product(ends[0]) + 0.25 * product(ends[1])
    new = averaged(model, updates)
    error, size = aggregation_error(model, updates, new)
    assert size == pytest.approx(float((exact - product(model)).norm()), rel=1e-9)
    assert error == pytest.approx(float((exact - product(new)).norm()), rel=1e-9)
    assert error > 0.1 * size


def test_what_is_merged_counts_against_the_error():
    model, updates = draw(0), [update(1, samples=3), update(2, samples=1, rank=2)]
    clients = [cut(trained(model, sent), sent.rank) for sent in updates]
    anew = model | {f"{PATH}.lora_B": torch.zeros(m, r)} | merged(shares(updates), clients)
    error, size = aggregation_error(model, updates, anew)
    assert error < 1e-6 * size

"""Strategies that know of low-rank pairs, against slow oracles written from their papers in numpy.

Every problem has two pairs, a head and a patch embedding, four clients with unequal numbers of
images and, where a strategy allows it, unequal ranks. A pair is compared by what it computes, its
product with all that is to be merged, and by its matrices where the paper determines them.

m outputs, n inputs, r rank of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import strategies
from fl_vitlora.state import State, clone
from fl_vitlora.strategy import Strategy, Update

Array = NDArray[np.float64]
m, n, r = 7, 6, 3
PATHS = ("blocks.0.attn.qkv.adapters.q", "blocks.1.attn.qkv.adapters.v")
SHAPES = {
    **{f"{path}.lora_A": (r, n) for path in PATHS},
    **{f"{path}.lora_B": (m, r) for path in PATHS},
    "head.weight": (2, n),
    "patch_embed.proj.weight": (n, 3, 2, 2),
}
SAMPLES = (40, 7, 20, 11)
RANKS = (1, 3, 2, 1)

LORA_AWARE = {
    "ffa_lora",
    "fed_sb",
    "fedex_lora",
    "fedsa_lora",
    "fedsvd",
    "flexlora",
    "flora",
    "hetlora",
    "lora_fair",
    "rolora",
}
ANY_RANK = {"flexlora", "flora", "hetlora"}
SUMS_SUFFICE = {"ffa_lora", "fed_sb", "fedsa_lora", "fedsvd", "rolora"}
EXACT = {"ffa_lora", "fed_sb", "fedex_lora", "fedsvd", "flora", "rolora"}
seeds = pytest.mark.parametrize("seed", range(3))


@dataclass(frozen=True)
class Round:
    """A round of one strategy: what it begins with and what its clients send."""

    strategy: Strategy
    model: State
    updates: list[Update]

    def play(self) -> State:
        new, state = self.strategy.aggregate(self.model, self.updates, {})
        assert state == {}
        return new

    def share(self, k: int) -> float:
        return self.updates[k].samples / sum(update.samples for update in self.updates)

    def start(self, name: str) -> Array:
        return as_array(self.model[name])

    def end(self, k: int, name: str) -> Array:
        """What client k ended with: it had been sent what its rank holds."""
        update = self.updates[k]
        found = self.start(name)
        if update.rank is not None and name.endswith(".lora_A"):
            found[update.rank :, :] = 0.0
        if update.rank is not None and name.endswith(".lora_B"):
            found[:, update.rank :] = 0.0
        return found + as_array(update.delta[name]) if name in update.delta else found

    def mean(self, name: str) -> Array:
        found = np.zeros(self.model[name].shape)
        for k in range(len(self.updates)):
            found = found + self.share(k) * self.end(k, name)
        return found

    def mean_product(self, path: str) -> Array:
        found = np.zeros((m, n))
        for k in range(len(self.updates)):
            found = found + self.share(k) * product({x: self.end(k, x) for x in self.model}, path)
        return found


def as_array(tensor: torch.Tensor | NDArray[Any]) -> Array:
    return np.array(torch.as_tensor(tensor).double().numpy())


def product(tensors: Mapping[str, torch.Tensor] | Mapping[str, Array], path: str) -> Array:
    """What a pair adds to the weight that it stands on, without the factor s."""
    part = {
        name.rpartition(".")[2]: as_array(tensor)
        for name, tensor in tensors.items()
        if name.startswith(path)
    }
    found = part["lora_B"] @ part.get("lora_R", np.eye(r)) @ part["lora_A"]
    if "merged_A" in part:
        found = found + part["merged_B"] @ part["merged_A"]
    return found


def make(
    name: str,
    seed: int = 0,
    *,
    server_round: int = 1,
    samples: Sequence[int] = SAMPLES,
    ranks: Sequence[int | None] | None = None,
    dtype: torch.dtype = torch.float64,
    **options: Any,
) -> Round:
    """Makes a round of random tensors, in which clients train and send what the strategy says."""
    strategy = strategies.load(name, options)
    assert isinstance(strategy, Strategy)
    chance = torch.Generator().manual_seed(seed)
    shapes = {x: shape for x, shape in SHAPES.items() if not x.endswith(strategy.personal)}
    if strategy.adapter == "lora_xs":
        shapes |= {f"{path}.lora_R": (r, r) for path in PATHS}
    if ranks is None:
        ranks = RANKS if strategy.any_rank else (None,) * len(samples)

    def draw(size: float) -> State:
        return {
            x: (torch.randn(shape, generator=chance) * size).to(dtype)
            for x, shape in shapes.items()
        }

    model, updates = draw(0.5), []
    for client, (count, rank) in enumerate(zip(samples, ranks, strict=False)):
        delta = {
            x: d for x, d in draw(0.3).items() if not x.endswith(strategy.plan(server_round).frozen)
        }
        for x, d in delta.items():
            if rank is not None and x.endswith(".lora_A"):
                d[rank:] = 0.0
            if rank is not None and x.endswith(".lora_B"):
                d[:, rank:] = 0.0
        updates.append(Update(client=client, samples=count, loss=1.0, delta=delta, rank=rank))
    return Round(strategy, model, updates)


def close(
    got: torch.Tensor | NDArray[Any], expected: torch.Tensor | NDArray[Any], tolerance: float = 1e-6
) -> None:
    np.testing.assert_allclose(as_array(got), as_array(expected), rtol=0, atol=tolerance)


def agree(one: State, other: State) -> None:
    """Compares what two models compute; what they merge may be written in another order."""
    for path in PATHS if f"{PATHS[0]}.lora_B" in one else ():
        close(product(one, path), product(other, path))
    for name in one:
        if "merged" not in name:
            close(one[name], other[name])


def mean_update(updates: Sequence[Update]) -> Update:
    """Makes the one update that a server sees that sees only sums."""
    total = sum(update.samples for update in updates)
    delta = {
        x: torch.stack([u.delta[x] * (u.samples / total) for u in updates]).sum(dim=0)
        for x in updates[0].delta
    }
    return Update(client=-1, samples=total, loss=1.0, delta=delta, members=len(updates))


def without_b(played: Round, path: str) -> None:
    """Sets a B to zero, in the model and at all clients."""
    for tensors in (played.model, *(update.delta for update in played.updates)):
        tensors[f"{path}.lora_B"].zero_()


# What the papers say of the pair at a path: tensors by their endings, the product by "".


def b_moves(played: Round, path: str) -> dict[str, Array]:
    return {".lora_A": played.start(f"{path}.lora_A"), ".lora_B": played.mean(f"{path}.lora_B")}


def a_moves(played: Round, path: str) -> dict[str, Array]:
    return {".lora_A": played.mean(f"{path}.lora_A"), ".lora_B": played.start(f"{path}.lora_B")}


def both_move(played: Round, path: str) -> dict[str, Array]:
    return {".lora_A": played.mean(f"{path}.lora_A"), ".lora_B": played.mean(f"{path}.lora_B")}


def a_is_shared(played: Round, path: str) -> dict[str, Array]:
    return {".lora_A": played.mean(f"{path}.lora_A")}


def r_moves(played: Round, path: str) -> dict[str, Array]:
    return {
        ".lora_A": played.start(f"{path}.lora_A"),
        ".lora_R": played.mean(f"{path}.lora_R"),
        ".lora_B": played.start(f"{path}.lora_B"),
    }


def starts_over(played: Round, path: str) -> dict[str, Array]:
    return {".lora_A": played.start(f"{path}.lora_A"), ".lora_B": np.zeros((m, r))}


def mean_of_products(played: Round, path: str) -> dict[str, Array]:
    return {"": played.mean_product(path)}


def nearest_of_rank_r(played: Round, path: str) -> dict[str, Array]:
    left, sizes, right = np.linalg.svd(played.mean_product(path))
    found = np.zeros((m, n))
    for i in range(r):
        found = found + sizes[i] * np.outer(left[:, i], right[i])
    return {"": found}


def weighted_by_norms(played: Round, path: str) -> dict[str, Array]:
    clients = range(len(played.updates))
    ends = [[played.end(k, f"{path}.lora_{x}") for x in "AB"] for k in clients]
    norms = [np.linalg.norm(b @ a) for a, b in ends]
    a, b = np.zeros((r, n)), np.zeros((m, r))
    for k in clients:
        a = a + norms[k] / sum(norms) * ends[k][0]
        b = b + norms[k] / sum(norms) * ends[k][1]
    return {".lora_A": a, ".lora_B": b}


def ridge(played: Round, path: str) -> dict[str, Array]:
    """Each row of ΔB by itself: least squares with √λ·I below Āᵀ and zeros below the target."""
    a, b = played.mean(f"{path}.lora_A"), played.mean(f"{path}.lora_B")
    missed = played.mean_product(path) - b @ a
    tall = np.concatenate([a.T, np.sqrt(0.01) * np.eye(r)])
    for i in range(m):
        target = np.concatenate([missed[i], np.zeros(r)])
        b[i] = b[i] + np.linalg.lstsq(tall, target, rcond=None)[0]
    return {".lora_A": a, ".lora_B": b}


@seeds
@pytest.mark.parametrize(
    ("name", "server_round", "oracle"),
    [
        ("ffa_lora", 1, b_moves),
        ("fedsa_lora", 1, a_is_shared),
        ("rolora", 1, b_moves),
        ("rolora", 2, a_moves),
        ("rolora", 3, b_moves),
        ("flora", 1, starts_over),
        ("flora", 1, mean_of_products),
        ("flexlora", 1, nearest_of_rank_r),
        ("hetlora", 1, weighted_by_norms),
        ("fedex_lora", 1, both_move),
        ("fedex_lora", 1, mean_of_products),
        ("lora_fair", 1, ridge),
        ("fedsvd", 1, mean_of_products),
        ("fed_sb", 1, r_moves),
    ],
)
def test_a_strategy_does_what_its_paper_says(
    name: str, server_round: int, oracle: Callable[[Round, str], dict[str, Array]], seed: int
):
    played = make(name, seed, server_round=server_round)
    new = played.play()
    for path in PATHS:
        for ending, expected in oracle(played, path).items():
            close(new[path + ending] if ending else product(new, path), expected)
    for other in ("head.weight", "patch_embed.proj.weight"):
        close(new[other], played.mean(other))


def test_each_says_what_it_needs():
    loaded = {name: make(name).strategy for name in LORA_AWARE}
    assert all(strategy.low_rank for strategy in loaded.values())
    assert {name for name, strategy in loaded.items() if strategy.any_rank} == ANY_RANK
    assert {name for name, strategy in loaded.items() if strategy.sums_suffice} == SUMS_SUFFICE
    assert {name for name, s in loaded.items() if s.adapter == "lora_xs"} == {"fed_sb"}
    assert {name for name, s in loaded.items() if s.personal == (".lora_B",)} == {"fedsa_lora"}


@seeds
@pytest.mark.parametrize("server_round", [1, 2])
@pytest.mark.parametrize("name", sorted(EXACT))
def test_the_exact_ones_compute_the_mean_of_what_clients_compute(
    name: str, server_round: int, seed: int
):
    played = make(name, seed, server_round=server_round)
    for path in PATHS:
        close(product(played.play(), path), played.mean_product(path))


@seeds
def test_averaging_both_factors_is_biased(seed: int):
    played = make("fedavg", seed)
    bias = product(played.play(), PATHS[0]) - played.mean_product(PATHS[0])
    assert np.linalg.norm(bias) > 0.01 * np.linalg.norm(played.mean_product(PATHS[0]))


@pytest.mark.parametrize("name", sorted(LORA_AWARE - {"fedsa_lora"}))
def test_one_client_alone_gets_its_own_product_back(name: str):
    played = make(name, samples=[5], ranks=[None])
    for path in PATHS:
        close(product(played.play(), path), played.mean_product(path))


@pytest.mark.parametrize("name", sorted(SUMS_SUFFICE))
def test_where_sums_suffice_the_mean_tells_as_much_as_all_updates(name: str):
    played = make(name)
    agree(played.play(), replace(played, updates=[mean_update(played.updates)]).play())


@pytest.mark.parametrize("name", sorted(LORA_AWARE))
def test_the_order_of_updates_does_not_matter(name: str):
    played = make(name)
    agree(played.play(), replace(played, updates=played.updates[::-1]).play())


@pytest.mark.parametrize("name", sorted(LORA_AWARE))
def test_nothing_is_written_to_or_shared(name: str):
    played = make(name)
    given = [played.model, *(update.delta for update in played.updates)]
    before = [clone(tensors) for tensors in given]
    for tensor in played.play().values():
        tensor.add_(1.0)
    for was, now in zip(before, given, strict=True):
        assert all(torch.equal(was[name], now[name]) for name in was)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted(LORA_AWARE))
def test_a_model_keeps_its_type_and_what_is_merged_is_float32(name: str, dtype: torch.dtype):
    exact, played = make(name), make(name, dtype=dtype)
    new = played.play()
    for x, tensor in played.model.items():
        assert (new[x].dtype, new[x].shape) == (dtype, tensor.shape)
    assert all(new[x].dtype == torch.float32 for x in new.keys() - played.model.keys())
    for path in PATHS if name != "fedsa_lora" else ():
        close(product(new, path), product(exact.play(), path), 10 * torch.finfo(dtype).eps)


def test_flora_stacks_each_client_in_its_own_rank():
    new = make("flora").play()
    for path in PATHS:
        assert new[f"{path}.merged_A"].shape == (sum(RANKS), n)
        assert new[f"{path}.merged_B"].shape == (m, sum(RANKS))


def test_fedex_writes_one_pair_less_than_clients():
    for clients in (1, 2, 4):
        new = make("fedex_lora", samples=SAMPLES[:clients]).play()
        written = [len(new[f"{path}.merged_A"]) for path in PATHS if f"{path}.merged_A" in new]
        assert written == [r * (clients - 1)] * (2 if clients > 1 else 0)


@seeds
def test_flexlora_is_exact_where_the_rank_is_enough(seed: int):
    played = make("flexlora", seed, samples=[9, 4], ranks=[1, 2])
    for path in PATHS:
        close(product(played.play(), path), played.mean_product(path))


@pytest.mark.parametrize("name", ["flexlora", "fedsvd"])
def test_factors_by_singular_values_have_orthonormal_rows_and_falling_columns(name: str):
    new = make(name).play()
    for path in PATHS:
        close(new[f"{path}.lora_A"] @ new[f"{path}.lora_A"].T, np.eye(r))
        columns = new[f"{path}.lora_B"].norm(dim=0)
        close(new[f"{path}.lora_B"].T @ new[f"{path}.lora_B"], np.diag(columns**2))
        assert columns.tolist() == sorted(columns.tolist(), reverse=True)


def test_flexlora_gives_a_small_client_the_nearest_of_its_rank():
    played = make("flexlora")
    new, (left, sizes, right) = played.play(), np.linalg.svd(played.mean_product(PATHS[0]))
    rows, columns = new[f"{PATHS[0]}.lora_A"][:1], new[f"{PATHS[0]}.lora_B"][:, :1]
    close(columns @ rows, sizes[0] * np.outer(left[:, 0], right[0]))


def test_fedsvd_keeps_a_whole_when_b_has_lost_a_direction():
    played = make("fedsvd")
    for tensors in (played.model, *(update.delta for update in played.updates)):
        for path in PATHS:
            tensors[f"{path}.lora_B"][:, 1] = 0.0
    new = played.play()
    for path in PATHS:
        close(product(new, path), played.mean_product(path))
        a, first = new[f"{path}.lora_A"], played.model[f"{path}.lora_A"]
        close(a @ a.T, np.eye(r))
        close(first @ a.T @ a, first)  # its rows span what they spanned


@pytest.mark.parametrize("name", ["flexlora", "fedsvd"])
def test_a_product_of_zeros_leaves_the_pair_as_it_is(name: str):
    played = make(name)
    without_b(played, PATHS[0])
    new = played.play()
    for x in (f"{PATHS[0]}.lora_A", f"{PATHS[0]}.lora_B"):
        assert torch.equal(new[x], played.model[x])


def test_hetlora_falls_back_to_samples_where_all_products_are_zero():
    played = make("hetlora", ranks=[None] * 4)
    without_b(played, PATHS[0])
    close(played.play()[f"{PATHS[0]}.lora_A"], played.mean(f"{PATHS[0]}.lora_A"))


def test_hetlora_keeps_the_rows_that_no_client_of_the_round_holds():
    played = make("hetlora", ranks=[1, 2, 2, 1])
    new = played.play()
    for path in PATHS:
        close(new[f"{path}.lora_A"][2:], played.model[f"{path}.lora_A"][2:])
        close(new[f"{path}.lora_B"][:, 2:], played.model[f"{path}.lora_B"][:, 2:])
        close(new[f"{path}.lora_A"][:2], weighted_by_norms(played, path)[".lora_A"][:2])


@seeds
def test_lora_fair_without_regularization_finds_the_best_b(seed: int):
    played = make("lora_fair", seed, regularization=0)
    for path in PATHS:
        a, target = played.mean(f"{path}.lora_A"), played.mean_product(path)
        best = np.linalg.lstsq(a.T, target.T, rcond=None)[0].T
        close(played.play()[f"{path}.lora_B"], best)


@pytest.mark.parametrize("regularization", [0.0, 0.01])
def test_lora_fair_stands_an_a_without_full_rank(regularization: float):
    played = make("lora_fair", regularization=regularization)
    for tensors in (played.model, *(update.delta for update in played.updates)):
        tensors[f"{PATHS[0]}.lora_A"][1] = tensors[f"{PATHS[0]}.lora_A"][0]
        tensors[f"{PATHS[1]}.lora_A"].zero_()
    new = played.play()
    error = {path: np.linalg.norm(product(new, path) - played.mean_product(path)) for path in PATHS}
    average = played.mean(f"{PATHS[0]}.lora_B") @ played.mean(f"{PATHS[0]}.lora_A")
    assert error[PATHS[0]] < np.linalg.norm(average - played.mean_product(PATHS[0]))
    assert error[PATHS[1]] == 0.0


def test_lora_fair_with_much_regularization_is_fedavg():
    agree(make("lora_fair", regularization=1e9).play(), make("fedavg").play())

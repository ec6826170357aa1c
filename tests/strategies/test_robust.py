"""Robust strategies against loops written from their papers, and against hostile clients."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from fl_vitlora.robust import geometric_median, krum
from fl_vitlora.strategy import Update
from tests.counting_operations import Operations
from tests.strategies.problems import (
    Vector,
    as_state,
    as_vector,
    distance,
    load,
    random_updates,
)

SEEDS = range(5)
ROBUST = ("median", "trimmed_mean", "krum", "multi_krum", "geometric_median")


def step(name: str, updates: list[Update], **options: Any) -> Vector:
    """How a strategy moves a model of zeros."""
    new, _ = load(name, **options).aggregate(as_state([0.0] * 7), updates, {})
    return as_vector(new)


def unweighted_mean(deltas: list[Vector]) -> Vector:
    return [sum(column) / len(deltas) for column in zip(*deltas, strict=True)]


def scores_of_krum(deltas: list[Vector], f: int) -> Vector:
    scores = []
    for k, delta in enumerate(deltas):
        others = sorted(distance(delta, o) ** 2 for j, o in enumerate(deltas) if j != k)
        scores.append(sum(others[: len(deltas) - f - 2]))
    return scores


def weiszfeld(deltas: list[Vector], samples: list[int], rounds: int) -> Vector:
    z = [0.0] * 7
    for _ in range(rounds):
        betas = [
            n / sum(samples) / max(1e-6, distance(z, d))
            for n, d in zip(samples, deltas, strict=True)
        ]
        z = [
            sum(b * d[i] for b, d in zip(betas, deltas, strict=True)) / sum(betas) for i in range(7)
        ]
    return z


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("clients", [1, 2, 7, 8])
def test_the_median_is_that_of_every_number(seed: int, clients: int):
    _, deltas, updates = random_updates(seed, clients)
    expected = [statistics.median(column) for column in zip(*deltas, strict=True)]
    assert step("median", updates) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("beta", "cut"), [(0.0, 0), (0.1, 1), (0.29, 2), (0.3, 3), (0.499, 4)])
def test_the_trimmed_mean_leaves_the_ends_out(seed: int, beta: float, cut: int):
    _, deltas, updates = random_updates(seed, 10)
    expected = []
    for column in zip(*deltas, strict=True):
        left = sorted(column)[cut : 10 - cut]
        expected.append(sum(left) / len(left))
    assert step("trimmed_mean", updates, beta=beta) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("f", [0, 1, 2, 3])
def test_krum_takes_the_delta_of_least_score(seed: int, f: int):
    _, deltas, updates = random_updates(seed, 9)
    scores = scores_of_krum(deltas, f)
    assert step("krum", updates, f=f) == deltas[scores.index(min(scores))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("f", "m"), [(0, 9), (2, 5), (3, 1), (2, None)])
def test_multi_krum_averages_the_deltas_of_least_scores(seed: int, f: int, m: int | None):
    _, deltas, updates = random_updates(seed, 9)
    scores = scores_of_krum(deltas, f)
    best = sorted(range(9), key=scores.__getitem__)[: m or 9 - f]
    expected = unweighted_mean([deltas[k] for k in best])
    assert step("multi_krum", updates, f=f, m=m) == pytest.approx(expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("iterations", [1, 3, 10])
def test_the_geometric_median_takes_the_steps_of_weiszfeld(seed: int, iterations: int):
    _, deltas, updates = random_updates(seed)
    for by_images in (False, True):
        counts = [u.samples if by_images else 1 for u in updates]
        expected = weiszfeld(deltas, counts, iterations)
        got = step("geometric_median", updates, iterations=iterations, by_images=by_images)
        assert got == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_geometric_median_has_the_least_sum_of_distances(seed: int):
    _, deltas, updates = random_updates(seed)

    def cost(z: Vector) -> float:
        return sum(distance(z, d) for d in deltas)

    found = step("geometric_median", updates, iterations=2000)
    chance = random.Random(seed)
    for size, _ in itertools.product((1e-3, 1e-2, 1.0), range(20)):
        assert cost(found) <= cost([x + chance.gauss(0, size) for x in found]) + 1e-6


@pytest.mark.parametrize(
    ("name", "options"),
    [("trimmed_mean", {"beta": 0.0}), ("multi_krum", {"f": 0, "m": 6})],
)
def test_without_suspicion_the_mean_is_left(name: str, options: dict[str, Any]):
    _, deltas, updates = random_updates(3)
    assert step(name, updates, **options) == pytest.approx(unweighted_mean(deltas))
    equal = [replace(update, samples=7) for update in updates]
    assert step(name, equal, **options) == pytest.approx(step("fedavg", equal))


def test_multi_krum_of_one_is_krum():
    _, _, updates = random_updates(4, 9)
    one = step("multi_krum", updates, f=2, m=1)
    assert one == pytest.approx(step("krum", updates, f=2))


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("clients", [1, 2, 3, 4])
def test_with_fewer_clients_than_it_needs_each_does_what_it_can(name: str, clients: int):
    _, deltas, updates = random_updates(5, clients)
    options = {"krum": {"f": 9}, "multi_krum": {"f": 9, "m": 9}}.get(name, {})
    got = step(name, updates, **options)
    if clients == 1:
        assert got == pytest.approx(deltas[0])
    for value, column in zip(got, zip(*deltas, strict=True), strict=True):
        assert min(column) - 1e-6 <= value <= max(column) + 1e-6


@pytest.mark.parametrize("name", ROBUST)
@pytest.mark.parametrize("liar", [0, 3])
@pytest.mark.parametrize("claimed", [1, 10**9, 2**62, 2**63 - 1])
def test_a_client_that_reports_other_counts_moves_nothing(name: str, liar: int, claimed: int):
    """Neither images nor steps: what it can do it does with its delta, as every other client."""
    _, _, updates = random_updates(6)
    boastful = list(updates)
    boastful[liar] = replace(updates[liar], samples=claimed, steps=claimed)
    assert step(name, boastful) == step(name, updates)


@pytest.mark.parametrize("name", ROBUST)
def test_a_lie_about_images_does_not_help_a_hostile_delta(name: str):
    """One of nine clients sends a delta from far away and says that it has nearly all images."""
    _, deltas, updates = random_updates(7, 9)
    hostile = {n: torch.full_like(d, 1e5) for n, d in updates[4].delta.items()}
    modest = [replace(u, delta=hostile) if i == 4 else u for i, u in enumerate(updates)]
    boastful = [replace(u, samples=2**62) if i == 4 else u for i, u in enumerate(modest)]
    options = {"trimmed_mean": {"beta": 0.2}}.get(name, {})
    moved = step(name, boastful, **options)
    assert moved == step(name, modest, **options)
    others = [delta for i, delta in enumerate(deltas) if i != 4]
    for value, column in zip(moved, zip(*others, strict=True), strict=True):
        assert abs(value) < 2 * max(map(abs, column)) + 1e-3


def one_for_all(size: float) -> Callable[[random.Random], Vector]:
    return lambda chance: [size] * 7


def scattered(size: float) -> Callable[[random.Random], Vector]:
    return lambda chance: [chance.choice((-size, size)) for _ in range(7)]


@pytest.mark.parametrize("attack", [one_for_all, scattered])
@pytest.mark.parametrize("size", [1e2, 1e6, 1e30, 3e38])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("median", {}),
        ("trimmed_mean", {"beta": 0.3}),
        ("krum", {"f": 6}),
        ("multi_krum", {"f": 6}),
        ("geometric_median", {}),
    ],
)
def test_six_of_twenty_who_send_anything_do_not_carry_the_mean_away(
    name: str, options: dict[str, Any], size: float, attack: Any
):
    """Honest deltas lie near (1, …, 1); the result stays there, and that of FedAvg does not."""
    chance = random.Random(0)
    deltas = [[chance.gauss(1, 0.1) for _ in range(7)] for _ in range(14)]
    deltas += [attack(size)(chance) for _ in range(6)]
    updates = [
        Update(
            client=client,
            samples=10,
            loss=0.0,
            delta={n: d.float() for n, d in as_state(delta).items()},
        )
        for client, delta in enumerate(deltas)
    ]
    model = {n: w.float() for n, w in as_state([0.0] * 7).items()}
    new, _ = load(name, **options).aggregate(model, updates, {})
    assert all(torch.isfinite(w).all() for w in new.values())
    assert distance(as_vector(new), [1.0] * 7) < 0.5
    ruined, _ = load("fedavg").aggregate(model, updates, {})
    assert distance(as_vector(ruined), [1.0] * 7) > 10


def many_tensors(clients: int, tensors: int) -> list[Update]:
    chance = torch.Generator().manual_seed(0)
    return [
        Update(
            client=client,
            samples=10,
            loss=0.0,
            delta={
                f"{n:02}": torch.randn(3, n % 4, generator=chance, dtype=torch.float64)
                for n in range(tensors)
            },
        )
        for client in range(clients)
    ]


def test_the_order_of_the_names_in_a_delta_changes_no_bit_of_the_geometric_median():
    updates = many_tensors(7, 12)
    turned = [replace(u, delta=dict(reversed(u.delta.items()))) for u in updates]
    found, again = (geometric_median(some, 1e-6, 10) for some in (updates, turned))
    assert list(found) == list(updates[0].delta)
    assert list(again) == list(turned[0].delta)
    assert all(torch.equal(found[n], again[n]) for n in found)


@pytest.mark.parametrize(
    "compute", [lambda u: krum(u, 2, 1), lambda u: geometric_median(u, 1e-6, 10)]
)
def test_distances_take_a_few_operations_for_each_client_and_not_for_each_pair_and_tensor(
    compute: Callable[[list[Update]], object],
):
    clients, tensors, iterations = 20, 50, 10
    with Operations() as operations:
        compute(many_tensors(clients, tensors))
    making_and_flattening = clients * tensors * 4
    assert operations.counted.total() < making_and_flattening + clients * iterations * 8

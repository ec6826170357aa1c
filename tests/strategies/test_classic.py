"""FedProx, FedNova and SCAFFOLD against loops written from their papers, and in their limits."""

from __future__ import annotations

import random

import pytest
import torch

from fl_vitlora.state import State
from fl_vitlora.strategy import LocalWork, Update
from tests.strategies.problems import (
    Quadratics,
    Vector,
    as_state,
    as_vector,
    distance,
    load,
    random_updates,
)

SEEDS = range(5)


def after_a_round(name: str, model: Vector, updates: list[Update], **options: float) -> Vector:
    new, _ = load(name, **options).aggregate(as_state(model), updates, {})
    return as_vector(new)


def attendance_of(seed: int, rounds: int, clients: int, present: int) -> list[list[int]]:
    chance = random.Random(seed)
    return [sorted(chance.sample(range(clients), present)) for _ in range(rounds)]


@pytest.mark.parametrize("seed", SEEDS)
def test_fedprox_with_no_penalty_is_fedavg(seed: int):
    model, _, updates = random_updates(seed)
    assert load("fedprox", mu=0.0).plan(1) == load("fedavg").plan(1)
    assert after_a_round("fedprox", model, updates, mu=0.0) == after_a_round(
        "fedavg", model, updates
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_fednova_is_the_papers_formula(seed: int):
    model, deltas, updates = random_updates(seed)
    total = sum(u.samples for u in updates)
    effective = sum(u.samples / total * u.steps for u in updates)
    expected = list(model)
    for delta, update in zip(deltas, updates, strict=True):
        for i in range(7):
            expected[i] += effective * update.samples / total * delta[i] / update.steps
    assert after_a_round("fednova", model, updates) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("rho", [0.5, 0.9])
def test_fednova_knows_how_far_momentum_carries(rho: float):
    """Where gradients are constant, the mean goes along Σ pₖ·gₖ, whoever takes how many steps."""
    chance = random.Random(0)
    samples, steps = [3, 1, 6], [2, 9, 4]
    gradients = [[chance.gauss(0, 1) for _ in range(7)] for _ in samples]
    updates = []
    for client, gradient in enumerate(gradients):
        w = torch.zeros(7, dtype=torch.float64, requires_grad=True)
        sgd = torch.optim.SGD([w], lr=0.1, momentum=rho)
        for _ in range(steps[client]):
            w.grad = torch.tensor(gradient, dtype=torch.float64)
            sgd.step()
        updates.append(
            Update(
                client=client,
                samples=samples[client],
                steps=steps[client],
                loss=0.0,
                delta=as_state(w.tolist()),
            )
        )
    went = after_a_round("fednova", [0.0] * 7, updates, momentum=rho)
    mean = [sum(n * g[i] for n, g in zip(samples, gradients, strict=True)) / 10 for i in range(7)]
    lengths = [sum(sum(rho**j for j in range(t + 1)) for t in range(n)) for n in steps]
    effective = sum(n / 10 * length for n, length in zip(samples, lengths, strict=True))
    assert went == pytest.approx([-0.1 * effective * g for g in mean], abs=1e-9)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_fednova_with_equal_steps_is_fedavg(momentum: float):
    model, _, updates = random_updates(0)
    equal = [
        Update(client=u.client, samples=u.samples, steps=4, loss=0.0, delta=u.delta)
        for u in updates
    ]
    assert after_a_round("fednova", model, equal, momentum=momentum) == pytest.approx(
        after_a_round("fedavg", model, equal), abs=1e-9
    )


def test_fednova_comes_nearer_to_the_common_optimum_where_steps_differ():
    problem = Quadratics.draw(0, samples=[1, 1, 1, 1], steps=[1, 2, 8, 30])
    everybody = [range(4)] * 400
    fedavg, fednova = (
        distance(problem.run(load(name), everybody)[-1], problem.optimum())
        for name in ("fedavg", "fednova")
    )
    assert fednova < 0.5 * fedavg


def scaffold_of_the_paper(
    problem: Quadratics, attendance: list[list[int]], server_rate: float
) -> list[Vector]:
    """Algorithm 1 of arXiv 1910.06378 with option II, line by line."""
    population = len(problem.samples)
    x, c = [0.0] * 7, [0.0] * 7
    c_of = [[0.0] * 7 for _ in range(population)]
    seen = []
    for clients in attendance:
        delta_y, delta_c = [0.0] * 7, [0.0] * 7
        for client in clients:
            y = list(x)
            for _ in range(problem.steps[client]):
                g = problem.gradient(client, y)
                y = [y[i] - problem.rate * (g[i] - c_of[client][i] + c[i]) for i in range(7)]
            scale = 1 / (problem.steps[client] * problem.rate)
            c_plus = [c_of[client][i] - c[i] + scale * (x[i] - y[i]) for i in range(7)]
            for i in range(7):
                delta_y[i] += (y[i] - x[i]) / len(clients)
                delta_c[i] += (c_plus[i] - c_of[client][i]) / len(clients)
            c_of[client] = c_plus
        x = [x[i] + server_rate * delta_y[i] for i in range(7)]
        c = [c[i] + len(clients) / population * delta_c[i] for i in range(7)]
        seen.append(x)
    return seen


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("present", "server_rate"), [(6, 1.0), (2, 1.0), (3, 0.7)])
def test_scaffold_is_the_papers_algorithm_for_clients_of_equal_size(
    seed: int, present: int, server_rate: float
):
    problem = Quadratics.draw(seed, samples=[20] * 6, steps=[5] * 6)
    attendance = attendance_of(seed, 12, 6, present)
    ours = problem.run(load("scaffold", server_rate=server_rate), attendance)
    for got, expected in zip(
        ours, scaffold_of_the_paper(problem, attendance, server_rate), strict=True
    ):
        assert got == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("present", [5, 2])
def test_scaffold_finds_the_common_optimum_that_fedavg_misses(present: int):
    problem = Quadratics.draw(1, samples=[50, 5, 20, 1, 24], steps=[10] * 5)
    attendance = attendance_of(0, 1500, 5, present)
    scaffold, fedavg = (
        distance(problem.run(load(name), attendance)[-1], problem.optimum())
        for name in ("scaffold", "fedavg")
    )
    assert scaffold < 1e-6
    assert fedavg > 0.1


def test_a_client_of_scaffold_remembers_its_own_direction_without_the_correction():
    problem = Quadratics.draw(2, samples=[1, 2, 3], steps=[1] * 3)
    strategy = load("scaffold")
    memory, broadcast = as_state([0.3] * 7), as_state([-0.2] * 7)
    delta = problem.train(0, [0.0] * 7, as_vector(strategy.drift(broadcast, memory)))
    work = LocalWork(delta=as_state(delta), steps=1, rate=problem.rate)
    report, new = strategy.report(work, broadcast, memory)
    own = [-g for g in problem.gradient(0, [0.0] * 7)]
    assert as_vector(new) == pytest.approx(own)
    assert as_vector(report) == pytest.approx([d - 0.3 for d in own])


def test_scaffold_knows_every_tensor_although_one_rests_in_a_round():
    """A plan or a fine-tuning method may let tensors rest, in the first round or in a later one."""
    strategy = load("scaffold")
    model = {"a": torch.zeros(2), "b": torch.zeros(3)}
    memory: State = {}
    state: State = {}
    for trained in ({"a"}, {"b"}, {"a", "b"}):
        broadcast = strategy.broadcast(state)
        assert not state or broadcast.keys() == model.keys()
        drift = strategy.drift(broadcast, memory)
        assert all(drift[name].shape == model[name].shape for name in drift)
        before = dict(memory)
        work = LocalWork(delta={n: torch.ones_like(model[n]) for n in trained}, steps=2, rate=0.5)
        report, memory = strategy.report(work, broadcast, memory)
        assert report.keys() == trained
        assert all(memory[name] is before[name] for name in before.keys() - trained)
        update = Update(client=0, samples=4, loss=0.0, delta=work.delta, report=report)
        model, state = strategy.aggregate(model, [update], state)
    assert memory.keys() == model.keys()
    assert {n: w.tolist() for n, w in model.items()} == {"a": [2.0] * 2, "b": [2.0] * 3}

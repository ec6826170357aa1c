"""Random updates, and quadratic clients that train by plain SGD in loops."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

import strategies
from fl_vitlora.state import State
from fl_vitlora.strategy import LocalWork, Strategy, Update

Vector = list[float]


def load(name: str, **options: Any) -> Strategy:
    strategy = strategies.load(name, options)
    assert isinstance(strategy, Strategy)
    return strategy


def as_state(vector: Vector) -> State:
    """Seven numbers as two tensors of a model."""
    numbers = torch.tensor(vector, dtype=torch.float64)
    return {"a.weight": numbers[:6].reshape(2, 3), "b.bias": numbers[6:]}


def as_vector(state: State) -> Vector:
    return [*state["a.weight"].flatten().tolist(), *state["b.bias"].tolist()]


def random_updates(seed: int, clients: int = 6) -> tuple[Vector, list[Vector], list[Update]]:
    """Draws a model and deltas of clients who differ in images and steps."""
    chance = random.Random(seed)
    model = [chance.gauss(0, 1) for _ in range(7)]
    deltas = [[chance.gauss(0, 1) for _ in range(7)] for _ in range(clients)]
    updates = [
        Update(
            client=client,
            samples=chance.randint(1, 50),
            steps=chance.randint(1, 9),
            loss=0.0,
            delta=as_state(delta),
            population=clients,
        )
        for client, delta in enumerate(deltas)
    ]
    return model, deltas, updates


@dataclass(frozen=True, kw_only=True)
class Quadratics:
    """Clients with losses Σᵢ hₖᵢ/2 · (wᵢ - tₖᵢ)², which pull far apart.

    Attributes:
        curvatures: hₖ.
        targets: tₖ.
        samples: nₖ.
        steps: The number of steps of client k in a round.
        rate: η.
    """

    curvatures: list[Vector]
    targets: list[Vector]
    samples: list[int]
    steps: list[int]
    rate: float = 0.05

    @classmethod
    def draw(cls, seed: int, samples: Sequence[int], steps: Sequence[int]) -> Quadratics:
        chance, clients = random.Random(seed), len(samples)
        return cls(
            curvatures=[[chance.uniform(0.2, 3) for _ in range(7)] for _ in range(clients)],
            targets=[[chance.gauss(0, 3) for _ in range(7)] for _ in range(clients)],
            samples=list(samples),
            steps=list(steps),
        )

    def gradient(self, client: int, w: Vector) -> Vector:
        parts = zip(self.curvatures[client], w, self.targets[client], strict=True)
        return [h * (x - t) for h, x, t in parts]

    def optimum(self) -> Vector:
        """The minimum of Σ nₖ·Fₖ."""
        found = []
        for i in range(7):
            clients = list(zip(self.samples, self.curvatures, self.targets, strict=True))
            total = sum(n * h[i] for n, h, _ in clients)
            found.append(sum(n * h[i] * t[i] for n, h, t in clients) / total)
        return found

    def train(self, client: int, start: Vector, drift: Vector) -> Vector:
        """Takes plain SGD steps, each followed by the drift; returns the delta."""
        w = list(start)
        for _ in range(self.steps[client]):
            gradient = self.gradient(client, w)
            w = [x - self.rate * (g - d) for x, g, d in zip(w, gradient, drift, strict=True)]
        return [x - s for x, s in zip(w, start, strict=True)]

    def run(self, strategy: Strategy, attendance: Sequence[Sequence[int]]) -> list[Vector]:
        """Plays both halves of a strategy; returns the model after every round."""
        model, state, seen = as_state([0.0] * 7), State(), []
        memories: dict[int, State] = {}
        for clients in attendance:
            broadcast, updates = strategy.broadcast(state), []
            for client in clients:
                memory = memories.get(client, {})
                drift = strategy.drift(broadcast, memory)
                pull = as_vector(drift) if drift else [0.0] * 7
                delta = as_state(self.train(client, as_vector(model), pull))
                work = LocalWork(delta=delta, steps=self.steps[client], rate=self.rate)
                report, memories[client] = strategy.report(work, broadcast, memory)
                updates.append(
                    Update(
                        client=client,
                        samples=self.samples[client],
                        steps=self.steps[client],
                        loss=0.0,
                        delta=delta,
                        report=report,
                        population=len(self.samples),
                    )
                )
            model, state = strategy.aggregate(model, updates, state)
            seen.append(as_vector(model))
        return seen


def distance(a: Vector, b: Vector) -> float:
    return math.dist(a, b)

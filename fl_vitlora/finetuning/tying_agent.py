"""The agent that decides which layers share tensors: Q-learning with a small network.

The state is the vector of ties: entry i is the layer whose tensors layer i uses, j <= i. An action
for layer i is one of the layers 0 to i. The network L → 128 → L·(L+1)/2 gives a value for every
action of every layer, one slice of outputs for each layer. In an episode, the agent chooses an
action for every layer: with the probability ε a random one, otherwise the one with the highest
value. Then it learns from the reward r of the episode:

    value of the chosen action → r + γ · max over actions of the values in the next state

The squared errors of all layers are added, and AdamW takes some steps. All functions are pure: the
weights and the moments of the optimiser are in a `State`, so that a checkpoint can hold them.

Source: Hay and Wolf, arXiv 2401.12819.

L layers, H = 128 hidden units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.state import State

HIDDEN = 128
DISCOUNT, RATE, STEPS = 0.99, 1e-3, 4  # γ, the learning rate, and the steps of an episode
LEAST = 0.01  # the smallest ε
MOST = 10.0  # a reward is clipped to ±10
WEIGHTS = ("inner.weight", "inner.bias", "outer.weight", "outer.bias")
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # the names that AdamW gives its moments


def new_agent(layers: int, generator: torch.Generator) -> State:
    """Returns the weights of an agent that has learnt nothing.

    Args:
        layers: The number L of layers.
        generator: The random generator of the initial weights.
    """
    sizes = {"inner": (HIDDEN, layers), "outer": (layers * (layers + 1) // 2, HIDDEN)}
    weights = State()
    for name, (outputs, inputs) in sizes.items():
        bound = 1 / math.sqrt(inputs)
        for kind, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
            uniform = torch.rand(shape, generator=generator)
            weights[f"{name}.{kind}"] = bound * (2 * uniform - 1)
    return weights


def values(weights: Mapping[str, Tensor], ties: Sequence[int]) -> list[Tensor]:
    """Returns the value of each action of each layer; entry i has the shape (i + 1,).

    Args:
        weights: The weights of the agent.
        ties: The state: for each layer, the layer whose tensors it uses.
    """
    state = torch.tensor(ties, dtype=torch.float32)
    hidden = F.relu(F.linear(state, weights["inner.weight"], weights["inner.bias"]))
    every = F.linear(hidden, weights["outer.weight"], weights["outer.bias"])
    return list(torch.split(every, list(range(1, len(ties) + 1))))


def act(
    agent: Mapping[str, Tensor], ties: Sequence[int], epsilon: float, generator: torch.Generator
) -> list[int]:
    """Returns an action for each layer: the layer to which it is tied, or its own number.

    Args:
        agent: The weights of the agent.
        ties: The state.
        epsilon: The probability ε of a random action; at least `LEAST` is used.
        generator: The random generator of the choice.
    """
    chosen = []
    for layer, value in enumerate(values(agent, ties)):
        explores = float(torch.rand((), generator=generator)) < max(LEAST, epsilon)
        random = int(torch.randint(layer + 1, (), generator=generator))
        chosen.append(random if explores else int(value.argmax()))
    return chosen


def learn(
    agent: Mapping[str, Tensor],
    ties: Sequence[int],
    actions: Sequence[int],
    reward: float,
    following: Sequence[int],
) -> State:
    """Returns the agent after it has learnt from an episode.

    Args:
        agent: The weights, and the moments of the optimiser if the agent has learnt before.
        ties: The state before the actions.
        actions: The chosen action of each layer.
        reward: The reward of the episode; it is clipped to ±10.
        following: The state after the actions.
    """
    weights = {name: nn.Parameter(agent[name].clone()) for name in WEIGHTS}
    optimizer = torch.optim.AdamW(weights.values(), lr=RATE)
    for name, weight in weights.items():
        if f"{name} step" in agent:
            optimizer.state[weight] = {m: agent[f"{name} {m}"].clone() for m in MOMENTS}
    clipped = max(-MOST, min(MOST, reward))
    with torch.no_grad():
        best = [clipped + DISCOUNT * float(value.max()) for value in values(agent, following)]
    for _ in range(STEPS):
        optimizer.zero_grad()
        found = values(weights, ties)
        chosen = torch.stack([value[a] for value, a in zip(found, actions, strict=True)])
        torch.autograd.backward((chosen - torch.tensor(best)).square().sum())
        optimizer.step()
    learnt = {name: weight.detach() for name, weight in weights.items()}
    for name, weight in weights.items():
        learnt |= {f"{name} {m}": optimizer.state[weight][m] for m in MOMENTS}
    return learnt


def resolved(actions: Sequence[int]) -> list[int]:
    """Returns the layer whose tensors each layer uses in the end, if ties are followed.

    Example:
        >>> resolved([0, 0, 1, 3])
        [0, 0, 0, 3]
    """
    ties: list[int] = []
    for layer, action in enumerate(actions):
        ties.append(layer if action == layer else ties[action])
    return ties

"""Q-learning with a small network that estimates the values of actions for several layers.

The state is the vector of ties: entry i is the number j ≤ i of the layer whose tensors layer i
uses. An action for layer i is one of the layers 0 to i. The network L → 128 → L·(L+1)/2 gives a
value for every action of every layer; each layer has its own range of outputs. After an episode
with the reward r, the network learns this target:

    value of the chosen action → r + γ · max over actions of the values in the next state

The loss is the sum of the squared errors of all layers, and AdamW takes a few steps. All functions
are pure: the weights and the moments of the optimiser are in a `State`, so that a checkpoint can
store the weights and the moments.

Source: Hay and Wolf, arXiv 2401.12819.

Letters in shapes: L layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.state import State

HIDDEN = 128  # the number of hidden units
DISCOUNT, RATE, STEPS = 0.99, 1e-3, 4  # γ, learning rate, steps after an episode
MOST = 10.0  # a reward is clipped to ±10
WEIGHTS = ("inner.weight", "inner.bias", "outer.weight", "outer.bias")
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # the names that AdamW gives its moments


def new_agent(layers: int, generator: torch.Generator) -> State:
    """Returns the random weights of a new agent.

    Args:
        layers: The number L of layers.
        generator: The random generator from which the weights are drawn.
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
        ties: The state. Entry i is the number of the layer whose tensors layer i uses.
    """
    state = torch.tensor(ties, dtype=torch.float32)
    hidden = F.relu(F.linear(state, weights["inner.weight"], weights["inner.bias"]))
    every = F.linear(hidden, weights["outer.weight"], weights["outer.bias"])
    return list(torch.split(every, list(range(1, len(ties) + 1))))


def learn(
    agent: Mapping[str, Tensor],
    ties: Sequence[int],
    actions: Sequence[int],
    reward: float,
    following: Sequence[int],
) -> State:
    """Returns the agent after it has learnt from an episode.

    Args:
        agent: The weights of the agent. If the agent has learnt before, `agent` also has the
            moments of the optimiser.
        ties: The state before the actions.
        actions: The chosen action of each layer.
        reward: The reward of the episode, which this function clips to ±10.
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

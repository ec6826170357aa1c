"""The agent that decides which layers share tensors, by Q-learning (`q_learning`).

In an episode, the agent chooses an action for every layer: the layer whose tensors it uses. With
the probability ε the agent chooses a random action, otherwise the action with the highest value.
At the end of an episode, the agent learns from its reward. All functions are pure: what the agent
remembers is in a `State`, so that a checkpoint can hold it.

Source: Hay and Wolf, arXiv 2401.12819.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fl_vitlora.finetuning.q_learning import learn, new_agent, values
from fl_vitlora.state import State

LEAST = 0.01  # the smallest ε
LAST = "last "  # stands before the names of what the agent did last, in its memory


def episode(
    memory: Mapping[str, Tensor],
    ties: list[int],
    reward: float,
    epsilon: float,
    generator: torch.Generator,
) -> tuple[list[int], State]:
    """Lets the agent learn from its last actions, and choose the next ties.

    Args:
        memory: The memory that this function returned last; empty at first.
        ties: The present ties (for each layer, the layer whose tensors it uses), which the last
            actions gave.
        reward: The reward of the last actions.
        epsilon: The probability ε of a random action.
        generator: The random generator of the first weights, and of the actions.

    Returns:
        A pair: the next ties, and the new memory.
    """
    agent: State = {name: t for name, t in memory.items() if not name.startswith(LAST)}
    agent = agent or new_agent(len(ties), generator)
    if f"{LAST}ties" in memory:
        last, actions = (memory[LAST + what].int().tolist() for what in ("ties", "actions"))
        agent = learn(agent, last, actions, reward, ties)
    actions = act(agent, ties, epsilon, generator)
    remembered = {f"{LAST}ties": torch.tensor(ties), f"{LAST}actions": torch.tensor(actions)}
    return resolved(actions), {**agent, **remembered}


def act(
    agent: Mapping[str, Tensor], ties: Sequence[int], epsilon: float, generator: torch.Generator
) -> list[int]:
    """Returns an action for each layer: the number of the layer it is tied to, or its own number.

    Args:
        agent: The weights of the agent.
        ties: The state: for each layer, the layer whose tensors it uses.
        epsilon: The probability ε of a random action; at least `LEAST` is used.
        generator: The random generator of the choice.
    """
    chosen = []
    for layer, value in enumerate(values(agent, ties)):
        explores = float(torch.rand((), generator=generator)) < max(LEAST, epsilon)
        random = int(torch.randint(layer + 1, (), generator=generator))
        chosen.append(random if explores else int(value.argmax()))
    return chosen


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

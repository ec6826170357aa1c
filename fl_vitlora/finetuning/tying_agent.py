"""The agent that chooses which layers share tensors, with Q-learning (`q_learning`).

In an episode, the agent chooses an action for every layer: another layer whose tensors the layer
uses, or the layer itself. With the probability ε the agent chooses a random action, otherwise the
action with the highest value. At the end of an episode, the agent learns from its reward. All
functions are pure: the memory of the agent is a `State`, so that a checkpoint can store it.

Source: Hay and Wolf, arXiv 2401.12819.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fl_vitlora.finetuning.q_learning import learn, new_agent, values
from fl_vitlora.state import State

LEAST = 0.01  # the smallest ε
LAST = "last "  # the prefix of the names of the last ties and actions in the agent's memory


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
        ties: The present ties, which follow from the last actions. Entry i is the number of the
            layer whose tensors layer i uses.
        reward: The reward of the last actions.
        epsilon: The probability ε of a random action.
        generator: The random generator for the first weights and for the actions.

    Returns:
        A pair of the next ties and the new memory.
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
    """Returns an action for each layer: the number of another layer, or its own number.

    Args:
        agent: The weights of the agent.
        ties: The state. Entry i is the number of the layer whose tensors layer i uses.
        epsilon: The probability ε of a random action. If ε is smaller than `LEAST`, the function
            uses `LEAST` instead.
        generator: The random generator for the random actions.
    """
    chosen = []
    for layer, value in enumerate(values(agent, ties)):
        explores = float(torch.rand((), generator=generator)) < max(LEAST, epsilon)
        random = int(torch.randint(layer + 1, (), generator=generator))
        chosen.append(random if explores else int(value.argmax()))
    return chosen


def resolved(actions: Sequence[int]) -> list[int]:
    """Returns, for each layer, the layer at the end of the chain of its ties.

    If layer 2 is tied to layer 1, and layer 1 is tied to layer 0, then layer 2 uses layer 0.

    Example:
        >>> resolved([0, 0, 1, 3])
        [0, 0, 0, 3]
    """
    ties: list[int] = []
    for layer, action in enumerate(actions):
        ties.append(layer if action == layer else ties[action])
    return ties

"""Dynamic layer tying: the server decides which blocks use the same low-rank pairs.

Every block has its own LoRA pairs. If block i is tied to an earlier block j, block i computes with
the pairs of block j, and the gradients of blocks i and j are added in these pairs. The own pairs of
a tied block are frozen and not sent. After every round, the server may change the ties. A block
that is no longer tied starts with a copy of the pairs that it used last. The setting `rule` chooses
one of three rules for the ties:

    own      no block is tied: this is plain LoRA
    nearest  after each round, the two untied blocks with the most similar products B·A are tied,
             until `groups` untied blocks remain
    agent    Q-learning (`tying_agent`); the reward is minus the mean training loss of the round

Source: Hay and Wolf, arXiv 2401.12819. The paper ties whole layers of a language model that is
trained from scratch, and its reward is the validation loss. This module ties only the adapters,
because pre-trained blocks must not be replaced. The reward is the training loss, which the server
can compute from sums over clients, so secure aggregation works. In a run of about twenty rounds,
the agent still chooses mostly at random. Therefore compare the agent with the rule `nearest`.

As for LoRA, the mean of the clients' matrices B and A does not give the mean of their products B·A.
All clients need the same ties, which are one number for each block. The server sends the ties again
only when a tie changes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from fl_vitlora.config.settings import setting
from fl_vitlora.finetuning import frozen_names, targets, tying_agent
from fl_vitlora.finetuning.groups import CONTROL, exchanged_name
from fl_vitlora.finetuning.lora import Adapter, LoRALinear
from fl_vitlora.finetuning.lora_part import LoRA
from fl_vitlora.finetuning.part import Aggregated
from fl_vitlora.finetuning.tying_nearest import nearest_tied, pairs_of
from fl_vitlora.rng import generator
from fl_vitlora.state import State

TIES = "adapter_ties"  # the name of the control tensor in the model
PAIR = (".lora_A", ".lora_B")  # the ends of the names of a pair's matrices


class TiedLinear(LoRALinear):
    """A linear layer with LoRA, which may use the pairs of the same layer in an earlier block."""

    def join(self, model: nn.Module, block: int, path: str) -> None:
        """Stores in this layer how to find the ties and the layers of other blocks.

        Args:
            model: The model with the control tensor `TIES`.
            block: The number of the block of this layer.
            path: The path of this layer in the block.
        """
        vars(self)["place"] = (model, block, path)  # not as a submodule, to avoid a cycle

    def _pairs(self) -> list[Adapter]:
        model, block, path = vars(self)["place"]
        ties: Tensor = getattr(model, TIES)
        source = int(ties.detach().reshape(-1, ties.shape[-1])[0, block])  # equal for all clients
        layer = self if source == block else model.blocks[source].get_submodule(path)
        return [layer.adapters[name] for name in self.slices]  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class TiedLoRA(LoRA):
    """The part of a fine-tuning method that adds LoRA with tied blocks.

    The attribute `low_rank` is False, because strategies that merge or factor the pairs of single
    layers do not know the ties.

    Attributes:
        rank: The rank r of the pairs.
        alpha: The scale α; the product B·A is multiplied by α / r.
        rule: The rule for the ties; see the docstring of this module.
        groups: The number of untied blocks at which the rule `nearest` stops.
        decay: The factor by which the probability ε of the agent's random choices is multiplied
            after each round; ε starts at 1. The paper uses the factor 0.95. The default of this
            module is smaller, because a federated run has fewer rounds.
        targets: The names of the layers of a block that get a pair (`targets.LAYERS`).
    """

    low_rank = False
    control = (TIES,)
    reads_weights = True  # the forward pass needs the values of the ties

    rule: Literal["own", "nearest", "agent"] = "nearest"
    groups: int = setting(2, "Number of untied blocks at which the rule nearest stops.", "[1, inf)")
    decay: float = setting(
        0.8, "Factor of the agent's probability of random choices, per round.", "(0, 1]"
    )

    @property
    def reads_loss(self) -> bool:
        """Returns True if the agent chooses the ties by the loss."""
        return self.rule == "agent"

    def attach(self, model: nn.Module) -> None:
        """Adds pairs to each target layer, and adds the ties to the model; no block is tied yet."""
        layer = partial(TiedLinear, rank=self.rank, alpha=self.alpha)
        targets.attach(model, self.targets, layer)
        blocks = targets.blocks_of(model)
        model.register_parameter(TIES, nn.Parameter(torch.arange(len(blocks)).float()))
        for number, block in enumerate(blocks):
            for path, module in block.named_modules():
                if isinstance(module, TiedLinear):
                    module.join(model, number, path)

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of all matrices A and B, and of the ties."""
        return [*super().trained(model), TIES]

    def merge(self, model: nn.Module) -> None:
        """Adds s·B·A of the pair that a layer uses to the layer's weight, and removes the ties."""
        layers = [(p, m) for p, m in model.named_modules() if isinstance(m, TiedLinear)]
        merged = [(path, layer.merged()) for path, layer in layers]  # before any pair is removed
        for path, plain in merged:
            targets.put_module(model, path, plain)
        delattr(model, TIES)

    def rests(self, server_round: int, memory: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Returns the names of the pairs that belong to tied blocks."""
        del server_round
        return frozen_names.names_of(memory)

    def decide(self, known: Aggregated, memory: Mapping[str, Tensor]) -> tuple[State, State]:
        """Changes the ties as `rule` says, and copies pairs to blocks that are no longer tied."""
        name = exchanged_name(TIES, CONTROL)
        before = [int(tie) for tie in known.after[name]]
        if self.rule == "own":
            return {}, {}
        if not _was_trained(known):
            return {}, dict(memory)
        after, kept = before, State()
        if self.rule == "nearest" and len(set(before)) > self.groups:
            after = nearest_tied(before, known.after)
        elif self.rule == "agent":
            agent = {n: m for n, m in memory.items() if not n.startswith(frozen_names.FROZEN)}
            epsilon = self.decay ** (known.round - 1)
            draw = generator(known.seed, "ties", known.round)
            after, kept = tying_agent.episode(agent, before, -known.loss, epsilon, draw)
        changed = State()
        for block, (old, new) in enumerate(zip(before, after, strict=True)):
            own = pairs_of(block, known.after)
            if new == block != old:
                source = pairs_of(old, known.after)
                changed |= {own[end]: known.after[source[end]].clone() for end in own}
            if new != block:
                kept |= frozen_names.frozen(own.values())
        if after != before:
            changed[name] = torch.tensor(after, dtype=torch.float32)
        return changed, kept


def _was_trained(known: Aggregated) -> bool:
    """Returns True if the round changed a pair; while the head is measured, no pair changes."""
    pairs = (name for name in known.after if name.endswith(PAIR))
    return any(not torch.equal(known.before[name], known.after[name]) for name in pairs)

"""Learners of the pre-training: they share the body of a model, and each has its own fast weights.

A learner imitates a federation on encrypted images. A learner has its own key, for which the body
was not trained, its own letters, and its own fast weights. The fast weights are tensors that the
federated method also trains: an offset of the patch embedding, LoRA on q and v, and a head.
:mod:`fl_vitlora.models.pretraining` explains why learners are used.

Letters in shapes: M learners, B images per learner, N = 16 patches, P = 48 patch entries, D width,
R LoRA rank.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

PATCH: Final = 4
PATCHES: Final = 16
ENTRIES: Final = 3 * PATCH * PATCH


@dataclass(frozen=True)
class Recipe:
    """All settings of the pre-training; the defaults produced the weights in this package."""

    seed: int = 0
    images_per_character: int = 400
    plain_steps: int = 1500
    rekeyed_steps: int = 7000
    learners: int = 4
    batch: int = 32
    classes: int = 10
    shortest_life: int = 60
    longest_life: int = 160
    plain_share: float = 0.2
    rank: int = 4
    alpha: float = 8.0
    slow_rate: float = 1e-3
    fast_rate: float = 3e-3
    head_rate: float = 1e-2
    weight_decay: float = 0.05


def random_key(plain: bool, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draws a key for block scrambling, pixel shuffling and negative-positive transformation.

    These keys protect nothing, so they need no secure random numbers.

    Args:
        plain: True to return the key that leaves images plain.
        generator: The generator of all random numbers.

    Returns:
        The order of the blocks (N,), the order of the entries (P,) and the signs of the entries
        (P,).
    """
    if plain:
        return torch.arange(PATCHES), torch.arange(ENTRIES), torch.ones(ENTRIES)
    signs = torch.ones(ENTRIES)
    signs[torch.randperm(ENTRIES, generator=generator)[: ENTRIES // 2]] = -1
    blocks = torch.randperm(PATCHES, generator=generator)
    return blocks, torch.randperm(ENTRIES, generator=generator), signs


class Learners:
    """The fast weights of M learners, with their keys, their ages and the state of Adam.

    Dimension 0 of every tensor is the learner.
    """

    def __init__(self, recipe: Recipe, depth: int, width: int, characters: int) -> None:
        """Sets the weights of all learners to zero. Call :meth:`forget` to give each learner a key.

        Args:
            recipe: The settings of the pre-training.
            depth: The number of blocks of the model.
            width: The width D of the model.
            characters: The number of different letters.
        """
        m, r = recipe.learners, recipe.rank
        shapes = {
            "embed": (m, ENTRIES, width),
            "bias": (m, 1, width),
            "a": (m, depth, 2, width, r),
            "b": (m, depth, 2, r, width),
            "head": (m, width, recipe.classes),
            "head_bias": (m, 1, recipe.classes),
        }
        self.recipe, self.characters = recipe, characters
        self.weights = {k: torch.zeros(s, requires_grad=True) for k, s in shapes.items()}
        self.first = {k: torch.zeros(s) for k, s in shapes.items()}
        self.second = {k: torch.zeros(s) for k, s in shapes.items()}
        self.age, self.life = torch.zeros(m), torch.zeros(m)
        self.letters = torch.zeros(m, recipe.classes, dtype=torch.long)
        self.keys = [random_key(True, torch.Generator())] * m

    @torch.no_grad()
    def forget(self, index: int, generator: torch.Generator) -> None:
        """Gives one learner a new key and new letters, and resets its fast weights."""
        for name, weight in self.weights.items():
            for tensor in (weight, self.first[name], self.second[name]):
                tensor[index].zero_()
        bound = 1 / math.sqrt(self.weights["a"].shape[-2])
        self.weights["a"][index].uniform_(-bound, bound, generator=generator)
        plain = torch.rand((), generator=generator).item() < self.recipe.plain_share
        self.keys[index] = random_key(plain, generator)
        order = torch.randperm(self.characters, generator=generator)
        self.letters[index] = order[: self.recipe.classes]
        low, high = self.recipe.shortest_life, self.recipe.longest_life
        self.life[index] = int(torch.randint(low, high, (), generator=generator))
        self.age[index] = 0

    def encrypt(self, patches: Tensor) -> Tensor:
        """Encrypts patches (M, B, N, P), each learner's patches with its own key."""
        pairs = zip(patches, self.keys, strict=True)
        return torch.stack([x[:, rows][:, :, order] * signs for x, (rows, order, signs) in pairs])

    def embed(self, patches: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
        """Embeds patches (M, B, N, P) with the sum of slow and fast weights.

        Args:
            patches: The encrypted patches.
            kernel: The weight of the patch embedding that all learners share (slow weight).
            bias: The bias of the patch embedding that all learners share.

        Returns:
            Tokens (M * B, N, D).
        """
        kernels = kernel.flatten(1).T + self.weights["embed"]
        tokens = torch.bmm(patches.flatten(1, 2), kernels) + self.weights["bias"] + bias
        return tokens.view(-1, PATCHES, tokens.shape[-1])

    @torch.no_grad()
    def step(self, generator: torch.Generator) -> None:
        """Takes one step of Adam; then learners as old as their `life` start anew (`forget`)."""
        self.age += 1
        for name, weight in self.weights.items():
            if weight.grad is None:
                continue
            rate = self.recipe.head_rate if name.startswith("head") else self.recipe.fast_rate
            age = self.age.view(-1, *[1] * (weight.ndim - 1))
            first = self.first[name].lerp_(weight.grad, 0.1) / (1 - 0.9**age)
            second = self.second[name].lerp_(weight.grad.square(), 0.01) / (1 - 0.99**age)
            weight.sub_(rate * first / (second.sqrt() + 1e-8))
            weight.grad = None
        for index in (self.age >= self.life).nonzero().flatten().tolist():
            self.forget(index, generator)


class SharedQKV(nn.Module):
    """The qkv projection of one timm block, with a separate LoRA on q and v for each learner."""

    def __init__(self, base: nn.Module, learners: Learners, block: int) -> None:
        """Wraps ``base``, the qkv projection in block number ``block`` of the model."""
        super().__init__()
        self.base, self.learners, self.block = base, learners, block

    def forward(self, tokens: Tensor) -> Tensor:
        """Projects tokens (M * B, N, D) to (M * B, N, 3 D)."""
        fast, recipe = self.learners.weights, self.learners.recipe
        grouped = tokens.reshape(recipe.learners, -1, tokens.shape[-1])
        a, b = fast["a"][:, self.block], fast["b"][:, self.block]
        query, value = (torch.bmm(torch.bmm(grouped, a[:, i]), b[:, i]) for i in range(2))
        update = torch.cat([query, torch.zeros_like(query), value], dim=-1)
        fused: Tensor = self.base(tokens)
        return fused + recipe.alpha / recipe.rank * update.view_as(fused)

"""A small made-up model and made-up deltas for checks, with the tensor names of a real model.

A delta is a client's tensors after training minus before. All numbers can be represented exactly in
bfloat16, so they are the same in every floating-point type.
"""

from __future__ import annotations

import torch

from fl_vitlora import lowrank
from fl_vitlora.rng import generator
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy

RANK, WIDTH, CLASSES = 2, 6, 3
BLOCKS = 40  # the number of blocks of the largest ViT

CLIENTS = (0, 1, 2, 3)
SAMPLES = (40, 30, 20, 10)
STEPS = (4, 3, 2, 1)
RANKS = (1, 2, 2, 1)
RATE = 0.05

FACTORS = {lowrank.A: (RANK, WIDTH), lowrank.B: (WIDTH, RANK)}
LORA_XS = ("lora_xs", "sandwich")  # two names of one adapter
WITH_R = {**FACTORS, lowrank.R: (RANK, RANK)}


def shapes(strategy: Strategy | None = None) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all tensors that clients train, by name.

    Personal tensors, which a client keeps for itself, are included.

    Args:
        strategy: The strategy that decides which adapters the model has. If `strategy` is None, the
            model has the adapters of LoRA.
    """
    xs = strategy is not None and strategy.adapter in LORA_XS
    return {
        "patch_embed.proj.weight": (WIDTH, 3, 2, 2),
        "patch_embed.proj.bias": (WIDTH,),
        **{
            f"blocks.{block}.attn.qkv.adapters.{target}{factor}": shape
            for block in (0, 1)
            for target in ("q", "v")
            for factor, shape in (WITH_R if xs else FACTORS).items()
        },
        "head.weight": (CLASSES, WIDTH),
        "head.bias": (CLASSES,),
    }


def known_names(strategy: Strategy) -> list[str]:
    """Returns the tensor names of the made-up model and of every larger ViT of timm.

    A strategy's plan may name tensors that the made-up model does not have, for example tensors of
    the seventh block.
    """
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    others = {"k": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}
    adapted = [f"{layer}.adapters.{target}" for target, layer in others.items()]
    factors = WITH_R if strategy.adapter in LORA_XS else FACTORS
    return [
        *shapes(strategy),
        *("cls_token", "pos_embed", "norm.weight", "norm.bias"),
        *(
            f"blocks.{block}.{name}"
            for block in range(BLOCKS)
            for name in (
                *(f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")),
                *(f"{path}{factor}" for path in adapted for factor in factors),
            )
        ),
    ]


def made_up_model(strategy: Strategy | None = None, dtype: torch.dtype = torch.float32) -> State:
    """Makes a small model, which is the same in every call.

    Args:
        strategy: The strategy that decides which adapters the model has. The personal tensors of
            this strategy, which never leave a client, are omitted. If `strategy` is None, no tensor
            is personal and the adapters are those of LoRA.
        dtype: The type of the tensors.

    Returns:
        The tensors that server and clients share, by name.
    """
    return _random(strategy, generator(0, "model"), 1.0, dtype)


def made_up_delta(
    strategy: Strategy, server_round: int, client: int, size: float, dtype: torch.dtype
) -> State:
    """Makes a delta (tensors after training minus before) as a client might send it.

    Tensors that the strategy freezes get random numbers too; the caller removes these tensors.

    Args:
        strategy: The strategy for which the model was made.
        server_round: The number of the round, from 1. The random numbers differ from round to
            round.
        client: A client of `CLIENTS`. The random numbers differ from client to client.
        size: The standard deviation of the numbers; 0 for a client that changed nothing.
        dtype: The type of the tensors.

    Returns:
        The delta of each tensor of the model, by name.
    """
    return _random(strategy, generator(0, "delta", server_round, client), size, dtype)


def _random(
    strategy: Strategy | None, chance: torch.Generator, size: float, dtype: torch.dtype
) -> State:
    personal = () if strategy is None else strategy.personal
    return {
        name: (size * torch.randn(shape, generator=chance)).bfloat16().to(dtype)
        for name, shape in shapes(strategy).items()
        if not name.endswith(personal)
    }

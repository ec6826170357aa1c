"""Fine-tuning methods: which tensors of a model are trained and exchanged, all others stay frozen.

A method is a value of two parts: whether LoRA adapters are attached, and which parts of the plain
model are trained as they are. The paper's method (Lin, Imaizumi, Kiya, arXiv 2507.11943) is LoRA in
every layer together with the patch embedding, which must learn to read ciphertext, and the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import targets
from fl_vitlora.finetuning.classifier import head_parameters
from fl_vitlora.rng import derive_seed
from fl_vitlora.state import State

PATCH_EMBEDDING = "patch_embed"
HEAD = "head"
LORA = "lora"
BODY = "body"
HEADS = ("head", "head_dist")  # all that timm's models with a plain patch embedding call theirs


@dataclass(frozen=True, kw_only=True)
class Method:
    """What is trained.

    Attributes:
        lora: Whether adapters are attached to the blocks.
        groups: Groups of tensors (`group_of`) that are trained.
    """

    lora: bool
    groups: frozenset[str]


METHODS: Mapping[str, Method] = {
    "lora+patch_embed": Method(lora=True, groups=frozenset({LORA, PATCH_EMBEDDING, HEAD})),
    "lora": Method(lora=True, groups=frozenset({LORA, HEAD})),
    "head": Method(lora=False, groups=frozenset({HEAD})),
    "full": Method(lora=False, groups=frozenset({PATCH_EMBEDDING, HEAD, BODY})),
}


def group_of(name: str) -> str:
    """Tells the part of a model that a tensor belongs to: lora, patch_embed, head or body.

    Example:
        >>> group_of("blocks.0.attn.qkv.adapters.q.lora_A"), group_of("patch_embed.proj.weight")
        ('lora', 'patch_embed')
    """
    if name.endswith((".lora_A", ".lora_B", ".lora_R")):
        return LORA
    first = name.partition(".")[0]
    if first in HEADS:
        return HEAD
    return PATCH_EMBEDDING if first == PATCH_EMBEDDING else BODY


def prepare(
    model: nn.Module, config: FineTuningConfig, seed: int, *, sandwich: bool = False
) -> None:
    """Attaches what the method adds and frees what it trains, in place.

    Args:
        model: A plain timm ViT, all of it frozen.
        config: Method and its parameters.
        seed: Of the initial A matrices.
        sandwich: Whether adapters have a matrix R between A and B.

    Raises:
        UserError: When the model lacks what the method trains.
    """
    method = METHODS[config.method]
    if method.lora:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, "lora"))
            targets.attach(model, config.targets, config.rank, config.alpha, sandwich=sandwich)
    _check_heads(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(group_of(name) in method.groups)
    missing = method.groups - {BODY} - {group_of(name) for name in trainable(model)}
    if missing:
        raise UserError(
            f"method {config.method} finds no {', '.join(sorted(missing))} in "
            f"{type(model).__name__}; choose another: --method full"
        )


def _check_heads(model: nn.Module) -> None:
    """Compares what the model says is its classifier with what is called a head.

    Names decide what travels how; a classifier that they do not tell would be taken for the body.

    Raises:
        UserError: When they differ.
    """
    heads = head_parameters(model)
    called = {name for name, _ in model.named_parameters() if group_of(name) == HEAD}
    if differing := sorted(heads ^ called):
        raise UserError(
            f"{type(model).__name__} has a classifier that is not told from its body by name "
            f"({', '.join(differing[:3])}); take a plain ViT, for example vit_base_patch16_224"
        )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the trained parameters by name, in the model's order."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def plain_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Returns what a plain model of this architecture would exchange: all but the adapters."""
    return {n: p.detach().cpu() for n, p in model.named_parameters() if group_of(n) != LORA}


def export_state(model: nn.Module) -> State:
    """Copies the trained tensors of a model to the CPU: float32, or float64 where the model is."""
    return copied_out(trainable(model))


def copied_out(parameters: Mapping[str, Tensor]) -> State:
    """Copies parameters to the CPU: float32, or float64 where they are.

    Example:
        >>> whole = {"w": nn.Parameter(torch.ones(1, dtype=torch.float64))}
        >>> half = {"w": nn.Parameter(torch.ones(1, dtype=torch.bfloat16))}
        >>> copied_out(whole)["w"].dtype, copied_out(half)["w"].dtype
        (torch.float64, torch.float32)
    """
    return {
        name: p.detach().to("cpu", torch.promote_types(p.dtype, torch.float32), copy=True)
        for name, p in parameters.items()
    }


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Puts trained tensors into the model, in place.

    Raises:
        ValueError: When names or shapes differ from the model's.
    """
    copy_in(trainable(model), state)


@torch.no_grad()
def copy_in(parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
    """Gives a model's trained parameters new values, in place.

    Raises:
        ValueError: When names or shapes differ.
    """
    if parameters.keys() != state.keys():
        differing = sorted(parameters.keys() ^ state.keys())
        raise ValueError(f"expected the model's trained tensors; these differ: {differing}")
    for name, parameter in parameters.items():
        if parameter.shape != state[name].shape:
            raise ValueError(
                f"{name}: expected shape {tuple(parameter.shape)}, got {tuple(state[name].shape)}"
            )
        parameter.copy_(state[name])


def merge(model: nn.Module) -> None:
    """Turns an adapted model into a plain timm model that computes the same, in place."""
    targets.merge(model)


def check_gradients(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Takes one step's gradient and checks that it reaches every trained tensor.

    Some timm models (BEiT, EVA, SwinV2) read the weight of `qkv` themselves and pass an adapter by.

    Args:
        model: A prepared model; its parameters stay as they are.
        image_shape: (C, H, W).

    Raises:
        UserError: When a trained tensor takes no part in the forward pass.
    """
    probe = torch.linspace(-1, 1, 2 * image_shape[0] * image_shape[1] * image_shape[2])
    try:
        model(probe.reshape(2, *image_shape)).square().sum().backward()
    except AttributeError as error:
        raise UserError(
            f"{type(model).__name__} reads its layers' weights directly and would bypass LoRA "
            f"({error}); take a plain ViT, or --method full"
        ) from None
    reached = {name for name, p in trainable(model).items() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    bypassed = sorted(trainable(model).keys() - reached)
    if bypassed:
        raise UserError(
            f"{type(model).__name__} never uses {len(bypassed)} trained tensors, first "
            f"{bypassed[0]}; take a plain ViT, or another --method"
        )

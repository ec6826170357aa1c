"""Finds and replaces the classifier of a timm model.

A classifier consists of one or more heads. For example, a distilled DeiT has two heads and averages
their outputs. If only one of two heads were trained, the other head would stay random, and the
predictions would be wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fl_vitlora.errors import UserError

AUXILIARY = ("head_dist", "aux_head")  # heads that the `get_classifier` of some models leaves out


def heads_of(model: nn.Module) -> list[nn.Module]:
    """Returns the modules of a model's classifier, or an empty list if there is no classifier."""
    get = getattr(model, "get_classifier", None)
    found: Any = get() if callable(get) else None
    heads = list(found) if isinstance(found, tuple | list) else [found]
    heads += [getattr(model, name, None) for name in AUXILIARY]
    known: dict[int, nn.Module] = {id(h): h for h in heads if isinstance(h, nn.Module)}
    return list(known.values())


def head_parameters(model: nn.Module) -> set[str]:
    """Returns the names of the parameters of all heads."""
    own = {id(p) for head in heads_of(model) for p in head.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


def replace_heads(model: nn.Module, classes: int) -> None:
    """Replaces the heads by heads of zeros, so that all classes are equally likely before training.

    The new heads compute in float32, even if the rest of the model computes in half precision. A
    logit is a sum of large terms that cancel each other. Therefore the rounding of bfloat16 can
    change the predicted class.

    Args:
        model: A timm model, which is changed in place.
        classes: The number of classes.

    Raises:
        UserError: If the model has no classifier, or its classifier has no linear layer.
    """
    reset = getattr(model, "reset_classifier", None)
    if not callable(reset):
        raise UserError(
            f"{type(model).__name__} has no classifier that can be replaced; use a plain ViT, for "
            "example vit_base_patch16_224"
        )
    reset(classes)
    for head in heads_of(model):
        last = _last_layer(head.modules(), classes)
        if last is None:
            raise UserError(
                f"{type(model).__name__} has a classifier without a linear layer of {classes} "
                "outputs; use a plain ViT, for example vit_base_patch16_224"
            )
        for parameter in last.parameters(recurse=False):
            nn.init.zeros_(parameter)
        vars(head)["forward"] = partial(_in_own_precision, head)  # hides the class's own `forward`


def take_heads(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    theirs: Sequence[str],
    ours: Sequence[str],
    where: str,
) -> int:
    """Copies the heads of a trained model into new heads of zeros; classes are matched by name.

    Args:
        model: A model whose heads `replace_heads` has made.
        tensors: The tensors of the trained model, by name.
        theirs: The names of the classes of the trained model.
        ours: The names of the classes of the new heads.
        where: The origin of the tensors, for messages.

    Returns:
        The number of classes that both models have.

    Raises:
        UserError: If the trained model has other heads.
    """
    rows = {
        id(parameter)
        for head in heads_of(model)
        if (last := _last_layer(head.modules(), len(ours))) is not None
        for parameter in last.parameters(recurse=False)
    }
    common = [(ours.index(name), number) for number, name in enumerate(theirs) if name in ours]
    new, old = [pair[0] for pair in common], [pair[1] for pair in common]
    for name in sorted(head_parameters(model)):
        own, other = model.get_parameter(name), tensors.get(name)
        is_rows = id(own) in rows
        expected = (len(theirs), *own.shape[1:]) if is_rows else tuple(own.shape)
        if other is None or tuple(other.shape) != expected:
            found = "no such tensor" if other is None else f"the shape {tuple(other.shape)}"
            raise UserError(f"{where}: expected {name} of the shape {expected}, found {found}")
        with torch.no_grad():
            if is_rows:
                own[new] = other[old].to(own.dtype)
            else:
                own.copy_(other)
    return len(common)


def plain_heads(model: nn.Module) -> None:
    """Removes the function `forward` that `replace_heads` has given to the heads, in place.

    Without this function, a head is a plain module, which other libraries can copy and store.
    """
    for head in heads_of(model):
        vars(head).pop("forward", None)


def _in_own_precision(head: nn.Module, x: Tensor) -> Tensor:
    """Returns the logits of a head, computed in the number format of its parameters."""
    with full_precision(x.device):
        own = next(head.parameters()).dtype
        logits: Tensor = type(head).forward(head, x.to(own))
    return logits


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """Returns a context in which PyTorch converts no tensor to half precision."""
    if not torch.amp.is_autocast_available(device.type):  # for example the device meta
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _last_layer(modules: Iterable[nn.Module], classes: int) -> nn.Linear | None:
    """Returns the last linear layer with one output for each class, or None if there is none."""
    linear = [m for m in modules if isinstance(m, nn.Linear) and m.out_features == classes]
    return linear[-1] if linear else None


def outputs_of(model: nn.Module) -> int:
    """Returns the number of classes of a model's classifier, or 0 if it has no linear layer."""
    layers = [m for h in heads_of(model) for m in h.modules() if isinstance(m, nn.Linear)]
    return layers[-1].out_features if layers else 0

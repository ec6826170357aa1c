"""Functions that attach a fine-tuning method to a model, and read and write its trained tensors.

The method of the paper (Lin, Imaizumi, Kiya, arXiv 2507.11943) is ``lora+patch_embed``, which
trains LoRA in every block, the patch embedding and the head. The patch embedding is trained so that
it learns to read encrypted images. A method is a sum of parts. The module `part` has the rules for
a part, and the module `shelf` makes the parts that a configuration names.

A prepared model is a model to which a method is attached. A prepared model has a description
(`Prepared`) with the method, the names that the trained tensors have in messages, and the names of
the tensors that the method added.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.config.method_names import USUAL
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import groups
from fl_vitlora.finetuning.classifier import head_parameters
from fl_vitlora.finetuning.groups import BODY, HEAD, HEADS, LORA, PATCH_EMBEDDING, group_of
from fl_vitlora.finetuning.method import Method
from fl_vitlora.finetuning.part import BatchTerm
from fl_vitlora.finetuning.shelf import method_of
from fl_vitlora.rng import derive_seed
from fl_vitlora.state import State

__all__ = ["BODY", "HEAD", "HEADS", "LORA", "PATCH_EMBEDDING", "group_of"]

METHODS = USUAL  # the methods that most tests and benchmarks use
PREPARED = "fine_tuning"  # the attribute of a model in which its `Prepared` is stored


class CannotMergeError(UserError):
    """An error that says why a trained model cannot become a plain timm model."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The description of the fine-tuning method that is attached to a model.

    Attributes:
        method: The fine-tuning method.
        names: A mapping from the name of each trained tensor in the model to its name in messages.
        added: The names, in the model, of the tensors that the method added.
        rates: A mapping from names of trained tensors in messages to the factors of their learning
            rates. Tensors with the factor 1 are left out.
    """

    method: Method
    names: Mapping[str, str]
    added: frozenset[str]
    rates: Mapping[str, float]


def prepare(model: nn.Module, config: FineTuningConfig, seed: int, adapter: str = "lora") -> None:
    """Attaches a method to a model, and unfreezes the tensors that the method trains, in place.

    Args:
        model: A plain timm ViT whose tensors are all frozen.
        config: The settings of the fine-tuning: the name of the method and its hyper-parameters.
        seed: The seed for random initial values, for example of the matrices A of LoRA.
        adapter: The low-rank matrices that the strategy needs, one of `shelf.ADAPTERS`.

    Raises:
        UserError: If the model does not have the tensors or layers that the method trains.
    """
    attach(model, method_of(config, adapter), seed)


def attach(model: nn.Module, method: Method, seed: int) -> None:
    """Attaches all parts of a method to a model, and unfreezes their tensors, in place.

    Args:
        model: A plain timm ViT.
        method: The fine-tuning method.
        seed: The seed for random initial values.

    Raises:
        UserError: If the model does not have the tensors or layers that the method trains.
    """
    before = {id(parameter) for parameter in model.parameters()}
    for name, part in method.parts:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(seed, name))
            part.attach(model)
    _check_heads(model)
    added = {name for name, p in model.named_parameters() if id(p) not in before}
    names = _trained_names(model, method)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
    vars(model)[PREPARED] = Prepared(
        method=method, names=names, added=frozenset(added), rates=_rates(model, method, names)
    )


def _trained_names(model: nn.Module, method: Method) -> dict[str, str]:
    """Returns a dictionary from the names of trained tensors in the model to those in messages.

    Raises:
        UserError: If a part finds no tensor to train, or names a tensor that the model lacks.
    """
    own = [name for name, _ in model.named_parameters()]
    heads = {name: name for name in own if group_of(name) == HEAD}
    if not heads:
        raise _nothing(method, HEAD, model)
    found: dict[str, str] = {}
    for name, part in method.parts:
        trained = list(part.trained(model))
        if not trained:
            raise _nothing(method, name, model)
        if strange := sorted(set(trained) - set(own)):
            raise UserError(
                f"method {method.name}: the part {name} trains {strange[0]}, an unknown tensor; a "
                "part may name only tensors of the model"
            )
        for path in trained:
            try:
                group = groups.CONTROL if path.endswith(part.control) else part.group(path)
                found.setdefault(path, groups.exchanged_name(path, group))
            except ValueError as error:
                raise UserError(f"method {method.name}: {error}") from None
    return found | heads


def _rates(model: nn.Module, method: Method, names: Mapping[str, str]) -> dict[str, float]:
    """Returns the factors of learning rates that are not 1; see `Prepared.rates`.

    Raises:
        UserError: If a factor is not a positive number.
    """
    found: dict[str, float] = {}
    for part_name, part in reversed(method.parts):  # the first part that trains a tensor decides
        for path in part.trained(model):
            factor = part.rate(path)
            if not 0 < factor < float("inf"):
                raise UserError(
                    f"method {method.name}: the part {part_name} returns the rate {factor!r} for "
                    f"{path}; expected a positive factor for the learning rate"
                )
            found[names[path]] = factor
    return {name: factor for name, factor in found.items() if factor != 1}


def _nothing(method: Method, part: str, model: nn.Module) -> UserError:
    """Returns the error for a model without tensors that a part could train."""
    return UserError(
        f"method {method.name} finds no {part} in {type(model).__name__}; choose another method, "
        "for example --method full"
    )


def prepared(model: nn.Module) -> Prepared | None:
    """Returns the description of a prepared model, or None for a plain model."""
    return vars(model).get(PREPARED)


def _check_heads(model: nn.Module) -> None:
    """Checks that exactly the tensors of the classifier have names of the group `head`.

    The name of a tensor decides its group. If the classifier had a name of the body, its tensors
    would get the learning rate of the body.

    Raises:
        UserError: If a tensor of the classifier has a name of another group, or if a tensor outside
            of the classifier has a name of the group `head`.
    """
    heads = head_parameters(model)
    called = {name for name, _ in model.named_parameters() if group_of(name) == HEAD}
    if differing := sorted(heads ^ called):
        raise UserError(
            f"{type(model).__name__} has a classifier whose tensors have names like tensors of the "
            f"body ({', '.join(differing[:3])}); the names must begin with 'head.', so use a plain "
            "ViT, for example vit_base_patch16_224"
        )


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns a dictionary from names in messages to the trained parameters of a model.

    The parameters are in the order of the model. The module `groups` explains the names.
    """
    preparation = prepared(model)
    names = {} if preparation is None else preparation.names
    return {names.get(n, n): p for n, p in model.named_parameters() if p.requires_grad}


def backpropagated(model: nn.Module) -> dict[str, nn.Parameter]:
    """Returns the exchanged parameters that clients train with gradients.

    The result has all exchanged tensors, except tensors that only the server changes
    (`Part.control`) and tensors that clients measure (`Part.measured`).
    """
    preparation = prepared(model)
    others = () if preparation is None else preparation.method.control + preparation.method.measured
    return {name: p for name, p in trainable(model).items() if not name.endswith(others)}


@contextmanager
def watch(model: nn.Module) -> Iterator[tuple[BatchTerm, ...]]:
    """Lets a model's method watch the model during the steps of a round; see `Part.watch`."""
    preparation = prepared(model)
    with nullcontext(()) if preparation is None else preparation.method.watch(model) as terms:
        yield terms


def rates(model: nn.Module) -> Mapping[str, float]:
    """Returns the factors of the learning rates of a prepared model; see `Prepared.rates`."""
    preparation = prepared(model)
    return {} if preparation is None else preparation.rates


def plain_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Returns the parameters of a model on the CPU, without parameters that its method added."""
    preparation = prepared(model)
    added = frozenset[str]() if preparation is None else preparation.added
    return {n: p.detach().cpu() for n, p in model.named_parameters() if n not in added}


def export_state(model: nn.Module) -> State:
    """Returns copies of a model's trained tensors on the CPU, as `copied_out` does."""
    return copied_out(trainable(model))


def copied_out(parameters: Mapping[str, Tensor]) -> State:
    """Returns copies of parameters on the CPU; float64 is kept, and other types become float32.

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
    """Copies tensors into the trained parameters of a model, in place.

    Args:
        model: A prepared model.
        state: The new values, under the names that the tensors have in messages.

    Raises:
        ValueError: If the names or shapes differ from the names or shapes of the model's tensors.
    """
    copy_in(trainable(model), state)


@torch.no_grad()
def copy_in(parameters: Mapping[str, nn.Parameter], state: Mapping[str, Tensor]) -> None:
    """Copies tensors into parameters, in place.

    Args:
        parameters: A mapping from names to parameters.
        state: A mapping from the same names to the new values.

    Raises:
        ValueError: If names or shapes differ between `state` and `parameters`.
    """
    if parameters.keys() != state.keys():
        differing = sorted(parameters.keys() ^ state.keys())
        raise ValueError(
            "expected the names of the model's trained tensors; these names are missing or "
            f"unknown: {differing}"
        )
    for name, parameter in parameters.items():
        if parameter.shape != state[name].shape:
            raise ValueError(
                f"{name}: expected shape {tuple(parameter.shape)}, got {tuple(state[name].shape)}"
            )
        parameter.copy_(state[name])


def merge(model: nn.Module) -> None:
    """Turns a prepared model into a plain timm model that computes the same outputs, in place.

    Raises:
        CannotMergeError: If a part of the method cannot be merged.
    """
    preparation = prepared(model)
    parts = () if preparation is None else preparation.method.parts
    for name, part in parts:
        if part.cannot_merge:
            raise CannotMergeError(
                f"the tensors of method {name} cannot be merged into a plain timm model: "
                f"{part.cannot_merge}"
            )
    for _, part in reversed(parts):
        part.merge(model)
    vars(model).pop(PREPARED, None)


def check_gradients(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Computes one gradient and checks that every trained tensor gets a gradient.

    Some timm models (BEiT, EVA, SwinV2) read the weight of the layer `qkv` directly. If a method
    adds LoRA to the layer `qkv` of these models, the models do not use LoRA.

    Args:
        model: A prepared model, whose parameters do not change.
        image_shape: The shape of an image, (C, H, W).

    Raises:
        UserError: If the model does not use a trained tensor in its forward pass.
    """
    probe = torch.linspace(-1, 1, 2 * image_shape[0] * image_shape[1] * image_shape[2])
    try:
        with torch.enable_grad():  # the caller may have switched gradients off
            model(probe.reshape(2, *image_shape)).square().sum().backward()
    except AttributeError as error:
        raise UserError(
            f"{type(model).__name__} reads the weights of its layers directly and would ignore "
            f"LoRA ({error}); use a plain ViT, or --method full"
        ) from None
    trained = backpropagated(model)
    reached = {name for name, p in trained.items() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    bypassed = sorted(trained.keys() - reached)
    if bypassed:
        raise UserError(
            f"{type(model).__name__} never uses {len(bypassed)} trained tensors, for example "
            f"{bypassed[0]}, so these tensors would not learn; use a plain ViT, or another --method"
        )

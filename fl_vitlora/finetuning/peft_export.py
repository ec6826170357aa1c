"""Writes the changes of a fine-tuned model as an adapter of Hugging Face's library `peft`.

This module compares two plain models: the public model, and the tuned model into which all parts of
the method are merged. Therefore it does not matter which parts the method has. If the weight of a
linear layer has changed by a matrix of low rank, the layer becomes LoRA in `peft`: W + B·A. The
singular value decomposition of the change gives B and A exactly. In timm, q, k and v are one layer,
so LoRA on q and v with rank r becomes one product B·A of rank 2·r for this layer. Any other layer
that has changed is stored as a whole (`modules_to_save`).

Letters in shapes: m outputs and n inputs of a layer, r rank.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fl_vitlora.errors import UserError

ADAPTER_CONFIG, ADAPTER = "adapter_config.json", "adapter_model.safetensors"
NEGLIGIBLE = 1e-9  # float64 singular values below this share of the largest are rounding errors


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The differences between two plain models.

    Attributes:
        low_rank: A mapping from names of linear layers to the factors B, (m, r), and A, (r, n), of
            the change of the layer's weight.
        whole: The names of the modules that are stored as a whole.
        biases: True if a bias of a layer in `low_rank` has changed.
    """

    low_rank: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    whole: tuple[str, ...] = ()
    biases: bool = False


def changes_between(public: nn.Module, tuned: nn.Module, always: Sequence[str] = ()) -> Changes:
    """Compares two plain models of the same architecture.

    Args:
        public: The pre-trained model, in float64.
        tuned: The tuned model, in float64.
        always: The names of modules that are stored as a whole, whether they have changed or not.

    Raises:
        UserError: If a tensor that belongs to no layer has changed, such as a position embedding,
            because `peft` cannot store this tensor.
    """
    before, low_rank, whole, biases = dict(public.named_parameters()), {}, list(always), False
    changed = {n for n, p in tuned.named_parameters() if not torch.equal(p, before[n])}
    for path in sorted({name.rpartition(".")[0] for name in changed}):
        if any(path == chosen or path.startswith(f"{chosen}.") for chosen in always):
            continue
        if not path or not _is_leaf(tuned.get_submodule(path)):
            bare = next(n for n in sorted(changed) if n.rpartition(".")[0] == path)
            raise UserError(
                f"peft cannot store {bare}, because this tensor belongs to no layer; export the "
                "whole model instead, with the form timm"
            )
        layer = tuned.get_submodule(path)
        factors = None
        if isinstance(layer, nn.Linear):
            factors = _factors((layer.weight - before[f"{path}.weight"]).detach())
        if factors is None:
            whole.append(path)
        else:
            low_rank[path] = factors
            biases |= f"{path}.bias" in changed
    return Changes(low_rank=low_rank, whole=tuple(whole), biases=biases)


def adapter_of(public: nn.Module, tuned: nn.Module, changes: Changes) -> Any:
    """Returns a model of `peft` that has the weights of the tuned model.

    Args:
        public: The pre-trained model, in float32.
        tuned: The tuned model.
        changes: The result of `changes_between`.

    Raises:
        UserError: If the library `peft` is not installed.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError:
        raise UserError(
            "this export needs the library peft; install it: pip install 'fl_vitlora[peft]'"
        ) from None
    ranks = {path: len(low) for path, (_, low) in changes.low_rank.items()}
    if not ranks:
        raise UserError(
            "no weight has changed by a matrix of low rank, so there is nothing for peft to "
            "adapt; export the whole model instead, with the form timm"
        )
    config = LoraConfig(
        r=max(ranks.values()),
        lora_alpha=max(ranks.values()),
        target_modules=sorted(ranks),
        rank_pattern=ranks,
        alpha_pattern=ranks,
        modules_to_save=list(changes.whole) or None,
        bias="lora_only" if changes.biases else "none",
    )
    adapted: Any = get_peft_model(copy.deepcopy(public), config)
    with torch.no_grad():
        for path, (up, down) in changes.low_rank.items():
            layer = adapted.base_model.model.get_submodule(path)
            layer.lora_A["default"].weight.copy_(down)
            layer.lora_B["default"].weight.copy_(up)
            if changes.biases and layer.base_layer.bias is not None:
                layer.base_layer.bias.copy_(tuned.get_submodule(path).bias)
        for path in changes.whole:
            kept = adapted.base_model.model.get_submodule(path).modules_to_save["default"]
            kept.load_state_dict(tuned.get_submodule(path).state_dict())
    return adapted.eval()


def write_adapter(folder: Path, adapted: Any) -> None:
    """Writes adapter_config.json and adapter_model.safetensors.

    The same model gives the same bytes.

    Args:
        folder: The folder, which must exist.
        adapted: The result of `adapter_of`.
    """
    adapted.save_pretrained(str(folder), safe_serialization=True)
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # peft writes a set in any order
    text = json.dumps(config, indent=2, sort_keys=True)
    (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")


def open_adapter(public: nn.Module, folder: Path) -> nn.Module:
    """Returns the public model with the adapter of a folder, loaded with the library `peft`.

    Args:
        public: The pre-trained model, which is not changed.
        folder: The folder that `write_adapter` has filled.
    """
    from peft import PeftModel

    opened: nn.Module = PeftModel.from_pretrained(copy.deepcopy(public), str(folder))
    return opened.eval()


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _factors(change: Tensor) -> tuple[Tensor, Tensor] | None:
    """Returns B, (m, r), and A, (r, n), with B·A = change.

    If B and A together have at least as many entries as the change, the result is None.
    If the change is zero (only the bias of the layer has changed), B and A are zero with r = 1.
    """
    left, values, right = torch.linalg.svd(change, full_matrices=False)
    rank = max(1, int((values > NEGLIGIBLE * values[0]).sum()) if values[0] > 0 else 1)
    if rank * sum(change.shape) >= change.numel():
        return None
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]

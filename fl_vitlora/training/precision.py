"""The number format in which a model computes: float32, bfloat16 or float16.

Trained tensors are always float32. In the other formats, PyTorch converts the inputs of matrix
products, which then take less time on a GPU, and on a CPU with instructions for bfloat16 (AMX or
AVX512_BF16).
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn

# The largest number of patches for which attention keeps all its weights in memory. A ViT with
# patches of 16 pixels has 576 patches on images of 384 pixels.
SHORT = 600
FUSED = "fused_attn"  # the attribute of timm's attention that chooses PyTorch's own kernel


def best_precision(device: torch.device, wanted: str) -> torch.dtype:
    """Chooses the number format of activations.

    Args:
        device: The device that computes.
        wanted: The setting `engine.precision`: "float32", "bfloat16", or "auto".

    Returns:
        The wanted format. For "auto", the format is float32 on a CPU, bfloat16 on a GPU, and
        float16 on a GPU without bfloat16.
    """
    if wanted != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[wanted]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def autocast(
    device: torch.device, precision: torch.dtype, *, cached: bool = True
) -> contextlib.AbstractContextManager[object]:
    """Returns a context in which activations are computed in the given number format.

    Args:
        device: The device that computes.
        precision: The number format of activations. For float32 the context has no effect.
        cached: True to convert each weight only once. Then no weight may change inside the context.
    """
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision, cache_enabled=cached)


def unhalved(logits: Tensor) -> Tensor:
    """Converts logits in half precision to float32. Other logits keep their number format."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def choose_attention(
    model: nn.Module, patches: int, device: torch.device, precision: torch.dtype
) -> None:
    """Changes a timm model in place, so that its attention computes in the faster of two ways.

    PyTorch has one function for the whole attention. In training with bfloat16 on a CPU, this
    function takes several times as long as the single products of softmax(q·kᵀ)·v
    (`benchmarks/speed/precision.py`). The single products keep the weights of all pairs of tokens
    in memory. Therefore the single products are not used if an image has many patches.

    Args:
        model: A model of timm.
        patches: The number of patches of an image.
        device: The device that computes.
        precision: The number format of activations.
    """
    if device.type != "cpu" or precision == torch.float32 or patches > SHORT:
        return
    for module in model.modules():
        if hasattr(module, FUSED):
            setattr(module, FUSED, False)

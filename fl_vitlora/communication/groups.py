"""Tensor groups: what may travel in a way of its own, and what bytes are told apart by."""

from __future__ import annotations

from fl_vitlora.finetuning import methods

LORA_A, LORA_B, OTHER = "lora_A", "lora_B", "other"
GROUPS = (methods.PATCH_EMBEDDING, LORA_A, LORA_B, methods.HEAD, OTHER)


def group_of(name: str) -> str:
    """Tells the group of a tensor: patch_embed, lora_A, lora_B, head, or other.

    Example:
        >>> group_of("blocks.0.attn.qkv.adapters.q.lora_A"), group_of("patch_embed.proj.weight")
        ('lora_A', 'patch_embed')
        >>> group_of("blocks.0.attn.qkv.adapters.q.lora_R"), group_of("blocks.0.norm1.bias")
        ('other', 'other')
    """
    last = name.rpartition(".")[2]
    if last in (LORA_A, LORA_B):
        return last
    part = methods.group_of(name)
    return part if part in GROUPS else OTHER

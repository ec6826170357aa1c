"""Groups of tensors in messages, for example the head.

All tensors of a group share a codec and are counted together.

`finetuning.groups` assigns each tensor to a group. In messages, all groups without their own codec
setting form a single group, `other`.
"""

from __future__ import annotations

from fl_vitlora.finetuning.groups import (
    CONTROL,
    HEAD,
    LORA_A,
    LORA_B,
    PATCH_EMBEDDING,
    exact_group_of,
)

OTHER = "other"
GROUPS = (PATCH_EMBEDDING, LORA_A, LORA_B, HEAD, OTHER, CONTROL)


def group_of(name: str) -> str:
    """Returns the group of a tensor in messages, one of `GROUPS`.

    Args:
        name: The name under which the tensor is exchanged.

    Example:
        >>> group_of("blocks.0.attn.qkv.adapters.q.lora_A"), group_of("patch_embed.proj.weight")
        ('lora_A', 'patch_embed')
        >>> group_of("blocks.0.attn.qkv.adapters.q.lora_R"), group_of("blocks.0.norm1.bias")
        ('other', 'other')
        >>> group_of("head:blocks.0.gate")
        'head'
    """
    group = exact_group_of(name)
    return group if group in GROUPS else OTHER

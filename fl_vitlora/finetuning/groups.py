"""Groups of tensors, for example the head. A tensor's group decides its learning rate and codec.

A codec compresses a tensor for sending. The results of a run also show the bytes of each group. The
group of a tensor follows from the name of the tensor in messages. For most tensors the name in
messages is the name in the model: ``patch_embed.proj.weight`` belongs to the patch embedding, and
``….lora_A`` is a low-rank matrix. A part of a fine-tuning method may add tensors whose names in the
model do not show the group. The name of such a tensor in messages then begins with the group, for
example ``lora:blocks.0.attn.gate``. Therefore client and server find the same group from the name
alone.
"""

from __future__ import annotations

PATCH_EMBEDDING = "patch_embed"
HEAD = "head"
LORA = "lora"
LORA_A = "lora_A"
LORA_B = "lora_B"
BODY = "body"
CONTROL = "control"  # tensors that only the server changes, such as the indices of trained entries
GROUPS = (PATCH_EMBEDDING, LORA_A, LORA_B, LORA, HEAD, BODY, CONTROL)
HEADS = ("head", "head_dist")  # the classifiers of timm's models with a plain patch embedding
MARK = ":"


def exact_group_of(name: str) -> str:
    """Returns the group of a tensor, one of `GROUPS`.

    Args:
        name: The name that the tensor has in messages.

    Example:
        >>> exact_group_of("blocks.0.attn.qkv.adapters.q.lora_A"), exact_group_of("norm.bias")
        ('lora_A', 'body')
        >>> exact_group_of("head:blocks.0.gate")
        'head'
    """
    marked, mark, _ = name.partition(MARK)
    if mark and marked in GROUPS:
        return marked
    last = name.rpartition(".")[2]
    if "." in name and last in (LORA_A, LORA_B):
        return last
    if name.endswith(".lora_R"):
        return LORA
    first = name.partition(".")[0]
    if first in HEADS:
        return HEAD
    return PATCH_EMBEDDING if first == PATCH_EMBEDDING else BODY


def group_of(name: str) -> str:
    """Returns the group of a tensor, where `lora_A` and `lora_B` both count as `lora`.

    Example:
        >>> group_of("blocks.0.attn.qkv.adapters.q.lora_A"), group_of("patch_embed.proj.weight")
        ('lora', 'patch_embed')
    """
    group = exact_group_of(name)
    return LORA if group in (LORA_A, LORA_B) else group


def exchanged_name(path: str, group: str) -> str:
    """Returns the name that a tensor of a model has in messages.

    Args:
        path: The name of the tensor in the model.
        group: The group of the tensor, one of `GROUPS`.

    Raises:
        ValueError: If the group does not exist.

    Example:
        >>> exchanged_name("head.weight", "head"), exchanged_name("blocks.0.gate", "lora")
        ('head.weight', 'lora:blocks.0.gate')
    """
    if group not in GROUPS:
        raise ValueError(
            f"{path}: {group!r} is not a group of tensors; choose one of {', '.join(GROUPS)}"
        )
    return path if exact_group_of(path) == group else f"{group}{MARK}{path}"


def path_of(name: str) -> str:
    """Returns the name of a tensor in the model, for the `name` of the tensor in messages.

    Example:
        >>> path_of("lora:blocks.0.gate"), path_of("head.weight")
        ('blocks.0.gate', 'head.weight')
    """
    group, mark, path = name.partition(MARK)
    return path if mark and group in GROUPS else name

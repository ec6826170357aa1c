"""LoSA-style tuning: a small network beside the frozen backbone refines the outputs of its blocks.

No gradient passes through the backbone, so clients can keep the outputs of its blocks, which are
the features of this method (`finetuning.features`). With the output b_l of block l, (T, D):

    y_0 = 0,   y_l = y_{l-1} + g_l(b_l + y_{l-1}),   logits = head(norm(b_L + y_L))
    g(h) = W_up · gelu(W_down · h + c) + d

For odd l the mixer g_l works on the channels of every token: W_down (r, D) and W_up (D, r). For
even l the mixer g_l works on the tokens of every channel: W_down (r, T) and W_up (T, r). All W_up
and d start at zero, so the model starts as a linear probe.

The tensors W_down, c, W_up and d of all blocks are sent: with r = 8 these are 65,478 numbers for
ViT-S/14 (T = 257) and 98,526 for ViT-B/16 (T = 197). The features are never sent. The mean of the
clients' tensors does not give the mean of their outputs: the mixers are not linear in their
tensors. The aggregation gap cannot be measured, because the mixers change no weight. The network
cannot be merged into a plain timm model.

Token mixers depend on the order of the tokens. Block scrambling changes this order. If all clients
share a key, they see the tokens in the same order and can learn token mixers together. With a key
for each client or image, use channel mixers only: ``--set finetuning.parameters.mixers=channels``.

Source: Mercea, Gritsenko, Schmid, Arnab, arXiv 2402.02887. The paper describes the parallel design
and low-rank mixers that alternate between channels and tokens. The recurrence, the rank, the start
and the class token that passes the frozen norm are our own choices; therefore the method is called
"LoSA-style".

Letters in shapes: L blocks, B images, T tokens, S tokens that the classifier reads, D width, r
rank.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from fl_vitlora.config.settings import setting
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.groups import LORA
from fl_vitlora.finetuning.part import Part
from fl_vitlora.finetuning.side_network import Mixer, SideNetwork, block_outputs

SIDE = "side_network"


@dataclass(frozen=True, kw_only=True)
class LoSA(Part):
    """The part of a fine-tuning method that trains a side network of low-rank mixers.

    Attributes:
        mixer_rank: The rank r of all mixers.
        mixers: "alternate" for channel and token mixers in turn, or "channels".
        mixer_rate: The factor on the learning rate of the mixers.
    """

    stackable = True
    frozen_backbone = True
    cannot_merge = "its side network reads the outputs of all blocks"

    mixer_rank: int = setting(8, "Rank r of the mixers.", "[1, inf)")
    mixers: Literal["alternate", "channels"] = setting(
        "alternate", "Whether every second mixer works on tokens, or all work on channels."
    )
    mixer_rate: float = setting(1.0, "Factor on the learning rate of the mixers.", "(0, inf)")

    @property
    def reads_token_order(self) -> bool:
        """Returns True if there are token mixers."""
        return self.mixers == "alternate"

    def attach(self, model: nn.Module) -> None:
        """Adds the side network between the last block and the final norm.

        Raises:
            UserError: If the model is not a plain ViT of blocks, or the rank is too large.
        """
        whole: Any = model
        if not isinstance(getattr(model, "norm", None), nn.Module) or not _is_plain(model):
            raise UserError(
                f"method losa finds no blocks of equal width and final norm in "
                f"{type(model).__name__}; use a plain ViT, for example vit_base_patch16_224"
            )
        tokens, width = whole.patch_embed.num_patches + whole.num_prefix_tokens, whole.embed_dim
        along = [number % 2 == 1 and self.reads_token_order for number in range(len(whole.blocks))]
        least = min([width, *([tokens] if any(along) else [])])
        if self.mixer_rank > least:
            raise UserError(
                f"finetuning.parameters.mixer_rank {self.mixer_rank}: expected at most {least}; "
                f"the model has {tokens} tokens of {width} channels"
            )
        sizes = {True: tokens, False: width}
        mixers = [Mixer(sizes[turned], self.mixer_rank, tokens=turned) for turned in along]
        model.add_module(SIDE, SideNetwork(mixers))
        # these hide the functions of the model's class
        vars(model)["forward_features"] = partial(_forward_features, model)
        vars(model)["forward"] = partial(_forward, model)

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of the tensors of all mixers."""
        return [name for name, _ in model.named_parameters() if name.startswith(f"{SIDE}.")]

    def group(self, name: str) -> str:
        """Returns the group `lora`, whose tensors have the setting `learning_rate` unchanged."""
        del name
        return LORA

    def rate(self, name: str) -> float:
        """Returns the factor on the learning rate of the mixers."""
        del name
        return self.mixer_rate

    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        """Returns the outputs of all blocks, (B, L, T, D).

        If all mixers work on channels, only the S tokens that the classifier reads are returned,
        (B, L, S, D), because they depend on no other token.
        """
        outputs = block_outputs(model, images)
        read = None if self.reads_token_order else _tokens_read(model)
        return outputs[:, :, :read].contiguous()

    def from_features(self, model: nn.Module, features: Tensor) -> Tensor:
        """Returns the logits, (B, classes), for the outputs of all blocks that are features."""
        return _logits(model, features)


def _forward(model: nn.Module, images: Tensor, **given: Any) -> Tensor:
    """Returns the logits, (B, classes), as timm's function `forward` does."""
    return _logits(model, block_outputs(model, images, **given))


def _logits(model: nn.Module, outputs: Tensor) -> Tensor:
    """Returns the logits, (B, classes), for the outputs of all blocks, (B, L, T, D)."""
    whole: Any = model
    tokens = whole.side_network(outputs, _tokens_read(model))
    logits: Tensor = whole.forward_head(whole.norm(tokens))
    return logits


def _forward_features(model: nn.Module, images: Tensor, **given: Any) -> Tensor:
    """Returns the normalised tokens, (B, T, D), as timm's function of this name does."""
    whole: Any = model
    tokens: Tensor = whole.norm(whole.side_network(block_outputs(model, images, **given)))
    return tokens


def _tokens_read(model: nn.Module) -> int | None:
    """Returns how many tokens, from the first on, the classifier reads; None for all tokens."""
    whole: Any = model
    if getattr(model, "global_pool", None) != "token" or getattr(model, "attn_pool", None):
        return None
    return max(1, int(whole.num_prefix_tokens))


def _is_plain(model: nn.Module) -> bool:
    """Returns True if a model has blocks, and knows the number of its tokens and their width."""
    names = ("blocks", "patch_embed", "embed_dim", "num_prefix_tokens", "forward_features")
    return all(hasattr(model, name) for name in names) and not getattr(
        model, "dynamic_img_size", False
    )

"""LoSA-style tuning: a small network beside the frozen backbone refines the outputs of its blocks.

No gradient passes through the backbone, so clients can keep the outputs of its blocks, which are
the features of this method (`finetuning.features`). With the output b_l of block l, (T, D):

    y_0 = 0,   y_l = y_{l-1} + g_l(b_l + y_{l-1}),   logits = head(norm(b_L + y_L))
    g(h) = W_up · gelu(W_down · h + c) + d

For odd l the mixer g_l works on the channels of every token: W_down is (r, D) and W_up is (D, r).
For even l the mixer g_l works on the tokens of every channel: W_down is (r, T) and W_up is (T, r).
All W_up and d start at zero. Therefore, before training, the model has the outputs of the
pre-trained backbone with a new head.

Clients send the tensors W_down, c, W_up and d of all blocks. With r = 8 these are 65,478 numbers
for ViT-S/14 (T = 257) and 98,526 numbers for ViT-B/16 (T = 197). The features are never sent. The
mean of the clients' tensors does not give the mean of the outputs of the clients' models, because
the mixers are not linear in their tensors. The aggregation gap cannot be measured, because the
mixers change no weight. The side network cannot be merged into a plain timm model.

Token mixers depend on the order of the tokens, and block scrambling changes this order. If all
clients share a key, all clients see the tokens in the same order and can learn token mixers
together. If each client or image has its own key, use only channel mixers: ``--set
finetuning.parameters.mixers=channels``.

Source: Mercea, Gritsenko, Schmid, Arnab, arXiv 2402.02887. The paper describes the parallel design
and low-rank mixers that alternate between channels and tokens. The recurrence, the rank, the start
and the frozen norm after the side network are our own choices. Therefore this method is called
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
        mixers: "alternate" if channel mixers and token mixers alternate; "channels" if all mixers
            work on channels.
        mixer_rate: The factor by which the learning rate of the mixers is multiplied.
    """

    stackable = True
    frozen_backbone = True
    cannot_merge = "its side network reads the outputs of all blocks"

    mixer_rank: int = setting(8, "Rank r of the mixers.", "[1, inf)")
    mixers: Literal["alternate", "channels"] = setting(
        "alternate", "Whether every second mixer works on tokens, or all mixers work on channels."
    )
    mixer_rate: float = setting(
        1.0, "Factor by which the learning rate of the mixers is multiplied.", "(0, inf)"
    )

    @property
    def reads_token_order(self) -> bool:
        """Returns True if some mixers work on tokens."""
        return self.mixers == "alternate"

    def attach(self, model: nn.Module) -> None:
        """Adds the side network between the last block and the final norm.

        Raises:
            UserError: If the model is not a plain ViT with blocks, or the rank is too large.
        """
        whole: Any = model
        if not isinstance(getattr(model, "norm", None), nn.Module) or not _is_plain(model):
            raise UserError(
                f"method losa needs blocks of equal width and a final norm, which "
                f"{type(model).__name__} lacks; use a plain ViT, for example vit_base_patch16_224"
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
        # the two new functions hide the methods of the model's Python class
        vars(model)["forward_features"] = partial(_forward_features, model)
        vars(model)["forward"] = partial(_forward, model)

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of the tensors of all mixers."""
        return [name for name, _ in model.named_parameters() if name.startswith(f"{SIDE}.")]

    def group(self, name: str) -> str:
        """Returns the group `lora`, whose learning rate is the setting `learning_rate` itself."""
        del name
        return LORA

    def rate(self, name: str) -> float:
        """Returns the factor by which the learning rate of the mixers is multiplied."""
        del name
        return self.mixer_rate

    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        """Returns the outputs of all blocks, (B, L, T, D).

        If all mixers work on channels, this method returns only the S tokens that the classifier
        reads, (B, L, S, D), because no mixer lets other tokens change these tokens.
        """
        outputs = block_outputs(model, images)
        read = None if self.reads_token_order else _tokens_read(model)
        return outputs[:, :, :read].contiguous()

    def from_features(self, model: nn.Module, features: Tensor) -> Tensor:
        """Returns the logits, (B, classes), for the outputs of all blocks (the features)."""
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
    """Returns the normalised tokens, (B, T, D), as timm's function `forward_features` does."""
    whole: Any = model
    tokens: Tensor = whole.norm(whole.side_network(block_outputs(model, images, **given)))
    return tokens


def _tokens_read(model: nn.Module) -> int | None:
    """Returns the number of first tokens that the classifier reads; None if it reads all tokens."""
    whole: Any = model
    if getattr(model, "global_pool", None) != "token" or getattr(model, "attn_pool", None):
        return None
    return max(1, int(whole.num_prefix_tokens))


def _is_plain(model: nn.Module) -> bool:
    """Returns True if a model has blocks, and a fixed number and width of tokens."""
    names = ("blocks", "patch_embed", "embed_dim", "num_prefix_tokens", "forward_features")
    return all(hasattr(model, name) for name in names) and not getattr(
        model, "dynamic_img_size", False
    )

"""The default learning rates of each backbone, because one rate does not suit all models.

With a learning rate that is good for one model, another model may learn nothing. If an experiment
does not set the rates, `config.resolve` uses the default rates of its model. The run folder records
the rates that were used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The learning rates and β₁ with which AdamW trains a backbone.

    Attributes:
        learning_rate: The highest learning rate that the schedule of a run reaches. Low-rank
            matrices are trained with this rate; the rates of other tensors are multiples of it.
        head_rate: The learning rate of the head, divided by `learning_rate`.
        patch_embed_rate: The learning rate of the patch embedding, divided by `learning_rate`.
        body_rate: The learning rate of all other tensors, divided by `learning_rate`. Only full
            fine-tuning and some other methods train such tensors.
        beta1: The decay rate β₁ of AdamW's running mean of the gradients, in [0, 1).
    """

    learning_rate: float
    head_rate: float
    patch_embed_rate: float
    body_rate: float
    beta1: float


# These rates were chosen on a part of the training images of the digits, with 20 clients, batches
# of 8 and about ten steps per round. The seeds were not those of the published tables.
LETTERS = Rates(learning_rate=2e-2, head_rate=1.0, patch_embed_rate=0.25, body_rate=0.3, beta1=0.5)
# Learning rate, head rate and beta1 trained a ViT-S/14 (DINOv2) on 2,000 images of CIFAR-10 at 56
# pixels to 65.7 % after 10 rounds of 4 clients, with batches of 16; with the rates of LETTERS its
# accuracy stays at that of guessing. The body's rate is the usual 5e-5 of full fine-tuning with
# AdamW; it was not measured.
ORDINARY = Rates(
    learning_rate=5e-4, head_rate=10.0, patch_embed_rate=0.25, body_rate=0.1, beta1=0.9
)
RATES: Mapping[str, Rates] = {"vit_letters_16": LETTERS, "vit_letters_16_plain": LETTERS}


def rates_of(model: str) -> Rates:
    """Returns the default learning rates of a model.

    Args:
        model: The name of the model, as in the setting `model.name`. A model that is not part of
            this package gets the rates of an ordinary pre-trained ViT.

    Example:
        >>> rates_of("vit_letters_16").learning_rate, rates_of("vit_base_patch16_224").learning_rate
        (0.02, 0.0005)
    """
    return RATES.get(model, ORDINARY)

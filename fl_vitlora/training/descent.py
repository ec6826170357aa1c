"""The steps of gradient descent that one client, or K clients together, take in a round.

    w ← w + optimiser(∇ (cross-entropy + terms + batch terms)) + η · drift

w are the trained tensors and η is the learning rate. The terms and the drift come from the
strategy. A `Descent` has everything that is the same in all steps of a round. For K clients the
tensors are stacked, (K, ...), and the loss is the sum of the clients' losses; see
`training.cohort`.

Letters in shapes: B images in a step, C channels, height H, width W, K clients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fl_vitlora.config import TrainingConfig
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.features import FrozenBackbone
from fl_vitlora.finetuning.part import BatchTerm
from fl_vitlora.training.inputs import Inputs, logits_of
from fl_vitlora.training.objective import Term, cross_entropy, penalties
from fl_vitlora.training.optimizers import make_optimizer
from fl_vitlora.training.precision import autocast, unhalved
from fl_vitlora.training.steps import Clip, clip_each, drift_on, step


@dataclass(frozen=True, kw_only=True)
class Descent:
    """Everything that is the same in all steps of a round.

    Attributes:
        logits: The function that maps the inputs of a step, (B, ...), to logits (module `inputs`).
        active: The tensors that are trained in this round.
        anchor: The values that the tensors of `active` had when the training of this round began;
            empty if there are no terms.
        terms: The terms that are added to the cross-entropy in the local loss.
        batch_terms: Functions that return further terms from the labels of a batch, after its
            forward pass (`Part.watch`).
        drift: The tensors that are multiplied by the learning rate and added after every step.
        rate: The learning rate of the round.
        optimizer: The optimiser of the trained tensors.
        scaler: PyTorch's scaler, which multiplies the loss in float16 so that small gradients do
            not become zero.
        config: The hyper-parameters that are the same in all rounds.
        device: The device of the model, on which the steps are computed.
        precision: The number format of activations: float32, bfloat16 or float16.
    """

    logits: Inputs
    active: Mapping[str, nn.Parameter]
    anchor: Mapping[str, Tensor]
    terms: tuple[Term, ...]
    batch_terms: tuple[BatchTerm, ...]
    drift: Mapping[str, Tensor]
    rate: float
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    config: TrainingConfig
    device: torch.device
    precision: torch.dtype

    def step(self, inputs: Tensor, labels: Tensor, sizes: Sequence[int] | None = None) -> Tensor:
        """Takes one step of gradient descent.

        Args:
            inputs: The images as they are on disk, not normalised, (B, C, H, W), or their features,
                (B, ...), on the device of the model.
            labels: The numbers of the images' true classes, (B,).
            sizes: The number of images of each stacked client; None for a single client.

        Returns:
            A tensor (K,): for each client, the sum of the cross-entropy over its images, without
            the terms.
        """
        with autocast(self.device, self.precision):
            logits = unhalved(self.logits(inputs))
            further = sum((term(labels) for term in self.batch_terms), 0.0)
        loss, losses = cross_entropy(logits, labels, self.config.label_smoothing, sizes)
        penalized = loss + penalties(self.terms, self.active, self.anchor) + further
        clip: Clip = nn.utils.clip_grad_norm_ if sizes is None else clip_each
        if penalized.requires_grad:  # False in a round in which clients only measure
            step(self.optimizer, self.scaler, penalized, self.config.clip_norm, clip)
        drift_on(self.active, self.drift, self.rate)
        return losses


def begin(
    model: nn.Module,
    active: Mapping[str, nn.Parameter],
    *,
    config: TrainingConfig,
    rate: float,
    terms: tuple[Term, ...],
    drift: Mapping[str, Tensor],
    precision: torch.dtype,
    batch_terms: tuple[BatchTerm, ...] = (),
    frozen: FrozenBackbone | None = None,
) -> Descent:
    """Prepares the steps of a round. The trained tensors must have their initial values already.

    Args:
        model: The model that computes with the trained tensors.
        active: The tensors that are trained in this round.
        config: The hyper-parameters of local training.
        rate: The learning rate of the round.
        terms: The terms that are added to the cross-entropy in the local loss.
        drift: The tensors that are added after every step, times the learning rate. Names of
            tensors that are not trained in this round are left out.
        precision: The number format of activations: float32, bfloat16 or float16.
        batch_terms: Functions that return further terms from the labels of a batch.
        frozen: The frozen backbone and the trained rest of the model for one client; None if each
            step computes the whole model.

    Returns:
        The `Descent`, whose method `step` takes the steps.
    """
    device = next(iter(active.values())).device
    return Descent(
        logits=logits_of(model, frozen),
        active=active,
        anchor={name: p.detach().clone() for name, p in active.items()} if terms else {},
        terms=terms,
        batch_terms=batch_terms,
        drift={name: drift[name].to(device) for name in active if name in drift},
        rate=rate,
        optimizer=make_optimizer(active, config, rate, methods.rates(model)),
        scaler=torch.amp.GradScaler(device.type, enabled=precision == torch.float16),
        config=config,
        device=device,
        precision=precision,
    )

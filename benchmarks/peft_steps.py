"""Measures how far tuners of peft move a layer, if trained with the learning rate of LoRA.

A client trains the bundled ViT on 72 plain digits, as in a round of the default job, with the
learning rate 2e-2. The table has the distance of the outputs of the first adapted layer from their
start, as a share of the norm of the outputs: after the first step that moves the tuner, and after
the round. The head is zero at the start, so the first step moves only the head. If a tuner moves
the outputs by several times their size, the learning rate is too high for this tuner.

    python benchmarks/peft_steps.py
    python benchmarks/peft_steps.py WAVEFT LORA
    python benchmarks/peft_steps.py --own-rates WAVEFT LORA
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

import numpy as np
import torch
from peft_tuners import NEEDED
from torch import Tensor, nn

from fl_vitlora.config import Config, DataConfig, load
from fl_vitlora.data import sources
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.preparation import prepare_model
from fl_vitlora.finetuning import methods, peft_tuners
from fl_vitlora.finetuning.peft_layers import layers_of
from fl_vitlora.models.backbone import normalize
from fl_vitlora.rng import generator
from fl_vitlora.training.descent import begin
from fl_vitlora.training.steps import batches_of

IMAGES, RATE = 72, 2e-2


def main(tuners: list[str], *, own_rates: bool) -> None:
    """Prints a table.

    Args:
        tuners: The names of the tuners; all if the list is empty.
        own_rates: True to train each tuner with its own rate, False to use that of LoRA for all.
    """
    print("| tuner | after the first step | after the round | loss of the last step |")
    print("|---|--:|--:|--:|")
    for tuner in tuners or sorted(peft_tuners.tuners()):
        try:
            first, last, loss = moved(tuner, own_rates=own_rates)
        except UserError:
            continue
        print(f"| `{tuner}` | {first:.1%} | {last:.0%} | {loss:.2f} |", flush=True)


def moved(tuner: str, *, own_rates: bool) -> tuple[float, float, float]:
    """Trains a tuner for a round; returns two distances and the loss of the last step.

    Args:
        tuner: The name of the tuner.
        own_rates: True to train the tuner with its own rate, False to use that of LoRA.

    Raises:
        UserError: If the tuner does not fit the model.
    """
    rate = {} if own_rates else {"tuner_rate": 1.0}
    given = {**NEEDED.get(tuner, {}), **rate}
    config = load(None, {"finetuning.method": f"peft:{tuner}", "finetuning.parameters": given})
    model = prepare_model(config, 10, "cpu").model
    found, _ = sources.load(DataConfig(limit=IMAGES))
    images = found.read(np.arange(IMAGES), 16, 16)
    place = next(iter(layers_of(_plain(config), tuner, config.finetuning.targets)))
    start = _outputs(model, place, images)
    far, losses = list[float](), list[float]()
    for loss in _steps(model, config, images, torch.from_numpy(found.labels)):
        losses.append(loss)
        far.append(float((_outputs(model, place, images) - start).norm() / start.norm()))
    return far[1], far[-1], losses[-1]


def _plain(config: Config) -> nn.Module:
    """Returns the model without the tuner."""
    head = load(None, {"finetuning.method": "head", "seed": config.seed})
    return prepare_model(head, 10, "cpu").model


def _steps(model: nn.Module, config: Config, images: Tensor, labels: Tensor) -> Iterator[float]:
    """Takes the steps of a round, and yields the mean loss of each."""
    descent = begin(
        model,
        methods.trainable(model),
        config=config.training,
        rate=RATE,
        terms=(),
        drift={},
        precision=torch.float32,
    )
    order = generator(0, "order")
    for chosen in batches_of(IMAGES, 1, config.training.batch_size, order, torch.device("cpu")):
        model.train()
        yield float(descent.step(images[chosen], labels[chosen]).sum()) / len(chosen)


def _outputs(model: nn.Module, place: str, images: Tensor) -> Tensor:
    """Returns the outputs of a layer for some images."""
    seen: list[Tensor] = []
    layer = model.eval().get_submodule(place)
    handle = layer.register_forward_hook(lambda _module, _inputs, out: seen.append(out.clone()))
    with torch.no_grad():
        model(normalize(images))
    handle.remove()
    return seen[0]


if __name__ == "__main__":
    words = sys.argv[1:]
    main([word for word in words if word != "--own-rates"], own_rates="--own-rates" in words)

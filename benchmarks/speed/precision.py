"""Time of a training step on a CPU, in float32 and in bfloat16, computed in several ways.

python benchmarks/speed/precision.py --model vit_small_patch14_dinov2 --size 112

A client trains LoRA, patch embedding and head on random images, with one thread, as a worker does.
The ways take turns, so that other load on the machine affects all of them. The table has medians of
the time of the processor. "Whole attention" is PyTorch's own function for softmax(q·kᵀ)·v, and
"products" are its products one by one (`training.precision`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from fl_vitlora.config import FineTuningConfig, ModelConfig, TrainingConfig
from fl_vitlora.finetuning import methods, products
from fl_vitlora.models import backbone
from fl_vitlora.training.descent import begin
from fl_vitlora.training.inputs import set_mode
from fl_vitlora.training.precision import choose_attention

CLASSES = 10
# The library (None for PyTorch's own layers), the number format, and whether attention is products.
WAYS = {
    "float32, PyTorch's own layers": (None, torch.float32, False),
    "float32, MKL": ("mkl", torch.float32, False),
    "float32, oneDNN": ("onednn", torch.float32, False),
    "bfloat16, whole attention": ("onednn", torch.bfloat16, False),
    "bfloat16, products": ("onednn", torch.bfloat16, True),
}


def main() -> None:
    """Measures all ways in turns, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_small_patch14_dinov2")
    parser.add_argument("--size", type=int, help="side of the images; by default the model's own")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    size = None if arguments.size is None else (arguments.size,)
    config = ModelConfig(name=arguments.model, weights="random", image_size=size)
    steps = {
        name: step_of(config, arguments.batch, library=own, precision=kind, by_products=split)
        for name, (own, kind, split) in WAYS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(arguments.repetitions + 1):
        for name, (library, step) in steps.items():
            products.use(library)
            begun = time.process_time()
            step()
            if repetition:  # the first one warms up
                seconds[name].append(time.process_time() - begun)
    print("| way | ms a step | images/s | to PyTorch's own layers |\n|---|--:|--:|--:|")
    base = next(iter(seconds.values()))
    for name, found in seconds.items():
        ratios = [one / other for one, other in zip(found, base, strict=True)]
        middle = statistics.median(found)
        print(
            f"| {name} | {middle * 1e3:.0f} | {arguments.batch / middle:.1f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


def step_of(
    config: ModelConfig,
    batch: int,
    *,
    library: str | None,
    precision: torch.dtype,
    by_products: bool,
) -> tuple[str, Callable[[], Any]]:
    """Builds a model and returns its library and a function that takes one training step."""
    built = backbone.build(config, CLASSES, 0)
    methods.prepare(built.model, FineTuningConfig(), 0)
    if library is not None:
        products.quicken(built.model)
    if by_products:
        choose_attention(built.model, built.patches, torch.device("cpu"), precision)
    set_mode(built.model, None)
    descent = begin(
        built.model,
        methods.trainable(built.model),
        config=TrainingConfig(),
        rate=1e-4,
        terms=(),
        drift={},
        precision=precision,
    )
    images = torch.randint(0, 256, (batch, *built.image_shape), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (batch,))
    return library or products.DEFAULT, lambda: descent.step(images, labels)


if __name__ == "__main__":
    main()

"""Images per second of local training: many clients in one batch, and one client after the other.

python benchmarks/speed/cohort.py
python benchmarks/speed/cohort.py --model vit_base_patch16_224 --batch 16 --images 32 --device cuda

All clients have the same number of made-up images, and the weights are random, because only time is
measured. The two ways take turns. The last columns compare floating-point operations per second of
matrix products with those of one large matrix product in the same precision.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from fl_vitlora.config import EngineConfig, FineTuningConfig, ModelConfig, TrainingConfig
from fl_vitlora.data.shards import Shard
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.products import product_for, quicken
from fl_vitlora.models import backbone
from fl_vitlora.models.reading import reader_of
from fl_vitlora.training.cohort import CohortTrainer, LocalJob
from fl_vitlora.training.local import LocalTask
from fl_vitlora.training.precision import best_precision

CLASSES = 10
SIDE = 2048  # rows and columns of the large matrices


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_letters_16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=72, help="images of a client (72)")
    parser.add_argument("--batch", type=int, default=8, help="images per client and step (8)")
    parser.add_argument("--cohorts", type=int, nargs="+", default=[1, 2, 5, 10, 20])
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    plain, alone, together = trainers(arguments.model, arguments.batch, device)
    limit = matrix_rate(device, alone.precision)
    print(
        "| clients | images/s alone | together | speed-up | of the matrix rate, alone | together |"
    )
    print("|--:|--:|--:|--:|--:|--:|")
    for clients in arguments.cohorts:
        given = [job(alone, arguments.images, client) for client in range(clients)]
        with FlopCounterMode(display=False) as counter:
            plain.train(given)
        work = counter.get_total_flops()
        found: dict[str, list[float]] = {"alone": [], "together": []}
        for _ in range(arguments.repetitions):
            found["alone"].append(seconds(lambda: alone.train(given), device))  # noqa: B023
            found["together"].append(seconds(lambda: together.train(given), device))  # noqa: B023
        one, other = (statistics.median(found[name]) for name in found)
        ratios = [a / b for a, b in zip(*found.values(), strict=True)]
        images = clients * arguments.images
        print(
            f"| {clients} | {images / one:.0f} | {images / other:.0f} "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) "
            f"| {work / one / limit:.0%} | {work / other / limit:.0%} |",
            flush=True,
        )


def trainers(
    model: str, batch: int, device: torch.device
) -> tuple[CohortTrainer, CohortTrainer, CohortTrainer]:
    """Builds three trainers: to count operations, to train clients alone, and to train together."""
    config = TrainingConfig(batch_size=batch)
    precision = best_precision(device, EngineConfig().precision)
    plain, quick = (
        backbone.build(ModelConfig(name=model, weights="random"), CLASSES, 0) for _ in range(2)
    )
    for built in (plain, quick):
        methods.prepare(built.model, FineTuningConfig(), 0)
        built.model.to(device)
    quicken(quick.model)
    return (
        CohortTrainer(backbone=plain, stacks=False, config=config, precision=precision),
        CohortTrainer(backbone=quick, stacks=False, config=config, precision=precision),
        CohortTrainer(backbone=quick, stacks=True, config=config, precision=precision),
    )


def job(trainer: CohortTrainer, images: int, client: int) -> LocalJob:
    """Makes a client's job with random images and labels."""
    random = torch.Generator().manual_seed(client)
    shape = trainer.backbone.image_shape
    return LocalJob(
        start=methods.export_state(trainer.backbone.model),
        shard=Shard(
            images=torch.randint(0, 256, (images, *shape), generator=random, dtype=torch.uint8),
            labels=torch.randint(0, CLASSES, (images,), generator=random),
        ),
        task=LocalTask(learning_rate=1e-3),
        generator=random,
        reader=reader_of(trainer.backbone),
    )


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Returns the seconds of a call, including the work of the device."""
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begin


def matrix_rate(device: torch.device, precision: torch.dtype) -> float:
    """Returns the floating-point operations per second of one large matrix product."""
    left, right = (torch.randn(SIDE, SIDE, device=device, dtype=precision) for _ in range(2))

    product = product_for(right)
    times = [seconds(lambda: product(left, right, None), device) for _ in range(10)]
    return float(2 * SIDE**3 / min(times))


if __name__ == "__main__":
    main()

"""Processor time of local training for several numbers of clients in a batch.

python benchmarks/speed/bundles.py --method losa

The clients and their plain images are those of the default job, and features are kept. The server
sends messages to the clients with the most images first, so that bundles are cut from the clients
in this order. The numbers of clients take turns. "Span" is the time until two workers, each of
which takes the next bundle when it is idle, have trained all bundles. All times are processor time
of one process with one thread, because other programs change it less. Frozen layers compute with
the library that a run on this machine uses.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from dataclasses import replace

import torch

from fl_vitlora.config import Config, load
from fl_vitlora.data import sources
from fl_vitlora.data.partition import partition
from fl_vitlora.data.shards import Shard
from fl_vitlora.experiment.preparation import prepare_model
from fl_vitlora.finetuning import methods, products
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import reader_of
from fl_vitlora.training.cohort import CohortTrainer, LocalJob, can_share_a_batch
from fl_vitlora.training.inputs import features_of_shard, frozen_of
from fl_vitlora.training.local import LocalTask
from fl_vitlora.training.product_choice import choose_library

WORKERS = 2
CPU = torch.device("cpu")


def jobs_of(config: Config, built: Backbone, shards: list[Shard]) -> list[LocalJob]:
    """Returns the jobs of a round, in the order in which the server sends messages."""
    start, reader = methods.export_state(built.model), reader_of(built)
    rate = config.training.learning_rate
    return [
        LocalJob(
            start=start,
            shard=shard,
            task=LocalTask(learning_rate=rate),
            generator=torch.Generator().manual_seed(number),
            reader=reader,
        )
        for number, shard in enumerate(sorted(shards, key=len, reverse=True))
    ]


def shards_of(config: Config, built: Backbone) -> list[Shard]:
    """Returns the plain images of all clients, and their features if the method uses them."""
    images, _ = sources.load(config.data)
    frozen, shards = frozen_of(built.model), []
    for part in partition(images.labels, config.clients, config.data, config.seed):
        labels = torch.from_numpy(images.labels[part])
        shard = Shard(images=images.read(part, *built.image_shape[1:]), labels=labels)
        if frozen is not None:
            kept = features_of_shard(frozen, shard, CPU, torch.float32)
            shard = replace(shard, features=kept)
        shards.append(shard)
    return shards


def measured(trainer: CohortTrainer, jobs: list[LocalJob], most: int) -> tuple[float, float]:
    """Trains all clients; returns the seconds of all bundles, and the span of two workers."""
    count = math.ceil(len(jobs) / most)
    ends = [len(jobs) * number // count for number in range(count + 1)]
    busy, total = [0.0] * WORKERS, 0.0
    for begin, end in itertools.pairwise(ends):
        before = time.process_time()
        trainer.train(jobs[begin:end])
        taken = time.process_time() - before
        busy[busy.index(min(busy))] += taken
        total += taken
    return total, max(busy)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="losa")
    parser.add_argument("--together", type=int, nargs="+", default=[3, 5, 7, 10, 20])
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = load(None, {"clients": 20, "finetuning.method": arguments.method})
    built = prepare_model(config, 10, "cpu")
    rows = config.training.batch_size * built.patches
    products.use(choose_library(built.model, "cpu", rows))
    products.quicken(built.model)
    shards = shards_of(config, built)
    trainer = CohortTrainer(
        backbone=built,
        stacks=can_share_a_batch(built.model, config.training),
        config=config.training,
        precision=torch.float32,
    )
    found: dict[int, list[tuple[float, float]]] = {most: [] for most in arguments.together}
    for repetition in range(1 + arguments.repetitions):
        for most, own in found.items():
            taken = measured(trainer, jobs_of(config, built, shards), most)
            if repetition:  # the first one warms up
                own.append(taken)
    print("| clients in a batch | ms a client (smallest to largest) | span of two workers, ms |")
    print("|--:|--:|--:|")
    for most, own in found.items():
        each = [1e3 * total / config.clients for total, _ in own]
        span = 1e3 * statistics.median(one for _, one in own)
        spread = f"{statistics.median(each):.1f} ({min(each):.1f} to {max(each):.1f})"
        print(f"| {most} | {spread} | {span:.0f} |")


if __name__ == "__main__":
    main()

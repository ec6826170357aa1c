"""The upper limit of speed: bare PyTorch processes of one thread each, without a federation.

There are as many processes as workers. Every process trains its own share of the clients, round
after round, from the same first state. The shares are as equal as whole clients allow. Nothing is
sent, averaged or measured, and no process waits for another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import multiprocessing
from work import Task, asked, build, epoch, now, report

from fl_vitlora.data.shards import Shard
from fl_vitlora.finetuning import methods


def main() -> None:
    """Starts the processes and gathers their times."""
    task = asked()
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    workers = [
        context.Process(target=train, args=(task, share, answers))
        for share in shares([len(shard) for shard in task.shards()], task.workers)
    ]
    for worker in workers:
        worker.start()
    found = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
    slowest = max(found, key=lambda times: sum(times[1]))[1]
    report(slowest, min(begin for begin, _ in found))


def shares(sizes: list[int], workers: int) -> list[list[int]]:
    """Assigns clients to processes: the largest first, each to the process with the least work."""
    dealt: list[list[int]] = [[] for _ in range(workers)]
    for client in sorted(range(len(sizes)), key=lambda c: -sizes[c]):
        min(dealt, key=lambda share: sum(sizes[c] for c in share)).append(client)
    return dealt


def train(task: Task, share: list[int], answers: Any) -> None:
    """Trains the clients of one process for all rounds."""
    torch.set_num_threads(1)
    config, shards = task.config, task.shards()
    mine: list[Shard] = [shards[client] for client in share]
    model = build(config)
    first = methods.export_state(model)
    begin, seconds = now(), []
    for _ in range(task.rounds):
        start = now()
        for shard in mine:
            methods.load_state(model, first)
            epoch(model, shard, config)
        seconds.append(now() - start)
    answers.put((begin, seconds))


if __name__ == "__main__":
    main()

"""The contender Flower: a stock app like Flower's examples.

The app builds the model for every message and sends all of its tensors. It uses Flower's FedAvg and
Flower's simulation with default settings, and evaluates centrally after each round.
"""

from __future__ import annotations

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import functools
import itertools
import logging

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from work import Task, accuracy, asked, build, epoch, now, report


def main() -> None:
    """Runs the app."""
    logging.disable(logging.CRITICAL)
    task = asked()
    clients, config = len(task.shards()), task.config
    app, server = ClientApp(), ServerApp()
    app.train()(functools.partial(train, task))
    times = [now()]
    measured: list[float] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        model = build(config)
        model.load_state_dict(arrays.to_torch_state_dict())
        measured.append(accuracy(model, task.test_shard()))
        times.append(now())
        return MetricRecord({"accuracy": measured[-1]})

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        del context
        strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=clients)
        first = ArrayRecord(build(config).state_dict())
        strategy.start(grid, first, num_rounds=task.rounds, evaluate_fn=evaluate)

    run_simulation(
        server_app=server,
        client_app=app,
        num_supernodes=clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": task.workers},
        },
    )
    rounds = [end - start for start, end in itertools.pairwise(times[1:])]
    report(rounds, times[1], measured[-1])


def train(task: Task, message: Message, context: Context) -> Message:
    """Trains one client."""
    shard, config = task.shards()[int(context.node_config["partition-id"])], task.config
    model = build(config)
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    loss = epoch(model, shard, config)
    metrics = MetricRecord({"num-examples": len(shard), "train_loss": loss})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content, reply_to=message)


if __name__ == "__main__":
    main()

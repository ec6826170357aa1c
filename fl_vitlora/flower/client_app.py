"""The ClientApp: unpack the global tensors, train on the own shard, send back the difference.

A worker process serves many clients, one after the other. The frozen backbone and the opened shards
stay in the process between messages; a message brings only what is exchanged.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl_vitlora.communication.packing import Layout
from fl_vitlora.config import FineTuningConfig, ModelConfig, TrainingConfig
from fl_vitlora.data.shards import Shard, client_shard, open_shard
from fl_vitlora.finetuning import methods
from fl_vitlora.flower import messages
from fl_vitlora.models import backbone
from fl_vitlora.models.reading import READER_FILE, open_reader, put_reader
from fl_vitlora.rng import generator
from fl_vitlora.state import subtract
from fl_vitlora.training import LocalTask, best_precision, train


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """All that a worker must know; it holds no key, no image and no weights.

    Attributes:
        shards: Folder of the encrypted shards.
        classes: Outputs of the head.
        seed: The run's seed.
        device: "cpu" or "cuda".
        mixed_precision: Whether activations are in half precision on a GPU.
        adapted: Whether the model was adapted to the key; the shards then bring its reader.
        model: The backbone.
        finetuning: What is trained.
        training: How.
    """

    shards: str
    classes: int
    seed: int
    device: str
    mixed_precision: bool
    adapted: bool
    model: ModelConfig
    finetuning: FineTuningConfig
    training: TrainingConfig


SettingsOf = Callable[[Context], ClientSettings]


def make_client_app(settings_of: SettingsOf) -> ClientApp:
    """Makes the app that every client runs.

    Args:
        settings_of: Finds the settings; a simulation knows them, a deployed node reads its context.

    Returns:
        The app.
    """
    app = ClientApp()
    app.query()(functools.partial(_greet, settings_of))
    app.train()(functools.partial(_train, settings_of))
    return app


def _greet(settings_of: SettingsOf, message: Message, context: Context) -> Message:
    """Tells which client this node is, and makes the worker ready."""
    settings = settings_of(context)
    client = client_of(context)
    samples = len(workspace(settings).shard(client))
    metrics = MetricRecord({messages.CLIENT: client, messages.SAMPLES: samples})
    return Message(RecordDict({messages.METRICS: metrics}), reply_to=message)


def _train(settings_of: SettingsOf, message: Message, context: Context) -> Message:
    """Trains for one round."""
    settings, client = settings_of(context), client_of(context)
    worker = workspace(settings)
    shard = worker.shard(client)
    received = messages.from_packed(message.content, worker.layout)
    config = message.content.config_records[messages.CONFIG]
    task = _task(config, worker.layout)
    trained, loss = train(
        worker.backbone,
        received,
        shard,
        config=settings.training,
        task=task,
        generator=generator(settings.seed, "batches", int(config[messages.SERVER_ROUND]), client),  # type: ignore[arg-type]
        precision=worker.precision,
    )
    delta = {k: v for k, v in subtract(trained, received).items() if k not in task.frozen}
    content = RecordDict(
        {
            messages.ARRAYS: messages.to_packed(delta),
            messages.METRICS: MetricRecord({messages.SAMPLES: len(shard), messages.LOSS: loss}),
        }
    )
    return Message(content, reply_to=message)


def _task(config: ConfigRecord, layout: Layout) -> LocalTask:
    """Reads what this round asks."""
    endings: tuple[str, ...] = tuple(config.get(messages.FROZEN, ()))  # type: ignore[arg-type]
    return LocalTask(
        learning_rate=float(config[messages.LEARNING_RATE]),  # type: ignore[arg-type]
        proximal_mu=float(config.get(messages.PROXIMAL_MU, 0.0)),  # type: ignore[arg-type]
        frozen=layout.ending_with(endings),
    )


def client_of(context: Context) -> int:
    """Tells which shard a node holds."""
    return int(context.node_config["partition-id"])


@dataclass(frozen=True, kw_only=True)
class Workspace:
    """What a worker process keeps between messages.

    Attributes:
        backbone: Model with its adapters, on the device.
        layout: Of the exchanged tensors.
        precision: Of activations.
        shard: Gives a client's shard, opened once.
    """

    backbone: backbone.Backbone
    layout: Layout
    precision: torch.dtype
    shard: Callable[[int], Shard]


@functools.lru_cache(maxsize=1)
def workspace(settings: ClientSettings) -> Workspace:
    """Builds the model once for each process and run; the run before is forgotten."""
    device = torch.device(settings.device)
    built = backbone.build(settings.model, settings.classes, settings.seed)
    methods.prepare(built.model, settings.finetuning, settings.seed)
    if settings.adapted:
        put_reader(built.model, open_reader(Path(settings.shards) / READER_FILE))
    layout = Layout.of(methods.trainable(built.model))
    built.model.to(device)
    precision = best_precision(device, settings.mixed_precision)
    shards = Path(settings.shards)
    return Workspace(
        backbone=built,
        layout=layout,
        precision=precision,
        shard=functools.cache(lambda client: open_shard(shards / client_shard(client))),
    )

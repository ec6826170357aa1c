"""The ClientApp: reads the global tensors, trains on the client's images, and sends the change.

A worker process serves many clients in turn. If a worker gets several messages at once, it trains
the clients of these messages in one batch. The frozen backbone and the decrypted shards stay in the
process between messages, and a message contains only the exchanged tensors. The private memory of a
client between rounds is in the Flower context of the client.
"""

from __future__ import annotations

import functools
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable, Mod

from fl_vitlora.adaptation.coordinates import Coordinates
from fl_vitlora.communication.packing import Layout
from fl_vitlora.data.shards import (
    Shard,
    client_shard,
)
from fl_vitlora.data.views import VALIDATION, sampled, seen_in
from fl_vitlora.encryption.holder import client_party
from fl_vitlora.encryption.identities import SETTING
from fl_vitlora.finetuning import targets
from fl_vitlora.flower.client import context_state
from fl_vitlora.flower.client.guard import check_instruction
from fl_vitlora.flower.client.mod import make_mod
from fl_vitlora.flower.client.sum_checks import check_most, check_sum
from fl_vitlora.flower.client.workspace import (
    ClientSettings,
    SettingsOf,
    Workspace,
    client_of,
    workspace,
)
from fl_vitlora.flower.wire import masking, messages, vouching
from fl_vitlora.flower.wire.round_message import (
    RoundMessage,
    check_asks_to_train,
    read,
    read_scalars,
)
from fl_vitlora.flower.wire.updates import refuse_absurd, write_update
from fl_vitlora.models.reading import (
    WEIGHT,
    put_reader,
    with_exchanged_reader,
)
from fl_vitlora.population import byzantine, faults
from fl_vitlora.privacy.agreement import told
from fl_vitlora.privacy.noise import bounded
from fl_vitlora.rng import generator
from fl_vitlora.state import State, clip_norm, subtract
from fl_vitlora.strategy import LocalWork, Strategy
from fl_vitlora.training.cohort import LocalJob
from fl_vitlora.training.local import LocalTask, Trained, evaluate
from fl_vitlora.training.objective import terms_of
from fl_vitlora.training.rendezvous import meet


def make_client_app(settings_of: SettingsOf, mods: Sequence[Mod] = ()) -> ClientApp:
    """Makes the app that every client runs.

    Args:
        settings_of: A function that returns the settings of a client. A deployed node reads its
            settings from its Flower context.
        mods: Further Flower mods (client plug-ins), which see messages after decoding and replies
            before encoding.

    Returns:
        Flower's ClientApp, which answers the messages to one client.
    """
    app = ClientApp(mods=[make_mod(settings_of), *mods])
    app.query()(functools.partial(_greet, settings_of))
    app.query("vouch")(functools.partial(_vouch, settings_of))
    app.query("reveal")(functools.partial(_reveal, settings_of))
    app.train(mods=[_make_faults(settings_of)])(functools.partial(_train, settings_of))
    app.evaluate()(functools.partial(_evaluate, settings_of))
    return app


def _make_faults(settings_of: SettingsOf) -> Mod:
    """Makes the mod (plug-in) that makes an unreliable client fail before the client trains."""

    def mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        asked = read_scalars(message.content.config_records[messages.CONFIG])
        faults.strike(settings_of(context).config, client_of(context), asked.round)
        return call_next(message, context)

    return mod


def _greet(settings_of: SettingsOf, message: Message, context: Context) -> Message:
    """Answers the server's first question with the client number and class names of this node."""
    settings = settings_of(context)
    client = client_of(context)
    samples = len(workspace(settings).shard(client_shard(client)))
    metrics = MetricRecord({messages.CLIENT: client, messages.SAMPLES: samples})
    names = ConfigRecord({messages.CLASSES: list(settings.class_names)})
    content = RecordDict({messages.METRICS: metrics, messages.CONFIG: names})
    if settings.config.privacy.secure_aggregation:
        content[masking.RECORD] = masking.introduce(context, client)
    return Message(content, reply_to=message)


def _vouch(settings_of: SettingsOf, message: Message, context: Context) -> Message:
    """Signs the roster of a secure sum."""
    settings = settings_of(context)
    if settings.identities is None:
        raise ValueError(f"this client signs no roster, because it has no {SETTING}")
    least = settings.config.min_clients
    return Message(
        vouching.sign(context, message.content, settings.identities, least), reply_to=message
    )


def _reveal(settings_of: SettingsOf, message: Message, context: Context) -> Message:
    """Answers with the seeds that the client shares with clients that dropped out of a sum."""
    if not settings_of(context).config.privacy.reveal_seeds:
        raise ValueError("this client reveals no seeds (privacy.reveal_seeds=false)")
    return masking.answer(message, context)


def _train(settings_of: SettingsOf, message: Message, context: Context) -> Message:
    """Trains one client for one round and returns its update."""
    check_asks_to_train(message.content.config_records[messages.CONFIG])
    settings, client = settings_of(context), client_of(context)
    worker, strategy = workspace(settings), settings.strategy
    begin = _begin(message.content, context, worker, strategy, client)
    asked, coordinates = begin.message, begin.coordinates
    check_sum(settings, message.content, context, asked)
    shard = worker.training_shard(client, coordinates.base)
    frozen = frozenset(name for name in begin.model if name.endswith(asked.frozen))
    memory = context_state.own(context, asked.taken, frozen)
    seed, fresh = settings.config.seed, settings.fresh_order
    order = _fresh_order() if fresh else generator(seed, "batches", asked.round, client)
    job = LocalJob(
        start=begin.start,
        shard=_drawn(settings, shard, order),
        task=LocalTask(
            learning_rate=asked.rate,
            epochs=asked.epochs,
            terms=terms_of(strategy, worker.method, asked.proximal_mu),
            frozen=frozen,
            drift=coordinates.difference_to_client(strategy.drift(asked.broadcast, memory)),
        ),
        generator=order,
        reader=coordinates.base,
        increments=begin.merged,
    )
    done = meet(worker.trainer.train, job)
    moved = subtract(*(_select(state, worker.layout) for state in (done.state, begin.start)))
    delta = {name: t for name, t in coordinates.to_server(moved).items() if name not in frozen}
    work = LocalWork(delta=delta, steps=done.steps, rate=asked.rate)
    report, memory = strategy.report(work, asked.broadcast, memory)
    refuse_absurd(done.state, delta, report, memory)
    content = _write(
        context,
        settings,
        message.content,
        asked.clipping_norm,
        work=work,
        report={name: report[name] for name in delta} if report else {},
        done=done,
        images=len(shard),
        told=_told(settings, begin, client),
    )
    context_state.keep(context, asked.round, worker.kept, done.state)
    context_state.keep_own(context, asked.round, memory, frozen)
    if frozen:
        rested = {name: tensor for name, tensor in begin.model.items() if name in frozen}
        context_state.rest(context, asked.round, rested)
    return Message(content, reply_to=message)


def _fresh_order() -> torch.Generator:
    """Returns a generator that draws the order of a client's images from the system's randomness.

    If the server got two secure sums of the same updates, the second without one member, the
    difference of the two sums would be this member's update. Therefore, in a deployment, a client
    that trains twice in a round uses two different orders.
    """
    return torch.Generator().manual_seed(secrets.randbits(63))


def _drawn(settings: ClientSettings, shard: Shard, order: torch.Generator) -> Shard:
    """Returns the images that a client trains on, which is usually its whole shard.

    If one batch holds the whole shard, the order of the images does not change the update. But with
    `settings.fresh_order`, no two trainings may give the same update. Therefore a client with a
    single batch then trains on a bootstrap sample: as many images as the shard has, drawn with
    replacement.
    """
    images = len(shard)
    if not settings.fresh_order or images > settings.config.training.batch_size:
        return shard
    chosen = torch.randint(images, (images,), generator=order)
    return shard.take(chosen)


def _write(
    context: Context,
    settings: ClientSettings,
    instruction: RecordDict,
    norm: float | None,
    *,
    work: LocalWork,
    report: State,
    done: Trained,
    images: int,
    told: bytes,
) -> RecordDict:
    """Writes the reply of a client: clips, falsifies or masks the update if the settings say so."""
    client, privacy = client_of(context), settings.config.privacy
    delta, clipped = work.delta, None
    if privacy.clipping_norm is not None:
        delta, report, _ = bounded(delta, report, privacy.clipping_norm)
    if norm is not None:
        delta, within = clip_norm(delta, norm)
        clipped = not within
    delta = byzantine.as_sent(settings.config, client, delta)
    if privacy.secure_aggregation:
        return masking.write_masked(
            context,
            instruction,
            delta=delta,
            report=report,
            loss=done.loss,
            steps=done.steps,
            limit=privacy.range,
            told=told,
        )
    return write_update(
        delta=delta,
        report=report,
        samples=images,
        loss=done.loss,
        steps=done.steps,
        rank=workspace(settings).rank_of(client),
        clipped=clipped,
    )


def _told(settings: ClientSettings, begin: _Beginning, client: int) -> bytes:
    """Returns the digest of an instruction, which the masks of a secure sum depend on.

    Without secure sums the digest has no use, so the function returns an empty result instead.
    """
    if not settings.config.privacy.secure_aggregation:
        return b""
    asked = begin.message
    others = {"merged": begin.merged, "broadcast": asked.broadcast}
    tensors = {f"{what}/{n}": t for what, state in others.items() for n, t in state.items()}
    initial = workspace(settings).initial_of(client)
    return told(begin.model | tensors, initial, asked.assignment)


def _evaluate(settings_of: SettingsOf, message: Message, context: Context) -> Message:
    """Evaluates the received model on the client's own encrypted images."""
    settings, client = settings_of(context), client_of(context)
    worker = workspace(settings)
    shard, validation = worker.shard(client_shard(client, "test")), None
    begin = _begin(message.content, context, worker, settings.strategy, client)
    check_most(settings.config, begin.message.most)
    put_reader(worker.backbone.model, begin.coordinates.base)
    targets.put_increments(worker.backbone.model, begin.merged)
    state, asked = begin.start, begin.message.views or ()
    metrics = MetricRecord({messages.SAMPLES: len(shard)})
    if VALIDATION in asked:
        validation = worker.shard(client_shard(client, "validation"))
        metrics[messages.VALIDATION_SAMPLES] = len(validation)
    seen = seen_in(asked, shard, validation, worker.holder, client_party(client))
    for view in asked:
        images = sampled(seen[view], begin.message.most, view)
        accuracy, loss = evaluate(
            worker.backbone, state, images, worker.precision, worker.predictor
        )
        metrics[messages.ACCURACY_OF + view] = accuracy
        metrics[messages.LOSS_OF + view] = loss
    return Message(RecordDict({messages.METRICS: metrics}), reply_to=message)


@dataclass(frozen=True, kw_only=True)
class _Beginning:
    """The model with which a client begins a round.

    Attributes:
        message: The message that the server sent to the client.
        coordinates: The maps between the client's tensors and the server's tensors.
        model: The exchanged tensors, as the server stores them.
        start: All trained tensors before the training, converted to fit the client's key.
        merged: The sum of the increments that are added to each frozen weight, by path.
    """

    message: RoundMessage
    coordinates: Coordinates
    model: State
    start: State
    merged: State


def _begin(
    content: RecordDict, context: Context, worker: Workspace, strategy: Strategy, client: int
) -> _Beginning:
    """Builds a client's model from received tensors and from tensors that the client remembers."""
    initial, coordinates = worker.initial_of(client), worker.coordinates_of(client)
    asked = read(content, worker.layout, worker.rank_of(client))
    model = context_state.complete(context, asked, worker.layout, initial)
    check_instruction(asked, model, worker, strategy, client)
    merged = context_state.merge(context, asked, worker.layout)
    first = with_exchanged_reader(initial, coordinates.base) if WEIGHT in initial else initial
    kept = context_state.kept(context, worker.kept, first, asked.taken)
    return _Beginning(
        message=asked,
        coordinates=coordinates,
        model=model,
        start=coordinates.to_client(model) | kept,
        merged=merged,
    )


def _select(state: State, layout: Layout) -> State:
    return {name: state[name] for name, _ in layout.shapes}

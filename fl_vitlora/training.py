"""Local training and evaluation: functions of a state, a shard and hyper-parameters.

A model is handed in as a workspace: its trained tensors are overwritten first and read out at the
end, its frozen ones are never touched, so one model serves every client of a worker in turn.

B batch, n images of a shard.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl_vitlora.config import TrainingConfig
from fl_vitlora.data.shards import Shard
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.inference import quick_layers
from fl_vitlora.models.backbone import Backbone, normalize
from fl_vitlora.state import State

EVALUATION_BATCH = {"cpu": 64, "cuda": 256}  # on a core, what its cache can hold


@dataclass(frozen=True, kw_only=True)
class LocalTask:
    """What is asked of a client in one round, beside the hyper-parameters of all rounds.

    Attributes:
        learning_rate: Of this round.
        proximal_mu: Weight μ of the penalty μ/2 · ‖w - w_global‖² (FedProx, arXiv 1812.06127).
        frozen: Trained tensors that rest in this round.
        drift: What is added to tensors after every step, times the learning rate.
    """

    learning_rate: float
    proximal_mu: float = 0.0
    frozen: frozenset[str] = frozenset()
    drift: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a client's training came to.

    Attributes:
        state: All trained tensors.
        loss: The mean over all steps, penalties left out.
        steps: Of the optimiser.
    """

    state: State
    loss: float
    steps: int


def scheduled_rate(config: TrainingConfig, server_round: int, rounds: int) -> float:
    """Computes the learning rate of a round.

    It rises linearly over the warm-up rounds; then it stays, or falls as half a cosine that would
    reach zero one round after the last.

    Args:
        config: Peak, schedule and warm-up.
        server_round: From 1.
        rounds: Of the whole run.

    Returns:
        The rate.

    Example:
        >>> c = TrainingConfig(learning_rate=1.0, schedule="cosine")
        >>> [round(scheduled_rate(c, r, 4), 3) for r in (1, 2, 3, 4)]
        [1.0, 0.854, 0.5, 0.146]
    """
    if server_round <= config.warmup_rounds:
        return config.learning_rate * server_round / (config.warmup_rounds + 1)
    if config.schedule == "constant":
        return config.learning_rate
    done = (server_round - 1 - config.warmup_rounds) / max(1, rounds - config.warmup_rounds)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def train(
    backbone: Backbone,
    state: State,
    shard: Shard,
    *,
    config: TrainingConfig,
    task: LocalTask,
    generator: torch.Generator,
    precision: torch.dtype = torch.float32,
) -> Trained:
    """Trains on one shard.

    Args:
        backbone: A prepared model, the workspace.
        state: Where training starts.
        shard: Images as they lie on disk; they are normalised here, batch by batch.
        config: Hyper-parameters.
        task: What this round asks.
        generator: Of the order of images, on the CPU.
        precision: Of activations; float32, bfloat16 or float16.

    Returns:
        What came of it.

    Raises:
        ValueError: When the task freezes every tensor.
    """
    model = backbone.model
    parameters = methods.trainable(model)
    methods.copy_in(parameters, state)
    active = {name: p for name, p in parameters.items() if name not in task.frozen}
    if not active:
        raise ValueError("the strategy's plan freezes every tensor; nothing is left to train")
    device = next(iter(active.values())).device
    anchor = {name: state[name].to(device) for name in active} if task.proximal_mu else {}
    optimizer = _optimizer(active, config, task.learning_rate)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == torch.float16)
    images, labels = shard.images.to(device), shard.labels.to(device)
    drift = {name: task.drift[name].to(device) for name in active if name in task.drift}
    total, seen, steps = torch.zeros((), device=device), 0, 0
    if not model.training:  # else it need not be told to all modules again
        model.train()
    with _resting(parameters[name] for name in task.frozen):
        for batch in _batches(len(shard), config, generator):
            chosen = batch.to(device)
            with _autocast(device, precision):
                logits = model(normalize(images[chosen])).float()
            loss = F.cross_entropy(logits, labels[chosen], label_smoothing=config.label_smoothing)
            penalized = loss + _penalty(active, anchor, task.proximal_mu)
            _step(optimizer, scaler, penalized, config.clip_norm)
            _drift(active, drift, task.learning_rate)
            total += loss.detach() * len(batch)
            seen += len(batch)
            steps += 1
    mean_loss = float(total) / max(1, seen)
    return Trained(state=methods.copied_out(parameters), loss=mean_loss, steps=steps)


@torch.no_grad()
def _drift(
    parameters: Mapping[str, nn.Parameter], drift: Mapping[str, Tensor], rate: float
) -> None:
    """Moves parameters by what a strategy adds to every step, in place."""
    for name, change in drift.items():
        parameters[name].add_(change, alpha=rate)


@contextlib.contextmanager
def _resting(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Spares the gradients of some parameters for a while."""
    resting = list(parameters)
    try:
        for parameter in resting:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in resting:
            parameter.requires_grad_()


def _step(
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    loss: Tensor,
    clip_norm: float | None,
) -> None:
    """Takes one step down the gradient of a loss."""
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(scaler.scale(loss))
    if clip_norm is not None:
        scaler.unscale_(optimizer)
        trained = (p for group in optimizer.param_groups for p in group["params"])
        nn.utils.clip_grad_norm_(trained, clip_norm)
    scaler.step(optimizer)
    scaler.update()


@torch.inference_mode()
def evaluate(
    backbone: Backbone, state: State, shard: Shard, precision: torch.dtype = torch.float32
) -> tuple[float, float]:
    """Measures a state on a shard.

    Returns:
        Accuracy in [0, 1] and mean cross-entropy.
    """
    model = backbone.model
    methods.load_state(model, state)
    model.eval()
    device = next(model.parameters()).device
    correct, loss = 0, 0.0
    size = EVALUATION_BATCH[device.type]
    batches = (torch.split(part, size) for part in (shard.images, shard.labels))
    whole = precision == torch.float32  # in half of it, B·A would be lost beside W
    with quick_layers(model) if whole else contextlib.nullcontext():
        for images, labels in zip(*batches, strict=True):
            with _autocast(device, precision):
                logits = model(normalize(images.to(device))).float()
            loss += float(F.cross_entropy(logits, labels.to(device), reduction="sum"))
            correct += int((logits.argmax(dim=-1).cpu() == labels).sum())
    return correct / len(shard), loss / len(shard)


def best_precision(device: torch.device, mixed: bool) -> torch.dtype:
    """Chooses the type of activations: half precision on a GPU where asked, else float32."""
    if device.type != "cuda" or not mixed:
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _batches(images: int, config: TrainingConfig, generator: torch.Generator) -> Iterator[Tensor]:
    """Yields the positions of each step; every epoch in a new order, all images used."""
    for _ in range(config.epochs):
        order = torch.randperm(images, generator=generator)
        steps = math.ceil(images / config.batch_size)
        yield from order.tensor_split(steps)


def _optimizer(
    parameters: Mapping[str, nn.Parameter], config: TrainingConfig, learning_rate: float
) -> torch.optim.Optimizer:
    groups = _rate_groups(parameters, config, learning_rate)
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
        )
    return torch.optim.AdamW(
        groups,
        lr=learning_rate,
        betas=(config.beta1, 0.999),
        weight_decay=config.weight_decay,
        fused=True,
    )


def _rate_groups(
    parameters: Mapping[str, nn.Parameter], config: TrainingConfig, learning_rate: float
) -> Sequence[dict[str, object]]:
    """Gives patch embedding, head and body rates of their own; LoRA has the plain one."""
    factors = {
        methods.PATCH_EMBEDDING: config.patch_embed_rate,
        methods.HEAD: config.head_rate,
        methods.BODY: config.body_rate,
    }
    members: dict[float, list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        members.setdefault(factors.get(methods.group_of(name), 1.0), []).append(parameter)
    return [{"params": chosen, "lr": learning_rate * f} for f, chosen in members.items()]


def _penalty(
    parameters: Mapping[str, nn.Parameter], anchor: Mapping[str, Tensor], mu: float
) -> Tensor | float:
    """Computes μ/2 · ‖w - w_global‖²; nothing where μ is 0."""
    if not mu:
        return 0.0
    squares: Iterable[Tensor] = (
        (parameter - anchor[name]).square().sum() for name, parameter in parameters.items()
    )
    return mu / 2 * torch.stack(list(squares)).sum()


def _autocast(
    device: torch.device, precision: torch.dtype
) -> contextlib.AbstractContextManager[object]:
    if precision == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=precision)

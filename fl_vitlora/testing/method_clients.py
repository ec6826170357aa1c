"""Rules of fine-tuning methods that concern many clients: messages, shared batches and averages."""

from __future__ import annotations

import torch

from fl_vitlora.finetuning import methods
from fl_vitlora.models.reading import reader_of
from fl_vitlora.testing.method_subject import (
    CLIENTS,
    CLOSE,
    CLOSE_DOUBLE,
    MethodError,
    Subject,
    distance,
    images,
    outputs,
    trained,
)
from fl_vitlora.testing.travel import sent_and_received
from fl_vitlora.training.stacking import Stack, can_stack


def travels(subject: Subject) -> None:
    """Checks that the tensors arrive as they were sent, with four bytes for each number."""
    state = methods.export_state(subject.moved().model)
    shared = {n: t for n, t in state.items() if not n.endswith(subject.method.personal)}
    for ending in subject.method.personal:
        if not any(name.endswith(ending) for name in state):
            raise MethodError(f"personal contains {ending!r}, but no trained tensor ends with it")
    received, size = sent_and_received(shared)
    if list(received) != list(shared) or size != sum(4 * t.numel() for t in shared.values()):
        raise MethodError(
            f"{len(shared)} tensors were sent, but {len(received)} arrived, in {size} bytes; "
            "expected four bytes per number"
        )
    for name, tensor in shared.items():
        if not torch.equal(received[name], tensor):
            raise MethodError(f"{name} differs after it was sent and received")


def stacks(subject: Subject) -> None:
    """Checks that clients in one batch compute the same as alone, if the method is stackable."""
    if not subject.method.stackable:
        return
    built = subject.moved()
    if not can_stack(built.model):
        raise MethodError(
            "the method declares stackable, but it trains a tensor that no `multiply` applies"
        )
    first = methods.export_state(built.model)
    moving = trained(built.model, subject.method)
    states = [first, {name: 0.9 * t if name in moving else t for name, t in first.items()}]
    batch, alone, begin = images(sum(CLIENTS)), [], 0
    stack = Stack(built.model)
    for state, count in zip(states, CLIENTS, strict=True):
        methods.load_state(built.model, state)
        alone.append(outputs(built.model, batch[begin : begin + count]))
        begin += count
    stack.load(states, [reader_of(built)] * len(states))
    stack.set_batch_sizes(CLIENTS)
    far = distance(outputs(stack.model, batch), torch.cat(alone))
    if not far <= CLOSE:
        raise MethodError(
            f"two clients get other outputs in one batch than alone; the largest difference is "
            f"{far:.2g}"
        )


def averages(subject: Subject) -> None:
    """Checks that averaging tensors averages the weights exactly, if the method says so."""
    if not subject.method.averages_exactly:
        return
    gap = gap_of(subject)
    if not gap <= CLOSE_DOUBLE:
        raise MethodError(f"it declares averages_exactly, but the aggregation gap is {gap:.2g}")


def gap_of(
    subject: Subject, seeds: tuple[int, int] = (0, 1), unmoved: tuple[str, ...] = ()
) -> float:
    """Returns the distance between the weights of averaged tensors and the average of the weights.

    Three models are merged: two models with different trained tensors, and a third model with the
    mean of these tensors. Tensors that are frozen in the first round of training keep their initial
    values. The distance is divided by the distance between the average of the weights and the
    pre-trained weights.

    Args:
        subject: The method and the model.
        seeds: The seeds of the two models' trained tensors. If the two seeds are equal, the two
            models have equal tensors.
        unmoved: Endings of the names of further tensors that keep their initial values.
    """
    start = methods.export_state(subject.prepared().model.double())
    frozen = subject.method.resting_at_first(start) if subject.method.has_rests else ()
    resting = {name: tensor for name, tensor in start.items() if name.endswith((*frozen, *unmoved))}
    states = [methods.export_state(subject.moved(seed).model.double()) | resting for seed in seeds]
    mean = {name: (tensor + states[1][name]) / 2 for name, tensor in states[0].items()}
    weights = []
    for state in (*states, mean, start):
        model = subject.prepared().model.double()
        methods.load_state(model, state)
        methods.merge(model)
        weights.append(torch.cat([t.flatten() for t in model.state_dict().values()]))
    one, other, averaged, before = weights
    exact = (one + other) / 2
    return float((exact - averaged).norm() / (exact - before).norm())

"""The rules for `watch` and `measured`, with which a fine-tuning method observes training steps."""

from __future__ import annotations

import torch
from torch import nn

from fl_vitlora.finetuning import methods
from fl_vitlora.state import State
from fl_vitlora.testing.method_subject import CLASSES, MethodError, Subject, images, outputs
from fl_vitlora.testing.returned import expect_penalty

BATCHES = (3, 2)  # the numbers of images in the two batches of a made-up round
ROUNDS = 3  # the number of rounds whose frozen tensors are checked


def watches(subject: Subject) -> None:
    """Checks `watch` in a made-up round of two batches."""
    _expect_apart(subject)
    model = subject.moved().model
    before, start, hooks = outputs(model), methods.export_state(model), _hooks(model)
    for ending in subject.method.measured:
        if not any(name.endswith(ending) for name in start):
            raise MethodError(f"measured contains {ending!r}, but no exchanged tensor ends with it")
    end = _watched(model, subject)
    for name in start:
        is_measured = name.endswith(subject.method.measured)
        if not is_measured and not torch.equal(start[name], end[name]):
            raise MethodError(f"`watch` changes {name}, but `measured` does not name this tensor")
        if is_measured and (torch.equal(start[name], end[name]) or not end[name].isfinite().all()):
            raise MethodError(f"{name} is not set to a measured value")
    methods.load_state(model, start)
    if not torch.equal(outputs(model), before):
        raise MethodError("the outputs of the model are changed after `watch`; is a hook left?")
    if left := [path for path, count in _hooks(model).items() if count != hooks[path]]:
        raise MethodError(f"a hook is left on {left[0] or 'the model'} after `watch`")


def _expect_apart(subject: Subject) -> None:
    """Checks that clients of a stackable method never measure and train in the same round."""
    method, names = subject.method, list(methods.export_state(subject.moved().model))
    with methods.watch(subject.moved().model) as terms:
        if not (terms and method.stackable):
            return
    for server_round in range(1, ROUNDS + 1):
        resting = method.resting(server_round, {}, names)
        active = [name for name in names if not name.endswith(resting)] if resting else names
        measured_now = [name for name in active if name.endswith(method.measured)]
        if not method.measured or 0 < len(measured_now) < len(active):
            raise MethodError(
                "it watches the model in rounds in which clients train, so it must not be stackable"
            )


def measured(subject: Subject) -> State:
    """Returns the tensors that a method measures in a made-up round of two batches."""
    end = _watched(subject.moved().model, subject)
    return {name: tensor for name, tensor in end.items() if name.endswith(subject.method.measured)}


def _watched(model: nn.Module, subject: Subject) -> State:
    """Returns the exchanged tensors after a made-up round in which the method watches the model."""
    model.train()
    with methods.watch(model) as terms:
        for count in BATCHES:
            model(images(count))
            for term in terms:
                expect_penalty(term(torch.arange(count) % CLASSES), "the term of a batch")
    return methods.export_state(model)


def _hooks(model: nn.Module) -> dict[str, int]:
    """Returns the number of forward hooks of each module, by its path."""
    return {
        path: len(module._forward_hooks) + len(module._forward_pre_hooks)
        for path, module in model.named_modules()
    }

"""The rules that every fine-tuning method must obey, checked on a small real ViT.

    from fl_vitlora.testing.method import check_method

    def test_my_method():
        check_method(MyPart(gain=2.0))

The command line runs the same check: ``python simulate.py --check-method my_package.mine:MyPart``.
The model is the bundled architecture with random weights, so nothing is downloaded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods, shelf
from fl_vitlora.finetuning.features import frozen_backbone
from fl_vitlora.finetuning.method import Method
from fl_vitlora.finetuning.part import Part
from fl_vitlora.models.reading import reader_of
from fl_vitlora.testing import Finding, method_server, method_watch
from fl_vitlora.testing.entrywise import expect_entrywise
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
from fl_vitlora.testing.returned import ContractError
from fl_vitlora.testing.travel import sent_and_received
from fl_vitlora.training.stacking import Stack, can_stack

__all__ = ["RULES", "MethodError", "Rule", "Subject", "check_method", "findings"]


def _attaches(subject: Subject) -> None:
    built = subject.prepared()
    methods.check_gradients(built.model, built.image_shape)


def _draws_the_same(subject: Subject) -> None:
    one, other = (methods.export_state(subject.prepared().model) for _ in range(2))
    for name, tensor in one.items():
        if not torch.equal(tensor, other[name]):
            raise MethodError(
                f"{name} differs when the model is built twice with the same seed; draw random "
                "numbers only from the given generator"
            )


def _starts_at_identity(subject: Subject) -> None:
    far = distance(outputs(subject.plain().model), outputs(subject.prepared().model))
    if any(part.changes_start for _, part in subject.method.parts):
        if far <= CLOSE:
            raise MethodError("it declares changes_start, but the outputs do not change")
    elif not far <= CLOSE:
        raise MethodError(
            f"before any training the method changes the model's outputs by {far:.2g}, expected 0"
        )


def _reaches_all(subject: Subject) -> None:
    model = subject.moved().model
    model(images()).square().sum().backward()
    for name, parameter in trained(model, subject.method).items():
        if parameter.grad is None or not parameter.grad.any():
            raise MethodError(f"{name} is trained but gets no gradient; does the model use it?")


def _keeps_the_rest(subject: Subject) -> None:
    model = subject.moved().model
    moving = trained(model, subject.method)
    own = {id(parameter) for parameter in moving.values()}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    before = {name: t.detach().clone() for name, t in tensors if id(t) not in own}
    optimizer = torch.optim.SGD(moving.values(), lr=0.1)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        model(images()).square().sum().backward()
        optimizer.step()
    after = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in before.items():
        if not torch.equal(tensor, after[name]):
            raise MethodError(f"{name} is frozen, but two training steps change it")


def _reloads(subject: Subject) -> None:
    one, other = subject.moved().model, subject.prepared().model
    state = methods.export_state(one)
    methods.load_state(other, state)
    for name, tensor in methods.export_state(other).items():
        if not torch.equal(tensor, state[name]):
            raise MethodError(f"{name} has other values after it was exported and loaded")
    far = distance(outputs(one), outputs(other))
    if not far <= CLOSE:
        raise MethodError(
            f"a second model with the exported tensors differs in its outputs by {far:.2g}; some "
            "tensor that matters is not exported"
        )


def _merges(subject: Subject) -> None:
    model = subject.moved().model.double()
    expected = outputs(model, images().double())
    if any(part.cannot_merge for _, part in subject.method.parts):
        return _refuses_to_merge(model)
    methods.merge(model)
    plain = subject.plain().model.double()
    names = set(model.state_dict()) ^ set(plain.state_dict())
    if names:
        raise MethodError(
            f"the merged model is not a plain timm model: only one of them has {sorted(names)[0]}"
        )
    plain.load_state_dict(model.state_dict())
    far = distance(outputs(plain, images().double()), expected)
    if not far <= CLOSE_DOUBLE:
        raise MethodError(f"merging changes the outputs by {far:.2g}; is `merge` complete?")
    return None


def _refuses_to_merge(model: nn.Module) -> None:
    try:
        methods.merge(model)
    except UserError:
        return
    raise MethodError("the method declares cannot_merge, but methods.merge raises no UserError")


def _leaves_the_reference(subject: Subject) -> None:
    built, fresh = subject.prepared(), subject.plain().built
    for name, tensor in fresh.items():
        if not torch.equal(built.built[name], tensor):
            raise MethodError(f"attaching changes the pre-trained tensor {name}")
    counted = sum(t.numel() for t in methods.plain_parameters(built.model).values())
    expected = sum(t.numel() for t in fresh.values())
    if counted != expected:
        raise MethodError(
            f"without the tensors that the method adds, the model has {counted} parameters, "
            f"expected {expected} as in the plain model"
        )


def _travels(subject: Subject) -> None:
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


def _stacks(subject: Subject) -> None:
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
            f"two clients in one batch get other outputs than each alone; the largest difference "
            f"is {far:.2g}"
        )


def _averages(subject: Subject) -> None:
    if not subject.method.averages_exactly:
        return
    gap = gap_of(subject)
    if not gap <= CLOSE_DOUBLE:
        raise MethodError(f"it says that averaging is exact, but the gap is {gap:.2g}")


def gap_of(
    subject: Subject, seeds: tuple[int, int] = (0, 1), unmoved: tuple[str, ...] = ()
) -> float:
    """Returns the distance of the averaged tensors' weights from the average of the weights.

    Three models are merged: two models with different trained tensors, and a third model with the
    mean of these tensors. Tensors that are frozen in the first round of training keep their initial
    values. The distance is a share of how far the weights are from the pre-trained ones.

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


def _penalises(subject: Subject) -> None:
    start = {n: p.detach().double() for n, p in methods.trainable(subject.moved().model).items()}
    anchors = [start, {name: 2 * tensor for name, tensor in start.items()}]
    here = [{name: 1.1 * tensor for name, tensor in anchor.items()} for anchor in anchors]
    for part in subject.method.penalising:
        expect_entrywise(part.penalty, here, anchors)


def _has_features(subject: Subject) -> None:
    one, other = subject.prepared().model, subject.moved().model
    batch = images()
    first, moved = (frozen_backbone(model, subject.method) for model in (one, other))
    if first is None or moved is None:
        return
    features = moved.features(batch)
    if features.requires_grad or not torch.equal(first.features(batch), features):
        raise MethodError("its features depend on tensors that are trained")
    if len(features) != len(batch):
        raise MethodError(f"features returns {tuple(features.shape)} for {len(batch)} images")
    far = distance(outputs(other, batch), moved.logits(features).detach())
    if far:
        raise MethodError(f"the logits of features differ from those of the model by {far:.2g}")


class Rule(NamedTuple):
    """A rule that a fine-tuning method must obey.

    Attributes:
        told: The rule in words, as the end of a sentence that begins with "The method".
        check: A function that raises an error if the rule is broken.
    """

    told: str
    check: Callable[[Subject], None]


RULES = (
    Rule("finds all tensors that it trains in a ViT, and the model uses them", _attaches),
    Rule("starts with the same tensors whenever the seed is the same", _draws_the_same),
    Rule("changes no pre-trained tensor when it is attached to a model", _leaves_the_reference),
    Rule(
        "does not change the model's outputs before it is trained, or says why",
        _starts_at_identity,
    ),
    Rule("gives every trained tensor a gradient", _reaches_all),
    Rule("changes no bit of a frozen tensor in training", _keeps_the_rest),
    Rule("loads its exported tensors into a second model with equal outputs", _reloads),
    Rule("merges into a plain model with equal outputs, or refuses to merge", _merges),
    Rule("sends the tensors that it names, with four bytes per number", _travels),
    Rule("computes the same for clients in one batch as alone (if stackable)", _stacks),
    Rule("averages exactly (if it says so)", _averages),
    Rule("has a penalty that is a sum over the entries of tensors (if any)", _penalises),
    Rule(
        "freezes (`rests`) and changes (`decide`) only tensors that exist, equally in every call",
        method_server.rests,
    ),
    Rule(
        "corrects averaged tensors (`retract`) so that a second call changes nothing",
        method_server.retracts,
    ),
    Rule(
        "measures what it names and leaves no trace (if it watches batches)", method_watch.watches
    ),
    Rule("computes the same from kept features (if it declares frozen_backbone)", _has_features),
)


def check_method(method: Part | Method | str) -> None:
    """Checks a fine-tuning method against all rules.

    A method is a sum of parts. Each part trains some tensors of the model.

    Args:
        method: A part, a whole method, or the name of a method, such as ``bias+norm``.

    Raises:
        MethodError: If a rule is broken; the message names the first broken rule.

    Example:
        >>> check_method("bias+norm")
    """
    for finding in findings(method):
        if finding.problem is not None:
            raise MethodError(f"{finding.rule}: {finding.problem}")


def findings(method: Part | Method | str) -> list[Finding]:
    """Checks a fine-tuning method by one rule after the other; returns a finding for each rule.

    If the first rule is broken, the others are not tested, because they would fail, too.

    Args:
        method: A part, a whole method, or the name of a method, such as ``bias+norm``.
    """
    subject, found = Subject(method=_whole(method)), list[Finding]()
    for rule in RULES:
        problem = None
        try:
            rule.check(copy.deepcopy(subject))
        except (MethodError, ContractError, UserError) as error:
            problem = str(error)
        except Exception as error:  # raised by the method's own code
            problem = " ".join(f"{type(error).__name__}: {error}".split())
        found.append(Finding(rule.told, problem))
        if problem is not None and rule is RULES[0]:
            break
    return found


def _whole(method: Part | Method | str) -> Method:
    if isinstance(method, str):
        return shelf.method_of(FineTuningConfig(method=method))
    if isinstance(method, Part):
        return Method(name=type(method).__name__, parts=((type(method).__name__, method),))
    return method

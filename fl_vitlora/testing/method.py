"""The rules that every fine-tuning method must keep, checked on a small real ViT.

    from fl_vitlora.testing.method import check_method

    def test_my_method():
        check_method(MyPart(gain=2.0))

The command line runs the same check: ``python simulate.py --check-method my_package.mine:MyPart``.
The model is the bundled architecture with random weights, so nothing is downloaded.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fl_vitlora.config import FineTuningConfig, ModelConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.method import Method, Part
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import reader_of
from fl_vitlora.rng import generator
from fl_vitlora.state import State, clone
from fl_vitlora.testing import Finding
from fl_vitlora.testing.entrywise import expect_entrywise
from fl_vitlora.testing.returned import ContractError
from fl_vitlora.testing.travel import sent_and_received
from fl_vitlora.training.stacking import Stack, can_stack

CLASSES, CLIENTS, ROUNDS = 3, (2, 1), 20
CLOSE, CLOSE_DOUBLE = 1e-4, 1e-9  # tolerances for outputs of about 1, in float32 and in float64


class MethodError(AssertionError):
    """A method breaks a rule of its contract; the message explains how."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A method under check.

    Attributes:
        method: The fine-tuning method.
    """

    method: Method

    def plain(self) -> Backbone:
        """Builds the model without the method, with a head that depends on the features."""
        built = backbone.build(ModelConfig(weights="random"), CLASSES, 0)
        head = built.model.get_parameter("head.weight")
        head.data.normal_(std=0.1, generator=generator(0, "check", "head"))
        return built

    def prepared(self) -> Backbone:
        """Builds the model with the method."""
        built = self.plain()
        methods.attach(built.model, self.method, 0)
        return built

    def moved(self) -> Backbone:
        """Builds the model with the method, and changes every trained tensor."""
        built = self.prepared()
        for name, parameter in methods.trainable(built.model).items():
            draw = generator(0, "check", name)
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=draw)
        return built


def images(count: int = 2) -> Tensor:
    """Returns made-up images (count, 3, 16, 16) with pixels in [-1, 1]."""
    return torch.linspace(0, 40, count * 3 * 256).reshape(count, 3, 16, 16).sin()


def outputs(model: nn.Module, batch: Tensor | None = None) -> Tensor:
    """Returns the logits of a model, in evaluation mode and without gradients."""
    with torch.no_grad():
        logits: Tensor = model.eval()(images() if batch is None else batch)
    return logits


def _attaches(subject: Subject) -> None:
    built = subject.prepared()
    methods.check_gradients(built.model, built.image_shape)


def _draws_the_same(subject: Subject) -> None:
    one, other = (methods.export_state(subject.prepared().model) for _ in range(2))
    for name, tensor in one.items():
        if not torch.equal(tensor, other[name]):
            raise MethodError(f"two parties with the same seed start with different {name}")


def _starts_at_identity(subject: Subject) -> None:
    far = _distance(outputs(subject.plain().model), outputs(subject.prepared().model))
    if not far <= CLOSE:
        raise MethodError(f"the untrained method changes the outputs by {far:.2g}")


def _reaches_all(subject: Subject) -> None:
    model = subject.moved().model
    model(images()).square().sum().backward()
    for name, parameter in methods.trainable(model).items():
        if parameter.grad is None or not parameter.grad.any():
            raise MethodError(f"{name} is trained but gets no gradient")


def _keeps_the_rest(subject: Subject) -> None:
    model = subject.moved().model
    trained = methods.trainable(model)
    own = {id(parameter) for parameter in trained.values()}
    tensors = [*model.named_parameters(), *model.named_buffers()]
    before = {name: t.detach().clone() for name, t in tensors if id(t) not in own}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
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
            raise MethodError(f"{name} is not the same after it was exported and loaded")
    far = _distance(outputs(one), outputs(other))
    if not far <= CLOSE:
        raise MethodError(f"a model with the exported tensors differs in its outputs by {far:.2g}")


def _merges(subject: Subject) -> None:
    model = subject.moved().model.double()
    expected = outputs(model, images().double())
    if any(part.cannot_merge for _, part in subject.method.parts):
        return _refuses_to_merge(model)
    methods.merge(model)
    plain = subject.plain().model.double()
    names = set(model.state_dict()) ^ set(plain.state_dict())
    if names:
        raise MethodError(f"the merged model is not a plain timm model: {sorted(names)[0]} differs")
    plain.load_state_dict(model.state_dict())
    far = _distance(outputs(plain, images().double()), expected)
    if not far <= CLOSE_DOUBLE:
        raise MethodError(f"merging changes the outputs by {far:.2g}; is `merge` complete?")
    return None


def _refuses_to_merge(model: nn.Module) -> None:
    try:
        methods.merge(model)
    except UserError:
        return
    raise MethodError("it declares cannot_merge, but it merges")


def _leaves_the_reference(subject: Subject) -> None:
    built, fresh = subject.prepared(), subject.plain().built
    for name, tensor in fresh.items():
        if not torch.equal(built.built[name], tensor):
            raise MethodError(f"attaching changes the pre-trained tensor {name}")
    counted = sum(t.numel() for t in methods.plain_parameters(built.model).values())
    expected = sum(t.numel() for t in fresh.values())
    if counted != expected:
        raise MethodError(
            f"without the tensors that the method adds, the model has {counted} numbers, "
            f"expected {expected}"
        )


def _travels(subject: Subject) -> None:
    state = methods.export_state(subject.moved().model)
    shared = {n: t for n, t in state.items() if not n.endswith(subject.method.personal)}
    for ending in subject.method.personal:
        if not any(name.endswith(ending) for name in state):
            raise MethodError(f"personal contains {ending!r}, but no trained tensor ends with it")
    received, size = sent_and_received(shared)
    if list(received) != list(shared) or size != sum(4 * t.numel() for t in shared.values()):
        raise MethodError(f"{len(shared)} tensors are sent, {len(received)} arrive in {size} bytes")
    for name, tensor in shared.items():
        if not torch.equal(received[name], tensor):
            raise MethodError(f"{name} differs after it was sent and received")


def _stacks(subject: Subject) -> None:
    if not subject.method.stackable:
        return
    built = subject.moved()
    if not can_stack(built.model):
        raise MethodError("it declares stackable, but trains a tensor that no `multiply` applies")
    first = methods.export_state(built.model)
    states = [first, {name: 0.9 * tensor for name, tensor in first.items()}]
    batch, alone, begin = images(sum(CLIENTS)), [], 0
    stack = Stack(built.model)
    for state, count in zip(states, CLIENTS, strict=True):
        methods.load_state(built.model, state)
        alone.append(outputs(built.model, batch[begin : begin + count]))
        begin += count
    stack.load(states, [reader_of(built)] * len(states))
    stack.set_batch_sizes(CLIENTS)
    far = _distance(outputs(stack.model, batch), torch.cat(alone))
    if not far <= CLOSE:
        raise MethodError(f"two clients in one batch get outputs that differ by {far:.2g}")


def _rests(subject: Subject) -> None:
    names = _shared_names(subject)
    for number in range(1, ROUNDS + 1):
        endings = subject.method.rests(number)
        if endings != subject.method.rests(number):
            raise MethodError(f"rests returns another result in a second call, round {number}")
        for ending in endings:
            if not any(name.endswith(ending) for name in names):
                raise MethodError(f"rests returns {ending!r}, but no exchanged tensor ends with it")
        if endings and all(name.endswith(endings) for name in names):
            raise MethodError(f"rests leaves nothing to train in round {number}")


def _penalises(subject: Subject) -> None:
    start = {n: p.detach().double() for n, p in methods.trainable(subject.moved().model).items()}
    anchors = [start, {name: 2 * tensor for name, tensor in start.items()}]
    here = [{name: 1.1 * tensor for name, tensor in anchor.items()} for anchor in anchors]
    for part in subject.method.penalising:
        expect_entrywise(part.penalty, here, anchors)


def _retracts(subject: Subject) -> None:
    state = methods.export_state(subject.moved().model)
    state = {name: state[name] for name in _shared_names(subject)}
    given: State = clone(state)
    once = subject.method.retract(given)
    if any(not torch.equal(given[name], tensor) for name, tensor in state.items()):
        raise MethodError("retract changes the tensors that it is given")
    if {n: t.shape for n, t in once.items()} != {n: t.shape for n, t in state.items()}:
        raise MethodError("retract must return the names and shapes that it is given")
    for name, tensor in subject.method.retract(clone(once)).items():
        far = _distance(tensor, once[name])
        if not far <= CLOSE:
            raise MethodError(f"a second call of retract changes {name} again, by {far:.2g}")


def _shared_names(subject: Subject) -> list[str]:
    names = methods.trainable(subject.prepared().model)
    return [name for name in names if not name.endswith(subject.method.personal)]


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max()) if one.shape == other.shape else float("inf")


class Rule(NamedTuple):
    """A rule that a method must keep.

    Attributes:
        told: The rule in words.
        check: A function that raises `MethodError` or `UserError` if the rule is broken.
    """

    told: str
    check: Callable[[Subject], None]


RULES = (
    Rule("finds what it trains in a ViT, and the model uses all of it", _attaches),
    Rule("starts with the same tensors at every party", _draws_the_same),
    Rule(
        "keeps the pre-trained tensors, and so the full-fine-tuning reference",
        _leaves_the_reference,
    ),
    Rule("starts at the pre-trained function", _starts_at_identity),
    Rule("gives every trained tensor a gradient", _reaches_all),
    Rule("keeps every frozen tensor, bit by bit", _keeps_the_rest),
    Rule("loads what it exported", _reloads),
    Rule("computes the same after merging, or refuses to merge", _merges),
    Rule("sends the tensors that it names, four bytes per number", _travels),
    Rule("computes the same for clients in one batch, if it is stackable", _stacks),
    Rule("adds a penalty entry by entry", _penalises),
    Rule("rests only tensors that exist, and the same ones in every call", _rests),
    Rule("retracts aggregated tensors; a second call changes nothing", _retracts),
)


def check_method(method: Part | Method | str) -> None:
    """Checks a fine-tuning method against all rules.

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
    """Checks the rules one after the other, and returns a finding for each.

    If the first rule is broken, the others are not tried, because they would fail in the same way.

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
        return methods.method_of(FineTuningConfig(method=method))
    if isinstance(method, Part):
        return Method(name=type(method).__name__, parts=((type(method).__name__, method),))
    return method

"""Rules of fine-tuning methods that concern one model: its tensors, outputs and merged weights."""

from __future__ import annotations

import torch
from torch import nn

from fl_vitlora.config import ModelConfig
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.features import frozen_backbone
from fl_vitlora.models import backbone
from fl_vitlora.testing.entrywise import expect_entrywise
from fl_vitlora.testing.method_subject import (
    CLASSES,
    CLOSE,
    CLOSE_DOUBLE,
    MethodError,
    Subject,
    distance,
    images,
    outputs,
    trained,
)


def attaches(subject: Subject) -> None:
    """Checks that the method finds its tensors in a ViT, and that the model uses them."""
    built = subject.prepared()
    methods.check_gradients(built.model, built.image_shape)


def drafts(subject: Subject) -> None:
    """Checks that the method can be tried on a model whose tensors have shapes but no numbers.

    A run tries its method in this way before it loads the weights of a large model. A method that
    needs the numbers declares `reads_weights`, and a run then tries this method after the weights
    are loaded.
    """
    if any(part.reads_weights for _, part in subject.method.parts):
        return
    drafted = backbone.draft(ModelConfig(weights="random"), CLASSES)
    with torch.device("meta"):
        try:
            methods.attach(drafted.model, subject.method, 0)
            methods.check_gradients(drafted.model, drafted.image_shape)
        except (NotImplementedError, RuntimeError) as error:
            raise MethodError(
                f"it needs the numbers of tensors ({' '.join(str(error).split())[:200]}); declare "
                "reads_weights"
            ) from error


def draws_the_same(subject: Subject) -> None:
    """Checks that the method starts with the same tensors whenever the seed is the same."""
    one, other = (methods.export_state(subject.prepared().model) for _ in range(2))
    for name, tensor in one.items():
        if not torch.equal(tensor, other[name]):
            raise MethodError(
                f"{name} differs when the model is built twice with the same seed; draw random "
                "numbers only from the given generator"
            )


def starts_at_identity(subject: Subject) -> None:
    """Checks that the untrained method does not change the model's outputs, or says why it does."""
    far = distance(outputs(subject.plain().model), outputs(subject.prepared().model))
    if any(part.changes_start for _, part in subject.method.parts):
        if far <= CLOSE:
            raise MethodError("it declares changes_start, but the outputs do not change")
    elif not far <= CLOSE:
        raise MethodError(
            f"before any training the method changes the model's outputs by {far:.2g}, expected 0"
        )


def reaches_all(subject: Subject) -> None:
    """Checks that every trained tensor gets a gradient."""
    model = subject.moved().model
    model(images()).square().sum().backward()
    for name, parameter in trained(model, subject.method).items():
        if parameter.grad is None or not parameter.grad.any():
            raise MethodError(f"{name} is trained but gets no gradient; does the model use it?")


def keeps_the_rest(subject: Subject) -> None:
    """Checks that training changes no bit of a frozen tensor."""
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


def reloads(subject: Subject) -> None:
    """Checks that a second model has equal outputs after it has loaded the exported tensors."""
    one, other = subject.moved().model, subject.prepared().model
    state = methods.export_state(one)
    methods.load_state(other, state)
    for name, tensor in methods.export_state(other).items():
        if not torch.equal(tensor, state[name]):
            raise MethodError(f"{name} has other values after it was exported and loaded")
    far = distance(outputs(one), outputs(other))
    if not far <= CLOSE:
        raise MethodError(
            f"the outputs of a second model with the exported tensors differ by {far:.2g}; a "
            "tensor that the outputs depend on is not exported"
        )


def merges(subject: Subject) -> None:
    """Checks that the merged, plain model has equal outputs, or that merging is refused."""
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


def leaves_the_reference(subject: Subject) -> None:
    """Checks that attaching the method changes no pre-trained tensor."""
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


def penalises(subject: Subject) -> None:
    """Checks that a penalty of the method is a sum over the entries of tensors."""
    start = {n: p.detach().double() for n, p in methods.trainable(subject.moved().model).items()}
    anchors = [start, {name: 2 * tensor for name, tensor in start.items()}]
    here = [{name: 1.1 * tensor for name, tensor in anchor.items()} for anchor in anchors]
    for part in subject.method.penalising:
        expect_entrywise(part.penalty, here, anchors)


def has_features(subject: Subject) -> None:
    """Checks that kept features give the same logits as images."""
    one, other = subject.prepared().model, subject.moved().model
    batch = images()
    first, moved = (frozen_backbone(model, subject.method) for model in (one, other))
    if first is None or moved is None:
        return
    features = moved.features(batch)
    if features.requires_grad or not torch.equal(first.features(batch), features):
        raise MethodError(
            "the features that clients keep depend on tensors that the method trains; features may "
            "depend only on frozen tensors"
        )
    if len(features) != len(batch):
        raise MethodError(f"features returns {tuple(features.shape)} for {len(batch)} images")
    far = distance(outputs(other, batch), moved.logits(features).detach())
    if far:
        raise MethodError(f"the logits of features differ from those of the model by {far:.2g}")

"""The rules for a fine-tuning method, which is a sum of parts such as ``lora+patch_embed``.

A part chooses tensors that are trained, and may add tensors to the model. A part is a frozen,
keyword-only dataclass, whose fields are its hyper-parameters. The fields `rank`, `alpha` and
`targets` get the values of the settings ``finetuning.rank``, ``finetuning.alpha`` and
``finetuning.targets``. Any other field of a part is set by the setting
``finetuning.parameters.NAME``. Every method also trains the head.

A part must define only the method `trained`, which returns the names of the tensors that the part
trains. The part in this example adds trained gains, which multiply the outputs of the MLP in every
block. At the start all gains are one, so the outputs of the model do not change:

    >>> import torch
    >>> class Gain(nn.Module):
    ...     def __init__(self, width):
    ...         super().__init__()
    ...         self.gain = nn.Parameter(torch.ones(width))
    ...     def forward(self, x):
    ...         return x * self.gain
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Gains(Part):
    ...     cannot_merge = "its gains are separate layers"
    ...     def attach(self, model):
    ...         for block in model.blocks:
    ...             block.mlp.add_module("drop2", Gain(block.mlp.fc2.out_features))
    ...     def trained(self, model):
    ...         return [name for name, _ in model.named_parameters() if name.endswith(".gain")]
    ...     def group(self, name):
    ...         return "lora"
    >>> from fl_vitlora.testing.method import check_method
    >>> check_method(Gains())

This table says when each method of a part is called:

    once     attach(model), trained(model), group(name),
             rate(name)                                   at server and clients, with the same seed
    server   rests(server_round, memory)                  before each round
    client   penalty(parameters, anchor)                  in each step, for a term of the loss
    client   watch(model)                                 around the steps of a round
    server   retract(tensors), decide(known, memory)      after each aggregation
    at last  merge(model)                                 only if `cannot_merge` is empty

Arguments have these meanings, unless the docstring of a method explains them:

    model         the timm ViT with all parts of the sum attached; for `attach`, only earlier parts
    name          the name of a tensor in the model
    server_round  the number of the round, from 1
    memory        the memory that `decide` returned after the previous round; empty at first
    parameters    the tensors that the client trains in this round, by name
    anchor        the values of these tensors when the client's training began, by name
    known         what the server knows after an aggregation (`Aggregated`)
    tensors       all exchanged tensors after an aggregation, by name

If `frozen_backbone` is True for a part, clients call features(model, images) once for each image,
and from_features(model, features) in each step; the module `features` has the rules.

The module `fl_vitlora.testing.method` checks whether a part keeps the rules. The command
``python simulate.py --check-method my_package.my_file:MyPart`` makes the same checks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from fl_vitlora.finetuning.groups import exact_group_of
from fl_vitlora.state import State

EVERYTHING = ("",)  # in the result of `Part.rests`: all tensors that clients do not measure
BatchTerm = Callable[[Tensor], "Tensor | float"]  # maps the labels of a batch, (B,), to a scalar


@dataclass(frozen=True, kw_only=True)
class Aggregated:
    """What the server knows after the aggregation of a round.

    Attributes:
        round: The number of the round, from 1.
        rounds: The number of rounds of the run.
        before: All exchanged tensors before the round, by name.
        after: All exchanged tensors after the aggregation, by name.
        loss: The mean training loss of the participants, weighted by their images. A part whose
            `decide` reads it says so with `reads_loss`, because the loss is not protected by noise.
        seed: The seed for random choices of the server.
    """

    round: int
    rounds: int
    before: State
    after: State
    loss: float = 0.0
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Part(ABC):
    """The base class of the parts of a fine-tuning method.

    The docstring of this module has the rules for parts.

    Attributes:
        low_rank: True if the part adds low-rank pairs, ``lora_A`` and ``lora_B``, whose product is
            added to a frozen weight. Some strategies work only with low-rank pairs.
        trains_patch_embedding: True if the part trains the patch embedding.
        stackable: True if several clients can be trained in one batch. The modules of such a part
            apply every trained matrix with a function in an attribute ``multiply``, as `LoRALinear`
            does, or use an attribute ``batch_sizes``, as `SideNetwork` does.
        reads_weights: True if `attach` or the forward pass needs the values of tensors. A run then
            checks the method after the weights are loaded.
        control: Endings of the names of tensors that only the server changes, in `decide`. Clients
            never train these tensors. The server sends these tensors exactly (without loss), and
            only to clients that have older values.
        frozen_backbone: True if the part never changes what the backbone computes, and needs no
            gradient from it. Clients can then keep the features of their images.
        personal: Endings of the names of tensors that every client trains, keeps from round to
            round and never sends. The clients then measure the accuracy instead of the server.
        measured: Endings of the names of tensors that clients measure instead of training. The
            method `watch` sets these tensors to means over the images of the round. The aggregated
            values of these tensors are means over the images of all clients.
        cannot_merge: The reason why the part cannot be merged into a plain timm model, or empty.
        multiplies: True if trained tensors are multiplied with weights that other parts may train.
        changes_start: The reason why the untrained part changes the model's outputs, or empty.
    """

    low_rank: ClassVar[bool] = False
    trains_patch_embedding: ClassVar[bool] = False
    stackable: ClassVar[bool] = False
    reads_weights: ClassVar[bool] = False
    frozen_backbone: ClassVar[bool] = False
    control: ClassVar[tuple[str, ...]] = ()
    personal: ClassVar[tuple[str, ...]] = ()
    measured: ClassVar[tuple[str, ...]] = ()
    cannot_merge: ClassVar[str] = ""
    multiplies: ClassVar[bool] = False
    changes_start: ClassVar[str] = ""

    def note(self) -> str:
        """Returns a sentence that a run shows to the user when it begins; by default none."""
        return ""

    @property
    def reads_loss(self) -> bool:
        """Returns True if `decide` reads the clients' loss, to which no noise is added."""
        return False

    @property
    def reads_token_order(self) -> bool:
        """Returns True if trained tensors depend on the order of tokens, which keys may change."""
        return False

    def attach(self, model: nn.Module) -> None:
        """Adds modules or parametrisations to a model, in place. The default adds nothing.

        During this call, PyTorch's global random generator has the same seed at the server and at
        all clients.
        """
        del model

    @abstractmethod
    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of the model's tensors that this part trains."""

    def group(self, name: str) -> str:
        """Returns the group of a trained tensor, which decides the learning rate and the codec.

        Returns:
            One of ``patch_embed, lora_A, lora_B, lora, head, body``. By default the group follows
            from the name of the tensor. For tensors of the group ``lora``, the learning rate is the
            setting ``training.learning_rate`` without a factor. Messages use the codec that the
            settings call ``other`` for these tensors.
        """
        return exact_group_of(name)

    def rate(self, name: str) -> float:
        """Returns the factor by which the learning rate of a trained tensor is multiplied.

        Returns:
            A positive factor, which is 1 if the part does not define this method. The learning rate
            is multiplied by this factor and also by the factor of the tensor's group.
        """
        del name
        return 1.0

    def features(self, model: nn.Module, images: Tensor) -> Tensor:
        """Returns the features of images, from which `from_features` computes the logits.

        Args:
            model: The model with all parts attached, in evaluation mode.
            images: The normalised images, (B, C, H, W).

        Returns:
            A tensor (B, ...) that does not depend on trained tensors; by default the input of the
            classifier, (B, D).
        """
        whole: Any = model
        pooled: Tensor = whole.forward_head(whole.forward_features(images), pre_logits=True)
        return pooled

    def from_features(self, model: nn.Module, features: Tensor) -> Tensor:
        """Returns the logits of images, (B, classes), which must equal the outputs of the model.

        Args:
            model: The model with all parts attached, or its stacked form (`training.stacking`).
            features: The result of `features` for these images, (B, ...).
        """
        whole: Any = model
        logits: Tensor = whole.head(features)
        return logits

    def rests(self, server_round: int, memory: Mapping[str, Tensor]) -> tuple[str, ...]:
        """Returns endings of the names of tensors that rest in a round.

        No client trains or sends a tensor that rests. The strategy may freeze further tensors.

        Returns:
            The endings, by default none. The value `EVERYTHING` means all tensors except those
            whose endings are in `measured`; in such a round clients do not train, but only measure.
        """
        del server_round, memory
        return ()

    def penalty(
        self, parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]
    ) -> Tensor | float:
        """Returns a term that a client adds to its loss in every step.

        The term must be a sum over the entries of the tensors, because several clients may be
        trained in one batch. In a batch of several clients, each tensor has an additional first
        dimension for the clients.

        Returns:
            The term, which is a tensor with one number, or a float; by default 0.
        """
        del parameters, anchor
        return 0.0

    def averages_exactly(self) -> bool:
        """Returns True if averaging the trained tensors averages the weights of the merged model.

        The result must be True only if the weights are linear in the trained tensors. The default
        is False. The command `--check-method` tests whether the result True is correct.
        """
        return False

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[BatchTerm]:
        """Watches the model of a client during the steps of a round, for example with hooks.

        At the end of the `with` block, this method must remove all hooks, and must set the tensors
        of `measured` in place. This method is not called for clients that are trained in one batch.
        Therefore a part that defines this method may be stackable only if its clients never measure
        and train in the same round. In a round in which clients measure, `rests` must return
        `EVERYTHING`; in all other rounds `rests` must return `measured`. With these values, clients
        measure one by one, and train in one batch.

        Yields:
            A function that is called after each forward pass with the labels of the batch. This
            function returns a term that is added to the loss; by default 0.
        """
        del model
        yield lambda labels: 0.0

    def retract(self, tensors: State) -> State:
        """Restores, at the server, a property that tensors have lost by averaging.

        For example, the mean of orthogonal matrices is not orthogonal. Therefore a part that trains
        orthogonal matrices returns an orthogonal matrix near the mean.

        Returns:
            A dictionary from names to the tensors that change; by default it is empty.
        """
        del tensors
        return {}

    def decide(self, known: Aggregated, memory: Mapping[str, Tensor]) -> tuple[State, State]:
        """Chooses, at the server after an aggregation, what changes in the next rounds.

        For example, a part can choose tensors that are frozen from now on, or the entries of a
        tensor that are trained. This method gets only the aggregated tensors, so it also works
        with secure aggregation.

        Returns:
            A pair of dictionaries. The first has the tensors that change, by name; by default none.
            The second is the new memory of this part, with names that the part chooses.
        """
        del known
        return {}, dict(memory)

    def merge(self, model: nn.Module) -> None:
        """Replaces the modules that `attach` added by plain layers with equal outputs, in place.

        By default the model is not changed.
        """
        del model

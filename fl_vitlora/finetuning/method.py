"""The contract of a fine-tuning method, which is a sum of parts.

A part is a frozen, keyword-only dataclass. Its fields are its hyper-parameters. A field with the
name of a setting of `finetuning` (rank, alpha, targets) takes the value of that setting. Any other
field is set by ``finetuning.parameters.NAME``. The head is always trained, whatever the parts are.

A part must define only the method `trained`, which names the tensors that the part trains. The part
in this example adds a trained gain to the output of every block. At the start all gains are one, so
the outputs of the model do not change:

    >>> import torch
    >>> class Gain(nn.Module):
    ...     def __init__(self, width):
    ...         super().__init__()
    ...         self.gain = nn.Parameter(torch.ones(width))
    ...     def forward(self, x):
    ...         return x * self.gain
    >>> @dataclass(frozen=True, kw_only=True)
    ... class Gains(Part):
    ...     cannot_merge = "its gains are layers of their own"
    ...     def attach(self, model):
    ...         for block in model.blocks:
    ...             block.mlp.add_module("drop2", Gain(block.mlp.fc2.out_features))
    ...     def trained(self, model):
    ...         return [name for name, _ in model.named_parameters() if name.endswith(".gain")]
    ...     def group(self, name):
    ...         return "lora"
    >>> from fl_vitlora.testing.method import check_method
    >>> check_method(Gains())

When each method of a part is called:

    once     attach(model), trained(model), group(name)   at every party, with the same seed
    server   rests(server_round)                          before each round
    client   penalty(parameters, anchor)                  in each step, a term of the loss
    server   retract(tensors)                             after each aggregation
    at last  merge(model), unless `cannot_merge` gives a reason against it

`fl_vitlora.testing.method` checks the rules. From the command line:
``python simulate.py --check-method my_package.my_file:MyPart``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from fl_vitlora.finetuning.groups import exact_group_of
from fl_vitlora.state import State


@dataclass(frozen=True, kw_only=True)
class Part(ABC):
    """One part of a fine-tuning method. The text of this module describes the rules for parts.

    Attributes:
        low_rank: True if the part adds low-rank pairs, ``lora_A`` and ``lora_B``, whose product is
            added to a frozen weight. Some strategies work only with such pairs.
        trains_patch_embedding: True if the part trains the patch embedding.
        stackable: True if several clients can be trained in one batch. The part's modules must then
            apply every trained matrix through an attribute ``multiply``, as `LoRALinear` does.
        personal: Endings of the names of tensors that every client trains, keeps from round to
            round and never sends. With such tensors, the clients measure the accuracy.
        cannot_merge: The reason why the part cannot become part of a plain timm model; empty if the
            part can be merged.
    """

    low_rank: ClassVar[bool] = False
    trains_patch_embedding: ClassVar[bool] = False
    stackable: ClassVar[bool] = False
    personal: ClassVar[tuple[str, ...]] = ()
    cannot_merge: ClassVar[str] = ""

    def attach(self, model: nn.Module) -> None:
        """Adds modules or parametrisations to a model, in place. By default nothing is added.

        PyTorch's global generator has the same seed for this call at every party.

        Args:
            model: A timm ViT with the modules that earlier parts of the sum added.
        """
        del model

    @abstractmethod
    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of the model's tensors that this part trains.

        Args:
            model: The model with all parts attached.
        """

    def group(self, name: str) -> str:
        """Returns the group of a trained tensor. The group decides the learning rate and the codec.

        Args:
            name: The name of the tensor in the model.

        Returns:
            One of ``patch_embed, lora_A, lora_B, lora, head, body``. By default the name of the
            tensor decides. The group ``lora`` has the plain learning rate, and the codec that is
            set for other tensors.
        """
        return exact_group_of(name)

    def rests(self, server_round: int) -> tuple[str, ...]:
        """Returns the endings of tensors that no client trains or sends in a round.

        Args:
            server_round: The number of the round, from 1.

        Returns:
            The endings of the names; by default there are none. The strategy may add other endings.
        """
        del server_round
        return ()

    def penalty(
        self, parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]
    ) -> Tensor | float:
        """Returns what a client adds to its loss in every step.

        The value must be a sum over the entries of the tensors, because several clients may be
        stacked, with a first dimension of their own.

        Args:
            parameters: The tensors that the client trains in this round, by name.
            anchor: Their values when the client's training began.

        Returns:
            A scalar; by default 0.
        """
        del parameters, anchor
        return 0.0

    def retract(self, tensors: State) -> State:
        """Maps aggregated tensors back onto the manifold on which they must lie, at the server.

        Args:
            tensors: All exchanged tensors by name, after an aggregation.

        Returns:
            The tensors that change; by default there are none. For example, the mean of orthogonal
            matrices is not orthogonal, so a part with orthogonal matrices must change it.
        """
        del tensors
        return {}

    def merge(self, model: nn.Module) -> None:
        """Turns the modules that `attach` added into plain weights, in place.

        By default the model is not changed.

        Args:
            model: The trained model.
        """
        del model


@dataclass(frozen=True, kw_only=True)
class Method:
    """A fine-tuning method: its parts, which are trained together with the head.

    Attributes:
        name: The name of the method, such as ``lora+patch_embed``.
        parts: Pairs of a part's name and the part, in the order of the sum.
    """

    name: str
    parts: tuple[tuple[str, Part], ...]

    @property
    def low_rank(self) -> bool:
        """Returns True if a part adds low-rank pairs."""
        return any(part.low_rank for _, part in self.parts)

    @property
    def trains_patch_embedding(self) -> bool:
        """Returns True if a part trains the patch embedding."""
        return any(part.trains_patch_embedding for _, part in self.parts)

    @property
    def stackable(self) -> bool:
        """Returns True if several clients can be trained in one batch."""
        return all(part.stackable for _, part in self.parts)

    @property
    def personal(self) -> tuple[str, ...]:
        """Returns the endings of the names of the tensors that stay at the clients."""
        return tuple(ending for _, part in self.parts for ending in part.personal)

    def rests(self, server_round: int) -> tuple[str, ...]:
        """Returns the endings of the names of tensors that rest in a round; see `Part.rests`."""
        endings = [ending for _, part in self.parts for ending in part.rests(server_round)]
        return tuple(dict.fromkeys(endings))

    def retract(self, tensors: State) -> State:
        """Returns aggregated tensors after all parts have mapped them back; see `Part.retract`."""
        for _, part in self.parts:
            tensors = {**tensors, **part.retract(tensors)}
        return tensors

    @property
    def penalising(self) -> tuple[Part, ...]:
        """Returns the parts that add a term to the local loss."""
        return tuple(part for _, part in self.parts if type(part).penalty is not Part.penalty)

    @property
    def retracts(self) -> bool:
        """Returns True if a part defines `retract`, and so may change aggregated tensors."""
        return any(type(part).retract is not Part.retract for _, part in self.parts)

    @property
    def has_rests(self) -> bool:
        """Returns True if a part defines `rests`, so that tensors may rest in some rounds."""
        return any(type(part).rests is not Part.rests for _, part in self.parts)

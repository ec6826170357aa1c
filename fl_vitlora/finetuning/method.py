"""The contract of a fine-tuning method: a sum of parts, each one frozen value.

A part is a frozen, keyword-only dataclass. Its fields are its hyper-parameters. A field with the
name of a setting of `finetuning` (rank, alpha, targets) takes the value of that setting; any other
field is set as ``finetuning.parameters.NAME``. The head is always trained, whatever the parts are.

Only `trained` must be written: it names the tensors that the part trains. This part adds a trained
gain to the output of every block; at the start the gain is one, so nothing changes:

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
    at last  merge(model), or `cannot_merge` says why not

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
    """One part of a fine-tuning method; the module describes the rules.

    Attributes:
        low_rank: True if the part adds low-rank pairs, ``lora_A`` and ``lora_B``, whose product is
            added to a frozen weight. Strategies that work on such pairs need it.
        trains_patch_embedding: True if the part trains the patch embedding.
        stackable: True if several clients can be trained in one batch. The part's modules must then
            apply every trained matrix through an attribute ``multiply``, as `LoRALinear` does.
        personal: Endings of the names of tensors that every client trains, keeps from round to
            round and never sends. The clients then measure the accuracy.
        cannot_merge: The reason why the part cannot become part of a plain timm model; empty if it
            can.
    """

    low_rank: ClassVar[bool] = False
    trains_patch_embedding: ClassVar[bool] = False
    stackable: ClassVar[bool] = False
    personal: ClassVar[tuple[str, ...]] = ()
    cannot_merge: ClassVar[str] = ""

    def attach(self, model: nn.Module) -> None:
        """Adds modules or parametrisations to a model, in place; by default nothing.

        PyTorch's global generator is seeded for this call, the same at every party.

        Args:
            model: A timm ViT with the modules that earlier parts of the sum added.
        """
        del model

    @abstractmethod
    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names, in the model, of the tensors that this part trains.

        Args:
            model: The model with all parts attached.
        """

    def group(self, name: str) -> str:
        """Returns the group of a trained tensor: it decides the learning rate and the codec.

        Args:
            name: The name of the tensor in the model.

        Returns:
            One of ``patch_embed, lora_A, lora_B, lora, head, body``. By default the name decides.
            The group ``lora`` has the plain learning rate and the codec of other tensors.
        """
        return exact_group_of(name)

    def rests(self, server_round: int) -> tuple[str, ...]:
        """Returns the endings of tensors that no client trains or sends in a round.

        Args:
            server_round: The number of the round, from 1.

        Returns:
            The endings of names; none by default. The strategy may add endings of its own.
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
        """Puts aggregated tensors back onto the manifold that they must lie on, at the server.

        Args:
            tensors: All exchanged tensors by name, after an aggregation.

        Returns:
            The tensors that change; none by default. An example are orthogonal factors: their mean
            is no longer orthogonal.
        """
        del tensors
        return {}

    def merge(self, model: nn.Module) -> None:
        """Turns what `attach` added into plain weights, in place; by default there is nothing.

        Args:
            model: The trained model.
        """
        del model


@dataclass(frozen=True, kw_only=True)
class Method:
    """A fine-tuning method: the parts of a sum, and the head.

    Attributes:
        name: The name of the method, such as ``lora+patch_embed``.
        parts: The parts by their names, in the order of the sum.
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
        """Returns the endings of the tensors that stay with the clients."""
        return tuple(ending for _, part in self.parts for ending in part.personal)

    def rests(self, server_round: int) -> tuple[str, ...]:
        """Returns the endings of the tensors that rest in a round, of all parts."""
        endings = [ending for _, part in self.parts for ending in part.rests(server_round)]
        return tuple(dict.fromkeys(endings))

    def retract(self, tensors: State) -> State:
        """Returns tensors that all parts have put back onto their manifolds."""
        for _, part in self.parts:
            tensors = {**tensors, **part.retract(tensors)}
        return tensors

    @property
    def penalising(self) -> tuple[Part, ...]:
        """Returns the parts that add a term to the local loss."""
        return tuple(part for _, part in self.parts if type(part).penalty is not Part.penalty)

    @property
    def retracts(self) -> bool:
        """Returns True if a part puts aggregated tensors back onto a manifold."""
        return any(type(part).retract is not Part.retract for _, part in self.parts)

    @property
    def has_rests(self) -> bool:
        """Returns True if a part lets tensors rest by round."""
        return any(type(part).rests is not Part.rests for _, part in self.parts)

"""Gives the data that the server sees in a round to observers.

An observer is a user's object that watches a run, for example for research on attacks. Every
observer gets copies of the tensors. Therefore an observer cannot change the tensors of the server
or of another observer. The copies also do not change after the round, so an observer may keep them.
A run without observers makes no copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fl_vitlora.errors import errors_named
from fl_vitlora.federation.observer import Observer, Sight
from fl_vitlora.state import clone
from fl_vitlora.storage.files import WriteError


def show(observers: Sequence[Observer], sight: Sight) -> None:
    """Gives the data of a round to every observer, one observer after the other.

    Args:
        observers: The observers of the run, in the order in which they are called.
        sight: The data that the server sees in this round.

    Raises:
        UserError: If the code of an observer fails. The message names the observer and the line.
        WriteError: If an observer stores the round, and its file cannot be written.
    """
    for observer in observers:
        owner = f"observer {type(observer).__name__}, round {sight.round}"
        with errors_named(owner, WriteError):
            observer.observe(copied(sight))


def copied(sight: Sight) -> Sight:
    """Returns a copy of a round's data, whose tensors share no memory with the original.

    Example:
        >>> import torch
        >>> sight = Sight(round=1, model={"w": torch.zeros(2)}, updates=())
        >>> _ = copied(sight).model["w"].add_(1)
        >>> sight.model
        {'w': tensor([0., 0.])}
    """
    updates = (
        replace(update, delta=clone(update.delta), report=clone(update.report))
        for update in sight.updates
    )
    return replace(sight, model=clone(sight.model), updates=tuple(updates))

"""The rules that every observer must obey, checked on made-up rounds.

An observer is an object whose method `observe` is called with the data that the server sees in each
round.

    from fl_vitlora.testing import check_observer

    def test_my_observer():
        check_observer(MyObserver())

The check shows every kind of round that can occur: single updates with and without reports, one
update that is the mean of several updates, no usable update, and a round that is repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from fl_vitlora.federation.observer import Observer, Sight
from fl_vitlora.state import State, clone, scale
from fl_vitlora.strategy import SEVERAL, Update
from fl_vitlora.testing.made_up import CLIENTS, RANKS, SAMPLES, STEPS, made_up_model


class ObserverError(AssertionError):
    """An error: an observer breaks a rule.

    The message explains how the observer breaks the rule.
    """


def check_observer(observer: Observer) -> None:
    """Shows made-up rounds to an observer; checks that it raises no error and changes no tensor.

    Args:
        observer: The observer. The observer may remember the made-up rounds, so do not use the same
            object in a run.

    Raises:
        ObserverError: If the observer raises an error, or changes a tensor that it is shown; the
            message says in which kind of round.

    Example:
        >>> class Counts:
        ...     rounds = 0
        ...     def observe(self, sight):
        ...         self.rounds += 1
        >>> check_observer(Counts())
        >>> class Zeroes:
        ...     def observe(self, sight):
        ...         sight.model["head.bias"].zero_()
        >>> check_observer(Zeroes())
        Traceback (most recent call last):
        fl_vitlora.testing.observer.ObserverError: single updates: it changes model head.bias
    """
    for kind, sight in made_up_rounds():
        before = _tensors(_copied(sight))
        try:
            observer.observe(sight)
        except Exception as error:
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            raise ObserverError(f"{kind}: it raises {cause}") from error
        if changed := _first_difference(before, _tensors(sight)):
            raise ObserverError(f"{kind}: it changes {changed}")


def made_up_rounds() -> Iterator[tuple[str, Sight]]:
    """Yields pairs of a text that names a kind of round, and a made-up round of this kind."""
    model = made_up_model()
    single = Sight(round=1, model=model, updates=tuple(map(_update, CLIENTS)))
    mean = replace(_update(0), client=SEVERAL, rank=None, members=len(CLIENTS), samples=100)
    yield "single updates", _copied(single)
    yield (
        "the mean of all updates alone",
        Sight(round=2, model=clone(model), updates=(mean,)),
    )
    yield "no usable update", Sight(round=3, model=clone(model), updates=())
    yield "a repeated round", _copied(single)


def _update(client: int) -> Update:
    """Returns a made-up update. Clients with an odd number also send a report."""
    delta = scale(made_up_model(), 0.1 * (client + 1))
    return Update(
        client=client,
        samples=SAMPLES[client],
        loss=1.0 / (client + 1),
        delta=delta,
        steps=STEPS[client],
        rank=RANKS[client],
        report=scale(delta, 0.5) if client % 2 else {},
        population=len(CLIENTS),
    )


def _copied(sight: Sight) -> Sight:
    updates = [replace(u, delta=clone(u.delta), report=clone(u.report)) for u in sight.updates]
    return replace(sight, model=clone(sight.model), updates=tuple(updates))


def _tensors(sight: Sight) -> State:
    """Returns all tensors of a round in one dictionary. Each key says what its tensor is."""
    states = {"model": sight.model}
    for update in sight.updates:
        whose = "the mean" if update.client == SEVERAL else f"client {update.client}"
        states[f"the delta of {whose}:"] = update.delta
        states[f"the report of {whose}:"] = update.report
    return {f"{place} {n}": t for place, state in states.items() for n, t in state.items()}


def _first_difference(before: State, after: State) -> str:
    """Returns the name of the first tensor that was changed, added or removed, or an empty text."""
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if old is None or new is None or old.dtype != new.dtype or not torch.equal(old, new):
            return name
    return ""

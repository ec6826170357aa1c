"""The rules for what a fine-tuning method does at the server: `rests`, `decide` and `retract`."""

from __future__ import annotations

import torch

from fl_vitlora.finetuning.method import Aggregated, Method
from fl_vitlora.rng import generator
from fl_vitlora.state import State, clone
from fl_vitlora.testing.method_subject import CLOSE, MethodError, Subject, distance, shared

ROUNDS = 20


def rests(subject: Subject) -> None:
    """Checks `rests` and `decide` in made-up rounds, one after the other."""
    state, memory = shared(subject), State()
    for number in range(1, ROUNDS + 1):
        _check_rests(subject.method, number, memory, list(state))
        state, memory = _decided(subject.method, number, state, memory)


def _check_rests(method: Method, number: int, memory: State, names: list[str]) -> None:
    endings = method.rests(number, memory)
    if endings != method.rests(number, memory):
        raise MethodError(f"rests returns another result in a second call, round {number}")
    for ending in endings:
        if not any(name.endswith(ending) for name in names):
            raise MethodError(f"rests returns {ending!r}, but no exchanged tensor ends with it")
    if endings and all(name.endswith(endings) for name in names):
        raise MethodError(f"rests leaves nothing to train in round {number}")


def _decided(method: Method, number: int, state: State, memory: State) -> tuple[State, State]:
    """Returns the tensors and the memory after a made-up round of `decide`."""
    resting = method.rests(number, memory)
    draw = generator(number, "check", "decide")
    after = {
        name: t if name.endswith(resting) else t + 0.1 * torch.randn(t.shape, generator=draw)
        for name, t in state.items()
    }
    answers = [
        method.decide(
            Aggregated(round=number, rounds=ROUNDS, before=clone(state), after=clone(after)),
            clone(memory),
        )
        for _ in range(2)
    ]
    for one, other in zip(*answers, strict=True):
        if one.keys() != other.keys() or any(not torch.equal(one[n], other[n]) for n in one):
            raise MethodError(f"decide returns another result in a second call, round {number}")
    changed, remembered = answers[0]
    for name, tensor in changed.items():
        if name not in after or tensor.shape != after[name].shape:
            raise MethodError(f"decide changes {name} {tuple(tensor.shape)}, no exchanged tensor")
    return after | changed, remembered


def retracts(subject: Subject) -> None:
    """Checks that `retract` changes nothing when it is called a second time."""
    state = shared(subject)
    given: State = clone(state)
    once = subject.method.retract(given)
    if any(not torch.equal(given[name], tensor) for name, tensor in state.items()):
        raise MethodError("retract changes the tensors that it is given")
    if {n: t.shape for n, t in once.items()} != {n: t.shape for n, t in state.items()}:
        raise MethodError("retract must return the names and shapes that it is given")
    for name, tensor in subject.method.retract(clone(once)).items():
        far = distance(tensor, once[name])
        if not far <= CLOSE:
            raise MethodError(f"a second call of retract changes {name} again, by {far:.2g}")

"""The rules for the functions of a fine-tuning method that the server calls.

`rests` names the tensors that are frozen in a round, `decide` may change averaged tensors, and
`retract` brings averaged tensors back to the form that the method needs.
"""

from __future__ import annotations

import torch

from fl_vitlora.finetuning.method import Method
from fl_vitlora.finetuning.part import Aggregated
from fl_vitlora.rng import generator
from fl_vitlora.state import State, clone
from fl_vitlora.testing.method_subject import CLOSE, MethodError, Subject, distance, shared
from fl_vitlora.testing.method_watch import measured

ROUNDS = 20


def rests(subject: Subject) -> None:
    """Checks `rests` and `decide` of a fine-tuning method in `ROUNDS` made-up rounds."""
    state, memory = shared(subject) | measured(subject), State()
    for number in range(1, ROUNDS + 1):
        _check_rests(subject.method, number, memory, list(state))
        state, memory = _decided(subject.method, number, state, memory)


def _check_rests(method: Method, number: int, memory: State, names: list[str]) -> None:
    endings = method.resting(number, memory, names)
    if endings != method.resting(number, memory, names):
        raise MethodError(
            f"in round {number} a second call of rests returns another result than the first; "
            "the same arguments must give the same result"
        )
    for ending in endings:
        if not any(name.endswith(ending) for name in names):
            raise MethodError(f"rests returns {ending!r}, but no exchanged tensor ends with it")
    if endings and all(name.endswith(endings) for name in names):
        raise MethodError(
            f"rests freezes all tensors in round {number}; at least one must be trained"
        )


def _decided(method: Method, number: int, state: State, memory: State) -> tuple[State, State]:
    """Returns the tensors and the method's memory after a made-up round and a call of `decide`."""
    unmoved = (*method.resting(number, memory, state), *method.measured)
    draw = generator(number, "check", "decide")
    after = {
        name: t if name.endswith(unmoved) else t + 0.1 * torch.randn(t.shape, generator=draw)
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
            raise MethodError(
                f"in round {number} a second call of decide returns another result than the "
                "first; the same arguments must give the same result"
            )
    changed, remembered = answers[0]
    for name, tensor in changed.items():
        if name not in after or tensor.shape != after[name].shape:
            raise MethodError(
                f"decide returns {name} of shape {tuple(tensor.shape)}, but no exchanged tensor "
                "has this name and shape"
            )
    return after | changed, remembered


def retracts(subject: Subject) -> None:
    """Checks that `retract` changes nothing when it is called a second time."""
    state = shared(subject)
    given: State = clone(state)
    once = subject.method.retract(given)
    if any(not torch.equal(given[name], tensor) for name, tensor in state.items()):
        raise MethodError("retract changes the tensors in its argument; it must return new tensors")
    if {n: t.shape for n, t in once.items()} != {n: t.shape for n, t in state.items()}:
        raise MethodError("retract must return tensors with the names and shapes of its argument")
    for name, tensor in subject.method.retract(clone(once)).items():
        far = distance(tensor, once[name])
        if not far <= CLOSE:
            raise MethodError(
                f"a second call of retract changes {name} again, by {far:.2g}; expected no change"
            )

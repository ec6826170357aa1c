"""What every aggregation strategy must keep to, checked on a small made-up model.

    from fl_vitlora.testing import check_strategy

    def test_my_strategy():
        check_strategy(MyStrategy(rate=0.5))

The checks know no algorithm. They look for what would spoil a run of any: tensors lost or reshaped,
results that are not numbers, hidden memory, dependence on who answered first, inputs that
were written to, a client that is missing.

r rank, D width of the made-up model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fl_vitlora.errors import UserError
from fl_vitlora.rng import generator
from fl_vitlora.state import State, clone, is_finite
from fl_vitlora.strategy import ClientPlan, Strategy, Update

RANK, WIDTH, CLASSES = 2, 6, 3
ROUNDS = 3
CLIENTS = (0, 1, 2, 3)
SAMPLES = (40, 30, 20, 10)
TOLERANCE = 1e-5

SHAPES: Mapping[str, tuple[int, ...]] = {
    "patch_embed.proj.weight": (WIDTH, 3, 2, 2),
    "patch_embed.proj.bias": (WIDTH,),
    **{
        f"blocks.{block}.attn.qkv.adapters.{target}.{factor}": shape
        for block in (0, 1)
        for target in ("q", "v")
        for factor, shape in (("lora_A", (RANK, WIDTH)), ("lora_B", (WIDTH, RANK)))
    },
    "head.weight": (CLASSES, WIDTH),
    "head.bias": (CLASSES,),
}


class StrategyError(ValueError):
    """A strategy breaks a rule of its contract; the message says which one and where."""


def check_strategy(strategy: Strategy) -> None:
    """Checks one instance of a strategy against the rules of `fl_vitlora.strategy`.

    It plays a few rounds with made-up updates of four clients and checks that the strategy

    - plans what a client can do: it leaves something to train, and its penalty is a number;
    - returns tensors of the model's names, shapes and types, all of them finite;
    - gives the same bits when the same rounds are played again, so it keeps no hidden state;
    - gives the same result, to float tolerance, in whatever order the updates are listed;
    - does not write to the model, the updates or the state that it is given;
    - works with one client, and with a client that is missing in a later round;
    - changes the model where clients did, and does not change what it computes where none did.

    Args:
        strategy: With the hyper-parameters to be checked.

    Raises:
        StrategyError: At the first rule that is broken.

    Example:
        >>> import strategies
        >>> check_strategy(strategies.load("fedavg", {}))
    """
    for server_round in range(1, ROUNDS + 1):
        _check_plan(strategy, server_round)
    _check_rounds(strategy)
    _check_repetition(strategy)
    _check_order(strategy)
    _check_attendance(strategy)
    _check_movement(strategy)


def made_up_model() -> State:
    """Makes a small model of the names that a real one has, the same in every call."""
    return _random(generator(0, "model"), size=1.0)


def made_up_updates(
    strategy: Strategy, server_round: int, clients: Sequence[int] = CLIENTS, size: float = 0.1
) -> list[Update]:
    """Makes updates as the clients of a strategy would send them.

    Args:
        strategy: Tensors that its plan freezes are left out.
        server_round: From 1; another round gives other numbers.
        clients: Who answers, out of `CLIENTS`.
        size: Standard deviation of the deltas.

    Returns:
        One update for each client.
    """
    frozen = tuple(strategy.plan(server_round).frozen)
    updates = []
    for client in clients:
        delta = _random(generator(0, "delta", server_round, client), size)
        sent = {name: tensor for name, tensor in delta.items() if not name.endswith(frozen)}
        updates.append(
            Update(client=client, samples=SAMPLES[client], loss=1.0 + client, delta=sent)
        )
    return updates


def _random(chance: torch.Generator, size: float) -> State:
    return {
        name: (torch.randn(shape, generator=chance) if size else torch.zeros(shape)) * size
        for name, shape in SHAPES.items()
    }


def _check_plan(strategy: Strategy, server_round: int) -> None:
    plan = strategy.plan(server_round)
    if not isinstance(plan, ClientPlan):
        raise _broken(strategy, server_round, f"plan returned {plan!r}, not a ClientPlan")
    if not isinstance(plan.frozen, tuple):
        raise _broken(
            strategy, server_round, f"plan.frozen is {plan.frozen!r}, not a tuple of endings"
        )
    if all(name.endswith(plan.frozen) for name in SHAPES):
        raise _broken(strategy, server_round, "the plan freezes every tensor; clients would idle")
    if not (math.isfinite(plan.proximal_mu) and plan.proximal_mu >= 0):
        raise _broken(
            strategy, server_round, f"plan.proximal_mu is {plan.proximal_mu}, not a weight"
        )


def _check_rounds(strategy: Strategy) -> None:
    """Plays rounds and checks shapes, numbers, and that nothing is written to."""
    model, state = made_up_model(), State()
    for server_round in range(1, ROUNDS + 1):
        updates = made_up_updates(strategy, server_round)
        given = [model, state, *(update.delta for update in updates)]
        before = [clone(tensors) for tensors in given]
        new, new_state = _aggregate(strategy, server_round, model, updates, state)
        for what, was, now in zip(
            ("the model", "the state", *("an update" for _ in updates)), before, given, strict=True
        ):
            if not _equal(was, now):
                raise _broken(strategy, server_round, f"it wrote to {what} that it was given")
        model, state = new, new_state


def _check_repetition(strategy: Strategy) -> None:
    first, second = _play(strategy), _play(strategy)
    if not _equal(first, second):
        raise _broken(
            strategy,
            ROUNDS,
            "the same rounds gave another model the second time; what must be remembered belongs "
            "into the state, and chance into fl_vitlora.rng",
        )


def _check_order(strategy: Strategy) -> None:
    _check_close(
        strategy,
        _play(strategy),
        _play(strategy, backwards=True),
        "the result depends on the order in which updates are listed",
    )


def _check_attendance(strategy: Strategy) -> None:
    """One client alone, from the first round or after all were there; one missing in between."""
    for attendance in ([CLIENTS[:1]] * ROUNDS, [CLIENTS, CLIENTS[1:], CLIENTS[:1]]):
        _play(strategy, attendance=attendance)


def _check_movement(strategy: Strategy) -> None:
    model = made_up_model()
    moved, _ = _aggregate(strategy, 1, model, made_up_updates(strategy, 1), {})
    if _equal(model, moved):
        raise _broken(strategy, 1, "updates of all clients leave the model as it was")
    still, _ = _aggregate(strategy, 1, model, made_up_updates(strategy, 1, size=0.0), {})
    _check_close(
        strategy,
        _function(model),
        _function(still),
        "updates of nothing but zeros change what the model computes",
    )


def _play(
    strategy: Strategy,
    *,
    attendance: Sequence[Sequence[int]] = (CLIENTS,) * ROUNDS,
    backwards: bool = False,
) -> State:
    """Plays rounds, one for each list of clients, and returns the final model."""
    model, state = made_up_model(), State()
    for server_round, clients in enumerate(attendance, start=1):
        updates = made_up_updates(strategy, server_round, clients)
        ordered = updates[::-1] if backwards else updates
        model, state = _aggregate(strategy, server_round, model, ordered, state)
    return model


def _aggregate(
    strategy: Strategy, server_round: int, model: State, updates: Sequence[Update], state: State
) -> tuple[State, State]:
    """Calls the strategy and checks what it returns."""
    try:
        new, new_state = strategy.aggregate(model, updates, state)
    except UserError:
        raise
    except Exception as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise _broken(
            strategy, server_round, f"aggregate fails with {len(updates)} clients: {cause}"
        ) from error
    if new.keys() != model.keys():
        raise _broken(
            strategy,
            server_round,
            "aggregate returned other tensors than the model's; these differ: "
            f"{sorted(new.keys() ^ model.keys())[:5]}",
        )
    for name, tensor in model.items():
        if new[name].shape != tensor.shape or new[name].dtype != tensor.dtype:
            raise _broken(
                strategy,
                server_round,
                f"{name} became {new[name].dtype} {tuple(new[name].shape)}, expected "
                f"{tensor.dtype} {tuple(tensor.shape)}",
            )
    if not is_finite(new) or not is_finite(new_state):
        raise _broken(strategy, server_round, "aggregate returned NaN or infinity")
    return new, new_state


def _function(model: State) -> State:
    """What the model computes: a strategy may factor the products B·A of LoRA in another way."""
    found = dict(model)
    for name in model:
        if name.endswith(".lora_A"):
            path = name.removesuffix(".lora_A")
            found[path] = found.pop(f"{path}.lora_B") @ found.pop(name)
    return found


def _check_close(strategy: Strategy, a: State, b: State, finding: str) -> None:
    for name, tensor in a.items():
        distance = float((tensor - b[name]).abs().max())
        if distance > TOLERANCE * (1 + float(tensor.abs().max())):
            raise _broken(strategy, None, f"{finding}: {name} differs by {distance:.2g}")


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())


def _broken(strategy: Strategy, server_round: int | None, finding: str) -> StrategyError:
    where = "" if server_round is None else f"round {server_round}: "
    return StrategyError(f"strategy {type(strategy).__name__}: {where}{finding}")

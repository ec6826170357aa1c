"""The rules that every strategy must obey.

Most rules compare two plays (a few rounds with made-up clients) whose results must be equal. A rule
refuses only what would make the result of a run wrong.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor

from fl_vitlora import lowrank
from fl_vitlora.errors import UserError
from fl_vitlora.state import State, add, clone
from fl_vitlora.strategy import Strategy
from fl_vitlora.strategy.extras import wants
from fl_vitlora.testing import declared, made_up
from fl_vitlora.testing.blaming import blaming, broken
from fl_vitlora.testing.bounded_steps import expect_bounded_steps
from fl_vitlora.testing.entrywise import expect_entrywise
from fl_vitlora.testing.play import ROUNDS, Ending, Play, answer_while_resting
from fl_vitlora.testing.returned import ContractError

PLANNED_ROUNDS = 50
TOLERANCE, HALF_TOLERANCE = 1e-5, 2e-2
FIRST_ROUND = (made_up.CLIENTS,)
ALONE = (made_up.CLIENTS[:1],) * ROUNDS
NEVER_THE_SAME = ((0, 2), (1, 2, 3), (0,), (0, 1, 2, 3), (3,))


class Rule(NamedTuple):
    """A rule that a strategy must obey.

    Attributes:
        told: The rule in words, as the end of a sentence that begins with "The strategy".
        check: A function that raises a `StrategyError` if the rule is broken.
        concerns: A function that returns True for the strategies to which the rule applies.
        first: True if later rules are not tested when this rule is broken.
    """

    told: str
    check: Callable[[Strategy], None]
    concerns: Callable[[Strategy], bool] = lambda _: True
    first: bool = False


def _declares(strategy: Strategy) -> None:
    try:
        declared.expect_declaration(strategy, made_up.known_names(strategy))
    except (ContractError, UserError) as error:
        raise broken(strategy, None, str(error)) from None


def _plans(strategy: Strategy) -> None:
    play = Play(strategy=strategy)
    known = 1 if wants(strategy.plan, "state") else PLANNED_ROUNDS  # later states are unknown
    for server_round in range(1, known + 1):
        if play.plan(server_round) != play.plan(server_round):
            raise broken(
                strategy,
                server_round,
                "a second call of plan returns another plan; the same arguments must give the same "
                "plan",
            )


def _returns(strategy: Strategy) -> None:
    Play(strategy=strategy).run()


def _repeats(strategy: Strategy) -> None:
    _expect_same(
        strategy,
        Play(strategy=strategy),
        "the same rounds gave another model the second time; keep memory only in the state, and "
        "draw random numbers only with fl_vitlora.rng",
    )


def _writes_nothing(strategy: Strategy) -> None:
    seen: list[tuple[int, str, State, State]] = []

    def hand(server_round: int, what: str, tensors: State) -> State:
        seen.append((server_round, what, tensors, clone(tensors)))
        return tensors

    Play(strategy=strategy, hand=hand).run()
    for server_round, what, now, before in seen:
        if not _same_bits(before, now):
            raise broken(
                strategy, server_round, f"it changed {what} in its argument; return new tensors"
            )


def _moves(strategy: Strategy) -> None:
    play = Play(strategy=strategy)
    end = play.run()
    if _same_bits(play.start().model, end.model) and not end.merged:
        raise broken(
            strategy, ROUNDS, "all clients sent updates, but aggregate did not change the model"
        )


def _rests(strategy: Strategy) -> None:
    play = Play(strategy=strategy, attendance=FIRST_ROUND, size=0.0)
    _expect_close(
        strategy,
        play.start(),
        play.run(),
        "all updates are zero, but the outputs of the model change",
    )


def _lets_tensors_rest(strategy: Strategy) -> None:
    pairs = tuple(f".adapters.q{end}" for end in (lowrank.A, lowrank.B, lowrank.R))
    answer_while_resting(Play(strategy=strategy, resting={2: ("patch_embed.proj.bias", *pairs)}))


def _weighs(strategy: Strategy) -> None:
    _expect_close(
        strategy,
        Play(strategy=strategy).run(),
        Play(strategy=strategy, images=2).run(),
        "twice as many images at every client give another model; weights may depend only on each "
        "client's share of the images",
    )


def _ignores_order(strategy: Strategy) -> None:
    _expect_close(
        strategy,
        Play(strategy=strategy).run(),
        Play(strategy=strategy, backwards=True).run(),
        "the result depends on the order of the updates",
    )


def _stands_alone(strategy: Strategy) -> None:
    Play(strategy=strategy, attendance=ALONE).run()


def _misses_some(strategy: Strategy) -> None:
    Play(strategy=strategy, attendance=NEVER_THE_SAME).run()


def _survives_checkpoints(strategy: Strategy) -> None:
    def hand(server_round: int, what: str, tensors: State) -> State:
        if what not in ("the state", "the memory"):
            return tensors
        try:
            stored = load(save({name: t.contiguous().clone() for name, t in tensors.items()}))
        except Exception as error:
            cause = f"{type(error).__name__}: {error}"
            raise broken(strategy, server_round, f"{what} cannot be stored: {cause}") from error
        return {name: stored[name] for name in tensors}

    _expect_same(
        strategy,
        Play(strategy=strategy, hand=hand),
        "if state and memory are stored and loaded between the rounds, the model differs; only the "
        "names and values of tensors are stored, and no other attributes",
    )


def _travels(strategy: Strategy) -> None:
    try:
        fields = pickle.dumps(vars(strategy))
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise broken(
            strategy, None, f"it cannot be sent to workers, because it cannot be pickled: {cause}"
        ) from error

    def send(strategy: Strategy) -> Strategy:
        arrived = object.__new__(type(strategy))
        vars(arrived).update(pickle.loads(fields))
        return arrived

    _expect_same(
        strategy,
        Play(strategy=strategy, send=send),
        "the model differs if each client has its own copy of the strategy, as in a run; a client "
        "may remember something only in its memory",
    )


def _takes_half(strategy: Strategy) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        Play(strategy=strategy, dtype=dtype).run()  # checks only types, and that numbers are finite
        _expect_close(
            strategy,
            Play(strategy=strategy, attendance=FIRST_ROUND).run(),
            Play(strategy=strategy, attendance=FIRST_ROUND, dtype=dtype).run(),
            f"with tensors in {dtype} the model differs from that in float32; compute in float32",
            HALF_TOLERANCE,
        )


def _takes_ranks(strategy: Strategy) -> None:
    for attendance in (FIRST_ROUND * ROUNDS, ALONE, NEVER_THE_SAME):
        Play(strategy=strategy, attendance=attendance, ranks=made_up.RANKS).run()


def _selects(strategy: Strategy) -> None:
    clients, drawn = range(20), (1, 4, 7, 15)
    for server_round in range(1, ROUNDS + 1):
        chosen = []
        for _ in range(2):
            try:
                chosen.append(sorted(strategy.select(server_round, drawn, clients, {})))
            except Exception as error:
                cause = f"{type(error).__name__}: {error}"
                raise broken(strategy, server_round, f"select fails: {cause}") from error
        if len(set(chosen[0])) != len(drawn) or len(chosen[0]) != len(drawn):
            raise broken(
                strategy,
                server_round,
                f"select returned {len(set(chosen[0]))} different clients, expected {len(drawn)}, "
                "as many as were drawn",
            )
        if strangers := set(chosen[0]) - set(clients):
            raise broken(
                strategy,
                server_round,
                f"select returned {min(strangers)}, which is not the number of a client",
            )
        if chosen[0] != chosen[1]:
            raise broken(
                strategy,
                server_round,
                "a second call of select returns other clients; the same arguments must give the "
                "same clients",
            )


def _penalises(strategy: Strategy) -> None:
    start = made_up.made_up_model(strategy, torch.float64)
    anchors = [start, {name: 2 * tensor for name, tensor in start.items()}]
    moved = [made_up.made_up_delta(strategy, 1, client, 0.1, torch.float64) for client in range(2)]
    here = [add(*pair) for pair in zip(anchors, moved, strict=True)]
    with blaming(strategy, None, "penalty", "", ""):
        expect_entrywise(strategy.penalty, here, anchors)


def _overrides(method: str) -> Callable[[Strategy], bool]:
    """Returns a function that returns True for strategies whose class defines the named method."""
    return lambda strategy: getattr(type(strategy), method) is not getattr(Strategy, method)


def _needs_sums_only(strategy: Strategy) -> None:
    _expect_close(
        strategy,
        Play(strategy=strategy).run(),
        Play(strategy=strategy, summed=True).run(),
        "sums_suffice is wrongly True: the mean of the updates, weighted by samples, gives another "
        "model than the single updates",
    )


RULES = (
    Rule("declares only names and values that the contract knows", _declares, first=True),
    Rule("plans only what a client can do, the same in every call", _plans, first=True),
    Rule("returns finite tensors of the right names, shapes and types", _returns, first=True),
    Rule("gives the same bits when the same rounds are played again", _repeats),
    Rule("changes no tensor in its arguments", _writes_nothing),
    Rule("changes the model if the clients changed their tensors", _moves),
    Rule("does not change the model's outputs if no client changed a tensor", _rests),
    Rule("works at clients if a method freezes tensors (drift, report)", _lets_tensors_rest),
    Rule("gives the same model if every client has twice as many images", _weighs),
    Rule("gives the same model for every order of the updates", _ignores_order),
    Rule("works with one client", _stands_alone),
    Rule("works with different clients in every round", _misses_some),
    Rule("remembers only what a checkpoint stores", _survives_checkpoints),
    Rule("gives the same model if each client has its own copy of the strategy", _travels),
    Rule("works with float16 and bfloat16", _takes_half),
    Rule("selects as many clients as are drawn (select)", _selects, _overrides("select")),
    Rule("has a penalty that is a sum over tensor entries", _penalises, _overrides("penalty")),
    Rule("moves no entry farther than step_bound", expect_bounded_steps, _overrides("step_bound")),
    Rule("works with clients of different ranks (any_rank)", _takes_ranks, lambda s: s.any_rank),
    Rule(
        "needs only the mean of updates (sums_suffice)", _needs_sums_only, lambda s: s.sums_suffice
    ),
)


def computed(ending: Ending) -> State:
    """Returns the weights with which a model computes, in float64.

    Two models with different low-rank factors compute the same if the products of the factors are
    equal. Therefore this function returns products of low-rank factors instead of the factors.

    Args:
        ending: The result of a play, with its model and its merged products.

    Returns:
        Each tensor that is not a factor, by name; and the product B·A (or B·R·A) plus the merged
        products of each low-rank pair, by path. If one factor of a pair is personal (never sent),
        the other factor is returned.
    """
    found = {name: tensor.double() for name, tensor in ending.model.items()}
    for path in lowrank.paths(ending.model):
        if path + lowrank.B in found:
            right = found.pop(path + lowrank.A)
            middle = found.pop(path + lowrank.R, torch.eye(len(right), dtype=torch.float64))
            found[path] = found.pop(path + lowrank.B) @ middle @ right
    for path, product in ending.merged.items():
        found[path] = found[path] + product if path in found else product
    return found


def _expect_same(strategy: Strategy, play: Play, finding: str) -> None:
    """Checks that a play ends with exactly the tensors of a play with default attributes.

    Args:
        strategy: The strategy that is tested.
        play: Some simulated rounds of this strategy with other attributes.
        finding: The text of the error if the tensors differ.
    """
    plain, other = Play(strategy=strategy).run(), play.run()
    if not all(_same_bits(a, b) for a, b in zip(plain, other, strict=True)):
        raise broken(strategy, ROUNDS, finding)


def _expect_close(
    strategy: Strategy, a: Ending, b: Ending, finding: str, tolerance: float = TOLERANCE
) -> None:
    """Checks that two models compute nearly the same.

    Args:
        strategy: The strategy that is tested.
        a: The result of a short test run of the strategy (a play, `testing.play`).
        b: The result of another play. The models of `a` and `b` must have nearly equal weights.
        finding: The text of the error if the models differ.
        tolerance: The largest difference, relative to 1 plus the largest number of the tensor.
    """
    one, other = computed(a), computed(b)
    for name in one | other:
        x, y = (tensors.get(name, torch.zeros(())) for tensors in (one, other))
        distance = float((x - y).abs().max())
        if distance > tolerance * (1 + float(x.abs().max())):
            raise broken(strategy, None, f"{finding}: {name} differs by {distance:.2g}")


def _same_bits(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(tensor, b[name]) for name, tensor in a.items())

"""The check of strategies: it finds every fault and says what is wrong, and lets the rest pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import strategies
from fl_vitlora import lowrank
from fl_vitlora.config.settings import setting
from fl_vitlora.errors import UserError
from fl_vitlora.state import State, add, mean, scale, subtract
from fl_vitlora.strategy import (
    ClientPlan,
    LocalWork,
    RoundContext,
    RoundResult,
    Strategy,
    Update,
    averaged,
    shares,
)
from fl_vitlora.testing import (
    StrategyError,
    check_strategy,
    findings,
    made_up_model,
    made_up_updates,
    rules_for,
    understood,
)

Q = "blocks.0.attn.qkv.adapters.q"
CALLS = itertools.count(1)
WAVE = torch.ones(1, dtype=torch.complex128)


@dataclass(frozen=True, kw_only=True)
class Wrong(Strategy):
    """FedAvg with momentum and a control variate, and with one fault."""

    fault: str

    def plan(self, server_round: int) -> ClientPlan:
        plans: dict[str, Any] = {
            "plans nothing": None,
            "freezes all": ClientPlan(frozen=("",)),
            "freezes a text": ClientPlan(frozen=".lora_A"),  # type: ignore[arg-type]
            "pushes away": ClientPlan(proximal_mu=-1.0),
            "plans by chance": ClientPlan(proximal_mu=float(torch.rand(()))),
            "forgets the frozen": ClientPlan(frozen=(".lora_A",)),
            "restarts a text": ClientPlan(restarted=".lora_A"),  # type: ignore[arg-type]
            "moves what restarts": ClientPlan(restarted=(".lora_A",)),
        }
        return plans.get(self.fault, ClientPlan())  # type: ignore[no-any-return]

    def broadcast(self, state: State) -> State:
        if self.fault == "broadcasts a part":
            return {"head.bias": torch.ones(3)}
        if self.fault == "broadcasts NaN":
            return scale(made_up_model(), float("nan"))
        return dict(state) if state.keys() == made_up_model().keys() else {}

    def drift(self, broadcast: State, memory: State) -> State:
        if self.fault == "drifts elsewhere":
            return {"norm.weight": torch.ones(6)}
        if self.fault == "drifts in another shape":
            return {"head.bias": torch.ones(1)}
        if self.fault == "expects a broadcast":
            return {"head.bias": broadcast["head.bias"]}
        if self.fault == "reads what rests" and broadcast:
            return {"head.bias": broadcast["patch_embed.proj.bias"].sum() * broadcast["head.bias"]}
        if self.fault == "writes to the memory" and memory:
            memory["head.bias"] *= 2
        return subtract(broadcast, memory) if broadcast and memory else {}

    def report(self, work: LocalWork, broadcast: State, memory: State) -> tuple[State, State]:
        new = scale(work.delta, 1 / (work.steps * work.rate))
        wrong: dict[str, Any] = {
            "reports a part": ({"head.bias": new["head.bias"]}, memory),
            "reports alone": new,
            "remembers nothing": (new, None),
            "remembers a number": ({}, {"steps": work.steps}),
        }
        if self.fault == "writes to the broadcast" and broadcast:
            broadcast["head.bias"] *= 2
        if self.fault == "writes to the delta":
            work.delta["head.bias"] *= 2
        return wrong.get(self.fault, (new, new))  # type: ignore[no-any-return]

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        if self.fault in SERVER_FAULTS:
            return SERVER_FAULTS[self.fault](model, updates, state)  # type: ignore[no-any-return]
        step = mean([u.delta for u in updates], [u.samples for u in updates])
        reports = mean([u.report for u in updates], [u.samples for u in updates])
        velocity = add(scale(state, 0.5), reports) if state else reports
        return add(model, add(step, scale(velocity, 0.01))), velocity


def needs_the_same(model: State, updates: Sequence[Update], state: State) -> tuple[State, State]:
    known = {str(u.client): u.delta["head.bias"] for u in updates}
    _ = [state[client] for client in known if state]
    return averaged(model, updates), known


def hides_a_number(model: State, updates: Sequence[Update], state: State) -> tuple[State, State]:
    rounds = getattr(state["rounds"], "hidden", 0) + 1 if state else 1
    mark = torch.zeros(1)
    mark.hidden = rounds  # type: ignore[attr-defined]
    return averaged(model, updates, 1 / rounds), {"rounds": mark}


def writes_to_the_state(
    model: State, updates: Sequence[Update], state: State
) -> tuple[State, State]:
    state["rounds"] = state.get("rounds", torch.zeros(1)) + 1
    return averaged(model, updates), state


def merges(path: str, right: Tensor, left: Tensor) -> Callable[..., tuple[State, State]]:
    pair = {path + lowrank.MERGED_A: right, path + lowrank.MERGED_B: left}
    return lambda model, updates, state: (averaged(model, updates) | pair, state)


def replaces(name: str, change: Callable[[Tensor], Tensor]) -> Callable[..., tuple[State, State]]:
    def aggregate(model: State, updates: Sequence[Update], state: State) -> tuple[State, State]:
        new = averaged(model, updates)
        return new | {name: change(new[name])}, state

    return aggregate


SERVER_FAULTS: dict[str, Callable[..., Any]] = {
    "forgets the frozen": lambda m, u, s: ({n: m[n] + d for n, d in u[0].delta.items()}, s),
    "forgets the state": lambda m, u, s: averaged(m, u),
    "counts rounds": lambda m, u, s: (averaged(m, u), {"rounds": 1}),
    "divides by none": replaces("head.bias", lambda w: w / torch.zeros(())),
    "turns": replaces("head.weight", lambda w: w.T),
    "widens": replaces("head.weight", lambda w: w.double()),
    "merges half": lambda m, u, s: (averaged(m, u) | {f"{Q}.merged_A": torch.ones(2, 6)}, s),
    "merges nowhere": merges("head", torch.ones(1, 6), torch.ones(3, 1)),
    "merges what does not fit": merges(Q, torch.ones(5, 6), torch.ones(6, 4)),
    "merges NaN": merges(Q, torch.ones(1, 6) / 0, torch.ones(6, 1)),
    "counts for itself": lambda m, u, s: (averaged(m, u, 1 / next(CALLS)), s),
    "draws": replaces("head.weight", lambda w: w + torch.rand(())),
    "writes to the model": lambda m, u, s: (averaged({n: w.add_(1) for n, w in m.items()}, u), s),
    "writes to an update": lambda m, u, s: (averaged(m, u), {"d": u[0].delta["head.bias"].add_(1)}),
    "writes to the state": writes_to_the_state,
    "ignores clients": lambda m, u, s: (dict(m), s),
    "wanders": replaces("head.weight", lambda w: w + 0.01),
    "merges too much": merges(Q, torch.ones(1, 6), torch.ones(6, 1)),
    "sums": lambda m, u, s: (averaged(m, u, 0.01 * sum(x.samples for x in u)), s),
    "takes the first": lambda m, u, s: (add(m, u[0].delta), s),
    "needs three": lambda m, u, s: (averaged(m, [*u, u[2]][:-1]), s),
    "needs the same clients": needs_the_same,
    "hides a number": hides_a_number,
    "remembers waves": lambda m, u, s: (averaged(m, u), {"v": WAVE}),
    "inverts": replaces("patch_embed.proj.bias", lambda w: w.diag().inverse().diag() * w * w),
    "cancels": replaces("head.weight", lambda w: (w + 1000) - 1000),
    "cuts to a rank": lambda m, u, s: (lowrank.cut(averaged(m, u), u[0].rank), s),
    "averages equally": lambda m, u, s: (add(m, mean([x.delta for x in u], [1] * len(u))), s),
}


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        ("plans nothing", "round 1: plan returned None, expected a ClientPlan"),
        ("freezes all", "freezes every tensor"),
        ("freezes a text", "'.lora_A', expected a tuple of endings"),
        ("restarts a text", "plan.restarted is '.lora_A', expected a tuple of endings"),
        ("pushes away", "proximal_mu is -1.0"),
        ("plans by chance", "a second call of plan returns another plan"),
        ("broadcasts a part", "the broadcast has missing or unknown tensors: "),
        ("broadcasts NaN", "the broadcast has NaN or infinity in patch_embed.proj.weight"),
        ("drifts elsewhere", r"the drift has missing or unknown tensors: \['norm.weight'\]"),
        ("drifts in another shape", r"head.bias of shape \(1,\), expected \(3,\)"),
        ("expects a broadcast", "round 1: drift fails: KeyError: 'head.bias'"),
        ("reads what rests", "round 2: drift fails: KeyError: 'patch_embed.proj.bias'"),
        ("reports a part", "the report has missing or unknown tensors: "),
        ("reports alone", r"report returned a dict, expected \(report, memory\)"),
        ("remembers nothing", "the new memory is a NoneType, expected a dictionary of tensors"),
        ("remembers a number", "the new memory has 'steps' of type int, expected tensors"),
        ("forgets the frozen", "the new model has missing or unknown tensors: .*lora_A"),
        ("forgets the state", r"aggregate returned a dict, expected \(model, state\)"),
        ("counts rounds", "the new state has 'rounds' of type int, expected tensors"),
        ("divides by none", "the new model has NaN or infinity in head.bias"),
        ("turns", r"the new model has head.weight of shape \(6, 3\), expected \(3, 6\)"),
        ("widens", "head.weight as torch.float64, expected torch.float32"),
        ("moves what restarts", "aggregate changed .*lora_A, although plan.restarted names it"),
        ("merges half", f"{Q}.merged_B is missing"),
        ("merges nowhere", "nothing can be merged at head: the model has no low-rank pair"),
        ("merges what does not fit", r"shapes \(5, 6\) and \(6, 4\), expected \(R, 6\)"),
        ("merges NaN", "NaN or infinity in .*merged_A"),
        ("counts for itself", "gave another model the second time"),
        ("draws", "gave another model the second time"),
        ("ignores clients", "aggregate did not change the model"),
        ("wanders", "all updates are zero, but .* change: head.weight differs by 0.01"),
        ("merges too much", "all updates are zero, but .*q differs by 1"),
        ("sums", "twice as many images at every client give another model"),
        ("takes the first", "depends on the order"),
        ("writes to the model", "round 1: it changed the model"),
        ("writes to an update", "round 1: it changed an update"),
        ("writes to the state", "round 1: it changed the state"),
        ("writes to the broadcast", "round 2: it changed the broadcast"),
        ("writes to the memory", "round 2: it changed the memory"),
        ("writes to the delta", "round 1: it changed the delta"),
        ("needs three", "aggregate fails with 1 of 4 clients: IndexError"),
        ("needs the same clients", "round 2: aggregate fails with 3 of 4 clients: KeyError"),
        ("hides a number", "are stored and loaded between the rounds, the model differs"),
        ("remembers waves", "round 2: the state cannot be stored: KeyError: torch.complex128"),
        (
            "inverts",
            r"aggregate fails with 4 of 4 clients: NotImplementedError: .*in torch.float16",
        ),
        ("cancels", "with tensors in torch.float16 the model differs .*: head.weight"),
    ],
)
def test_every_fault_is_found_and_told(fault: str, finding: str):
    strategy = Wrong(fault=fault)
    with pytest.raises(StrategyError, match=f"strategy Wrong: .*{finding}") as caught:
        check_strategy(strategy)
    assert "\n" not in str(caught.value)
    assert str(caught.value) in {problem for _, problem in findings(strategy)}


def test_the_faultless_one_passes():
    strategy = Wrong(fault="none")
    check_strategy(strategy)
    assert {problem for _, problem in findings(strategy)} == {None}


def test_every_rule_is_broken_by_some_fault():
    """A rule that nothing breaks would be a promise that nobody keeps."""
    tried = [
        *(Wrong(fault=fault) for fault in (*SERVER_FAULTS, "plans nothing", "remembers a number")),
        Wrong(fault="reads what rests"),
        Holding(),
        declared(any_rank=True, fault="cuts to a rank"),
        declared(sums_suffice=True, fault="takes the first"),
        declared(sums_suffice="yes"),
        Optional(fault="selects one"),
        Optional(fault="penalises by the norm"),
    ]
    told = [finding for strategy in tried for finding in findings(strategy)]
    assert {rule for rule, _ in told} == {rule for rule, problem in told if problem}
    assert len({rule for rule, _ in told}) == 19


@dataclass(frozen=True, kw_only=True)
class Optional(Strategy):
    """FedAvg with every optional method, and with one fault in one of them."""

    fault: str = "none"

    def select(
        self, server_round: int, drawn: Sequence[int], clients: Sequence[int], state: State
    ) -> Sequence[int]:
        wrong: dict[str, Any] = {
            "selects one": [1],
            "selects a stranger": [1, 2, 3, 99],
            "selects nothing": None,
            "selects by chance": torch.randperm(len(clients))[: len(drawn)].tolist(),
        }
        return wrong.get(self.fault, drawn)  # type: ignore[no-any-return]

    def plan(self, server_round: int, *, state: State | None = None, client: int = 0) -> ClientPlan:
        wrong = {
            "plans no epoch": ClientPlan(epochs=0),
            "plans backwards": ClientPlan(rate=-1.0),
        }
        if self.fault == "needs a state" and state is not None:
            state["rounds"]
        return wrong.get(self.fault, ClientPlan(epochs=1 + client))

    def penalty(
        self, parameters: Mapping[str, Tensor], anchor: Mapping[str, Tensor]
    ) -> Tensor | float:
        squares = torch.stack([(p - anchor[n]).square().sum() for n, p in parameters.items()])
        wrong: dict[str, Callable[[], Any]] = {
            "penalises by the norm": lambda: squares.sum().sqrt(),
            "penalises by tensor": lambda: squares,
            "penalises by NaN": lambda: squares.sum() * float("nan"),
            "penalises what is not there": lambda: parameters["norm.weight"],
        }
        return wrong[self.fault]() if self.fault in wrong else squares.sum()

    def aggregate(
        self,
        model: State,
        updates: Sequence[Update],
        state: State,
        context: RoundContext | None = None,
    ) -> tuple[State, State]:
        assert context is not None
        return averaged(model, updates), {"rounds": torch.tensor(float(context.round))}

    def metrics(
        self, model: State, updates: Sequence[Update], state: State
    ) -> Mapping[str, float | Mapping[int, float]]:
        wrong: dict[str, Any] = {
            "measures nothing": None,
            "measures in words": {"loss": "high"},
            "measures by name": {"loss": {"first": 1.0}},
        }
        return wrong.get(self.fault, {"loss": {u.client: u.loss for u in updates}})  # type: ignore[no-any-return]

    def should_stop(self, server_round: int, result: RoundResult) -> bool:
        return "perhaps" if self.fault == "wavers" else False  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        ("selects one", "round 1: select returned 1 different clients, expected 4"),
        ("selects a stranger", "round 1: select returned 99, which is not the number of a client"),
        ("selects nothing", "round 1: select fails: TypeError: 'NoneType' object is not iterable"),
        ("selects by chance", "a second call of select returns other clients"),
        ("plans no epoch", "plan.epochs is 0, expected a whole number >= 1"),
        ("plans backwards", "plan.rate is -1.0, expected a factor > 0"),
        ("needs a state", "round 1: plan fails: KeyError: 'rounds'"),
        ("penalises by the norm", "penalty of 2 clients that share a batch is"),
        ("penalises by tensor", r"the penalty has shape \(12,\), expected one number"),
        ("penalises by NaN", "the penalty is nan, expected a finite number"),
        ("penalises what is not there", "penalty fails: KeyError: 'norm.weight'"),
        ("measures nothing", "metrics returned a NoneType, expected a dictionary with a number"),
        (
            "measures in words",
            "metric 'loss' is 'high', expected a number, or a dictionary with a number for",
        ),
        ("measures by name", r"metric 'loss' is \{'first': 1.0\}, expected a number"),
        ("wavers", "should_stop returned 'perhaps', expected True or False"),
    ],
)
def test_faults_in_what_is_optional_are_found_and_told(fault: str, finding: str):
    check_strategy(Optional())
    with pytest.raises(StrategyError, match=finding):
        check_strategy(Optional(fault=fault))


def declared(fault: str = "none", **attributes: Any) -> Strategy:
    """Makes a strategy whose class says something of itself."""
    strategy: Strategy = type("Wrong", (Wrong,), attributes)(fault=fault)
    return strategy


@pytest.mark.parametrize(
    ("attributes", "finding"),
    [
        ({"sums_suffice": "yes"}, "sums_suffice is 'yes', expected True or False"),
        ({"personal": ".lora_B"}, "personal is '.lora_B', expected a tuple of endings"),
        (
            {"adapter": "burger"},
            r"adapter is 'burger', expected one of \('lora', 'lora_xs', 'sand",
        ),
        ({"personal": ("",)}, "freezes every tensor"),
        (
            {"personal": (".lora_b",)},
            "personal contains '.lora_b', but no tensor's name ends .* did you mean '.lora_B'",
        ),
        (
            {"plans": lambda self, r: ClientPlan()},
            "plans is not a name of the contract; .*mean plan",
        ),
        (
            {"sum_suffices": True},
            r"sum_suffices is not a name of the contract; .*mean sums_suffice\?",
        ),
        ({"lowrank": True}, r"lowrank is not a name of the contract; .*mean low_rank\?"),
        ({"__annotations__": {"reports": int}}, r"reports is not .* did you mean report\?"),
        (
            {"m": 0.5},
            "m has no type annotation; .* typed fields of a frozen, keyword-only dataclass",
        ),
        (
            {"__annotations__": {"m": float}, "m": 0.5},
            "Wrong has the field m, but is not a dataclass; hyper",
        ),
        (
            {"plan": lambda self: ClientPlan()},
            r"plan takes the arguments \(\) after self, expected .* plan\(self, server_round\)",
        ),
        (
            {"aggregate": lambda self, model, updates: (model, {})},
            r"takes the arguments \(model, updates\) .* aggregate\(self, model, updates, state\)",
        ),
        ({"drift": {}}, r"drift is {}, expected the method drift\(self, broadcast, memory\)"),
        (
            {"plan": lambda self, r: ClientPlan(frozen=(".loraA",))},
            "plan.frozen contains '.loraA', but no .* did you mean '.lora_A'",
        ),
        (
            {"any_rank": True, "fault": "cuts to a rank"},
            r"lora_A of shape \(1, 6\), expected \(2, 6\) \(clients of ranks 1, 2, 2, 1\)",
        ),
        (
            {"sums_suffice": True, "fault": "averages equally"},
            "sums_suffice is wrongly True: .* single updates: patch_embed.proj.weight differs by",
        ),
    ],
)
def test_what_a_class_says_of_itself_must_be_so(attributes: dict[str, Any], finding: str):
    with pytest.raises(StrategyError, match=f"strategy Wrong: .*{finding}"):
        check_strategy(declared(**attributes))


@pytest.mark.parametrize(
    "ending", [".lora_A", "mlp.fc1.adapters.fc1.lora_B", "blocks.11.norm1.weight", "cls_token"]
)
def test_a_plan_may_name_what_only_real_models_have(ending: str):
    plan = ClientPlan(frozen=(ending,), restarted=())
    kind = type("Right", (Wrong,), {"plan": lambda self, server_round: plan, "aggregate": lazy})
    check_strategy(kind(fault="none"))


def lazy(
    self: Strategy, model: State, updates: Sequence[Update], state: State
) -> tuple[State, State]:
    return averaged(model, updates), state


@dataclass(frozen=True)
class Positional(Strategy):
    m: float = 0.5
    aggregate = lazy


@dataclass(frozen=True, kw_only=True)
class Unbounded(Strategy):
    m: float = setting(0.5, "a share", "0..1")
    aggregate = lazy


@dataclass(frozen=True, kw_only=True)
class Outside(Strategy):
    m: float = setting(2.0, "a share", "[0, 1]")
    aggregate = lazy


@dataclass(frozen=True, kw_only=True)
class Needy(Strategy):
    EPSILON = 1e-8
    share: ClassVar[float] = 0.5
    m: float
    aggregate = lazy


@pytest.mark.parametrize(
    ("kind", "finding"),
    [
        ("Positional", "m is not keyword-only; .* fields of a frozen, keyword-only dataclass"),
        ("Unbounded", r'strategy.m: expected a range such as "\(0, 1\]" or .*, got \'0..1\''),
        (
            "Outside",
            r"default of a field does not fit its type or range: strategy.m: expected a number in "
            r"the range \[0, 1\], got 2.0",
        ),
        ("Needy", "strategy.m needs a value: --set strategy.m=VALUE"),
    ],
)
def test_hyper_parameters_that_are_none_are_told_when_loaded(kind: str, finding: str):
    with pytest.raises(UserError, match=finding) as caught:
        strategies.load(f"{__name__}:{kind}", {})
    assert "\n" not in str(caught.value)


def test_hyper_parameters_are_told_when_checked():
    with pytest.raises(
        StrategyError, match="Outside: the default of a field does not fit its type or range"
    ):
        check_strategy(Outside())
    check_strategy(Needy(m=1.0))
    *_, line = understood(Outside(m=1.0))
    assert line == "m = 1.0  [0, 1]  a share"


def test_what_was_understood_is_told():
    class Half(Wrong):
        personal = (".lora_B",)

    first, second, *_ = understood(Half(fault="moves what restarts"))
    assert first == (
        "needs LoRA: no, ranks may differ: no, sums suffice: no, personal: .lora_B, adapter: lora"
    )
    told = "round 1 freezes 0 of 8 tensors, restarts 4; the class overrides: "
    assert second == told + "plan, broadcast, drift, report, aggregate"
    assert understood(Wrong(fault="plans nothing"))[1].startswith("round 1 has no valid plan")


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        (
            "self.fault = 1",
            "FrozenInstanceError: .*cannot be changed: return what must be remembered",
        ),
        (
            "updates[0].delta[Q + lowrank.A]",
            "KeyError: .*this tensor was frozen in this round, so deltas do not",
        ),
        (
            "model[Q + lowrank.B]",
            "KeyError: .*this tensor is personal, so neither model nor deltas have it",
        ),
        (
            "add(model, updates[0].delta)",
            "states differ .*fl_vitlora.strategy.moved adds such deltas",
        ),
    ],
)
def test_errors_that_authors_meet_first_come_with_advice(line: str, advice: str):
    def aggregate(self: Strategy, model: State, updates: Any, state: State) -> Any:
        exec(line, {**globals(), "self": self, "model": model, "updates": updates})

    kind = type(
        "Wrong",
        (Wrong,),
        {
            "personal": (lowrank.B,),
            "plan": lambda self, server_round: ClientPlan(frozen=(lowrank.A,)),
            "aggregate": aggregate,
        },
    )
    with pytest.raises(StrategyError, match=f"round 1: aggregate fails .*{advice}"):
        check_strategy(kind(fault="none"))


def test_where_a_first_rule_is_broken_the_others_are_not_tried():
    strategy = Wrong(fault="counts rounds")
    found = findings(strategy)
    assert [problem is None for _, problem in found] == [True, True, False]
    assert len(rules_for(strategy)) > len(found)


def test_state_may_be_a_view_and_tensors_may_come_in_any_order():
    class Reversed(Wrong):
        """Sends and remembers everything from the last name to the first; turns its state."""

        def broadcast(self, state: State) -> State:
            return dict(reversed(state.items()))

        def report(self, work: LocalWork, broadcast: State, memory: State) -> tuple[State, State]:
            assert all(tensor.dtype != torch.bfloat16 for tensor in memory.values())
            new = scale(work.delta, 1 / (work.steps * work.rate))
            backwards = dict(reversed(new.items()))
            return backwards, {name: tensor.bfloat16() for name, tensor in backwards.items()}

        def aggregate(
            self, model: State, updates: Sequence[Update], state: State
        ) -> tuple[State, State]:
            new, velocity = super().aggregate(model, updates, state)
            views = {n: v.T.contiguous().T for n, v in velocity.items() if v.ndim == 2}
            assert not all(view.is_contiguous() for view in views.values())
            return dict(reversed(new.items())), velocity | views

    check_strategy(Reversed(fault="none"))


@dataclass(frozen=True, kw_only=True)
class Holding(Strategy):
    """Has something at hand: a function that cannot be sent, or a secret way to the clients."""

    thing: Any = field(default_factory=lambda: lambda: None)

    def plan(self, server_round: int) -> ClientPlan:
        if server_round == 1 and isinstance(self.thing, dict):
            self.thing.clear()
        return ClientPlan()

    def drift(self, broadcast: State, memory: State) -> State:
        del broadcast, memory
        return dict(self.thing) if isinstance(self.thing, dict) else {}

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        if isinstance(self.thing, dict):
            self.thing.update(mean([u.delta for u in updates], [u.samples for u in updates]))
        return averaged(model, updates), state


def test_what_cannot_be_sent_to_the_clients_is_found():
    with pytest.raises(StrategyError, match=r"it cannot be sent to workers, because .*pickle"):
        check_strategy(Holding())


def test_what_reaches_the_clients_in_secret_is_found():
    problems = [found.problem for found in findings(Holding(thing={}))]
    assert any("the model differs if each client has its own copy" in (p or "") for p in problems)


def keeps_b(model: State, updates: Sequence[Update], state: State) -> tuple[State, State]:
    assert not any(name.endswith(lowrank.B) for n in (model, updates[0].delta) for name in n)
    return averaged(model, updates), state


def refactors(model: State, updates: Sequence[Update], state: State) -> tuple[State, State]:
    """FlexLoRA in short: the mean of products, factored again."""
    clients = [lowrank.trained(model, update) for update in updates]
    refactored = lowrank.refactored(model, shares(updates), clients)
    return averaged(model, updates) | refactored, state


def stacks(model: State, updates: Sequence[Update], state: State) -> tuple[State, State]:
    """FLoRA in short: what was trained is merged, and B begins at zero."""
    new = averaged(model, updates)
    clients = [lowrank.trained(model, update) for update in updates]
    for path in lowrank.paths(model):
        tall, wide = lowrank.stack(shares(updates), clients, path)
        new |= {path + lowrank.MERGED_A: tall.float(), path + lowrank.MERGED_B: wide.float()}
        new[path + lowrank.B].zero_()
    return new, state


def averages_r(model: State, updates: Sequence[Update], state: State) -> tuple[State, State]:
    assert {name.rpartition(".")[2] for name in updates[0].delta} & {"lora_A", "lora_R"} == {
        "lora_R"
    }
    return averaged(model, updates), state


@pytest.mark.parametrize(
    ("half", "attributes", "frozen"),
    [
        (keeps_b, {"personal": (".lora_B",), "sums_suffice": True}, ()),
        (refactors, {"any_rank": True}, ()),
        (stacks, {"any_rank": True}, ()),
        (averages_r, {"adapter": "sandwich", "sums_suffice": True}, (".lora_A", ".lora_B")),
    ],
)
def test_strategies_of_every_kind_pass(
    half: Callable[..., tuple[State, State]], attributes: dict[str, Any], frozen: tuple[str, ...]
):
    methods = {
        "plan": lambda self, server_round: ClientPlan(frozen=frozen),
        "aggregate": lambda self, *given: half(*given),
    }
    check_strategy(type("Right", (Wrong,), {**methods, **attributes})(fault="none"))


def test_made_up_clients_of_a_smaller_rank_change_nothing_beyond_it():
    updates = made_up_updates(declared(any_rank=True), 1, ranks=(1, 2, 2, 1))
    assert [update.rank for update in updates] == [1, 2, 2, 1]
    for update in updates:
        for tensors in (update.delta, update.report):
            beyond = [
                tensors[f"{Q}.lora_A"][update.rank :],
                tensors[f"{Q}.lora_B"][:, update.rank :],
            ]
            assert all(bool((part == 0).all()) for part in beyond)
            assert bool((tensors[f"{Q}.lora_A"][: update.rank] != 0).all())


@dataclass(frozen=True, kw_only=True)
class Bounded(Strategy):
    """Federated averaging at a server rate, which states how far it moves entries."""

    rate: float = 1.0
    bound: float | None = 1.0
    merges: bool = False

    def step_bound(self) -> float | None:
        return self.bound

    def aggregate(
        self, model: State, updates: Sequence[Update], state: State
    ) -> tuple[State, State]:
        new = averaged(model, updates, self.rate)
        if self.merges:
            moved = mean([update.delta for update in updates], shares(updates))
            new[f"{Q}.merged_A"] = moved[f"{Q}.lora_A"]
            new[f"{Q}.merged_B"] = moved[f"{Q}.lora_B"]
        return new, state


@pytest.mark.parametrize(("rate", "bound"), [(1.0, 1.0), (3.0, 3.0), (9.0, None)])
def test_a_strategy_that_moves_no_farther_than_it_states_passes(rate: float, bound: float | None):
    check_strategy(Bounded(rate=rate, bound=bound))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rate": 9.0}, r"step_bound returns 1, but an entry of \S+ moves by"),
        ({"merges": True}, "step_bound returns 1, but aggregate merges"),
    ],
)
def test_a_strategy_that_moves_farther_than_it_states_is_found(given: dict[str, Any], told: str):
    with pytest.raises(StrategyError, match=told):
        check_strategy(Bounded(**given))

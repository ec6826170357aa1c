"""The guard: a client refuses instructions that no honest server can send.

A client computes by itself what an honest server sends. The client takes the frozen weights and the
first values of all trained tensors from the model file and the settings, never from the server.
Therefore the client knows:

* the model of round 1, up to the rounding of another processor;
* how far training can have moved an entry since round 1 (`training.movement`);
* the learning rate, the epochs, and the frozen tensors, from the settings and the strategy.

If an instruction differs from this knowledge, the client refuses the instruction with a message of
one line, before it trains or evaluates. The guard does not notice a dishonest server that stays
within these bounds, and the bounds grow with the number of rounds that the server states.
`docs/trust.md` says what a dishonest server could recover within these bounds.
"""

from __future__ import annotations

import math
from dataclasses import fields

from fl_vitlora.config import Config
from fl_vitlora.finetuning import methods
from fl_vitlora.flower.client.workspace import Workspace
from fl_vitlora.flower.wire.round_message import RoundMessage
from fl_vitlora.privacy.agreement import Assignment
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy
from fl_vitlora.strategy.extras import call
from fl_vitlora.training.local import scheduled_rate
from fl_vitlora.training.movement import excess, reach
from fl_vitlora.training.optimizers import rate_factor

WORDS = {  # the fields of an `Assignment` in words, for messages
    "frozen": "the frozen tensors",
    "restarted": "the restarted tensors",
    "epochs": "the number of epochs",
    "proximal_mu": "the proximal weight",
    "clipping_norm": "the clipping norm",
}


def check_instruction(
    asked: RoundMessage, model: State, worker: Workspace, strategy: Strategy, client: int
) -> None:
    """Refuses an instruction that no honest server can send; does nothing without a guard.

    Args:
        asked: The instruction, as it was read.
        model: All exchanged tensors of the instruction, in the server's coordinates.
        worker: The workspace, which has the settings and the tensors before the first round.
        strategy: The strategy of the run.
        client: The number of the client.

    Raises:
        ValueError: If the instruction differs from the instruction of an honest server. The message
            names the difference.
    """
    config, steps = worker.config, worker.config.privacy.guard_steps
    if steps is None:
        return
    if not 1 <= asked.round <= config.rounds:
        raise _refusal(f"round {asked.round}", f"a round from 1 to {config.rounds}")
    if asked.merges != (0, 0) or asked.merged or asked.increments:
        raise _refusal("sums for frozen weights", "none, because frozen weights never change")
    if asked.broadcast:
        raise _refusal("tensors beside the model", "the tensors of the model alone")
    if asked.views is None:
        _check_work(asked, config, strategy, client)
    done = asked.round - (asked.views is None)  # a model is evaluated after its round
    _check_tensors(model, worker, strategy, done, steps)


def _check_work(asked: RoundMessage, config: Config, strategy: Strategy, client: int) -> None:
    """Refuses an instruction whose work differs from the settings and the strategy's plan."""
    plan = call(strategy.plan, asked.round, client=client)
    rate = scheduled_rate(config.training, asked.round, config.rounds) * plan.rate
    if not math.isclose(asked.rate, rate, rel_tol=1e-9):
        raise _refusal(f"{asked.rate:g} as the learning rate", f"{rate:g}")
    honest = Assignment(
        round=asked.round,
        rate=asked.rate,
        epochs=plan.epochs,
        frozen=tuple(sorted(plan.frozen)),
        restarted=tuple(sorted(plan.restarted)),
        proximal_mu=plan.proximal_mu,
    )
    for each in fields(Assignment):
        got, wanted = (getattr(one, each.name) for one in (asked.assignment, honest))
        if got != wanted:
            what = WORDS.get(each.name, each.name)
            raise _refusal(f"{_shown(got)} as {what}", _shown(wanted))


def _check_tensors(
    model: State, worker: Workspace, strategy: Strategy, done: int, steps: int
) -> None:
    """Refuses tensors that are farther from their start than training can move them."""
    config, factor = worker.config, strategy.step_bound()
    if factor is None:
        raise _refusal("any tensors", "none, since the strategy states no bound of its steps")
    far = reach(config.training, config.rounds, done, steps, factor)
    own = methods.rates(worker.backbone.model)
    for name, tensor in model.items():
        distance = far * rate_factor(name, config.training, own)
        away, allowed = excess(tensor, worker.initial[name], distance, steps * done)
        if away:
            raise _refusal(
                f"tensor {name} with an entry {away:.3g} away from its start",
                f"at most {allowed:.3g} after {done} rounds",
            )


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value[:3])) + (", ..." if len(value) > 3 else "") or "none"
    return "none" if value is None else str(value)


def _refusal(got: str, expected: str) -> ValueError:
    return ValueError(f"instruction refused (privacy.guard_steps): got {got}, expected {expected}")

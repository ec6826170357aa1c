"""Checks that a strategy moves no entry of the model farther than its `step_bound` says."""

from __future__ import annotations

import torch

from fl_vitlora.state import State
from fl_vitlora.strategy import RoundContext, Strategy
from fl_vitlora.strategy.extras import call
from fl_vitlora.testing import made_up
from fl_vitlora.testing.blaming import broken
from fl_vitlora.testing.play import made_up_updates

ROUNDS = 4
ROUNDING = 1e-4  # relative; float32 sums of a few clients are far more exact


def expect_bounded_steps(strategy: Strategy) -> None:
    """Compares the steps of the model in made-up rounds with the bound that the strategy states.

    Args:
        strategy: A strategy whose `step_bound` may return a number.

    Raises:
        StrategyError: If an entry moves farther than the bound times the largest move of a client,
            or if the strategy merges pairs, for which no bound exists.
    """
    factor = strategy.step_bound()
    if factor is None:
        return
    model, state = made_up.made_up_model(strategy), State()
    for server_round in range(1, ROUNDS + 1):
        updates = made_up_updates(strategy, server_round, list(made_up.CLIENTS))
        context = RoundContext(round=server_round, participants=made_up.CLIENTS, failures={})
        new, state = call(strategy.aggregate, model, updates, state, context=context)
        if strangers := new.keys() - model.keys():
            raise broken(
                strategy,
                server_round,
                f"step_bound returns {factor:g}, but aggregate merges {min(strangers)}; return "
                "None, because frozen weights then change",
            )
        for name, tensor in new.items():
            moved = (tensor - model[name]).abs()
            deltas = [u.delta.get(name, torch.zeros_like(moved)).abs() for u in updates]
            farthest = torch.stack(deltas).amax(dim=0)
            allowed = factor * farthest * (1 + ROUNDING) + ROUNDING * model[name].abs()
            if bool((moved > allowed).any()):
                raise broken(
                    strategy,
                    server_round,
                    f"step_bound returns {factor:g}, but an entry of {name} moves by "
                    f"{float((moved - allowed).max()):.2g} more than the farthest client times "
                    "this number",
                )
        model = new

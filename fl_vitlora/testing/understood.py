"""Describes a strategy as the checks understand it, so that its author can find mistakes."""

from __future__ import annotations

import dataclasses

from fl_vitlora.strategy import Strategy
from fl_vitlora.testing import made_up
from fl_vitlora.testing.blaming import StrategyError
from fl_vitlora.testing.declared import HALVES
from fl_vitlora.testing.play import Play


def understood(strategy: Strategy) -> list[str]:
    r"""Returns the lines of a description: attributes, first round, and each hyper-parameter.

    Example:
        >>> import strategies
        >>> print(*understood(strategies.load("ffa_lora", {})), sep="\n")
        needs LoRA: yes, ranks may differ: no, sums suffice: yes, personal: none, adapter: lora
        round 1 freezes 4 of 12 tensors; the class overrides: plan, aggregate
    """
    personal = ", ".join(strategy.personal) if isinstance(strategy.personal, tuple) else "?"
    own = [h for h in HALVES if getattr(type(strategy), h) is not getattr(Strategy, h)]
    return [
        f"needs LoRA: {_said(strategy.low_rank)}, ranks may differ: {_said(strategy.any_rank)}, "
        f"sums suffice: {_said(strategy.sums_suffice)}, personal: {personal or 'none'}, "
        f"adapter: {strategy.adapter}",
        f"{_first_round(strategy)}; the class overrides: {', '.join(own)}",
        *(_hyper_parameter(strategy, item) for item in dataclasses.fields(strategy)),
    ]


def _said(flag: object) -> str:
    return {True: "yes", False: "no"}.get(flag, "?") if isinstance(flag, bool) else "?"


def _first_round(strategy: Strategy) -> str:
    """Describes the plan of the first round for the made-up model."""
    try:
        model, plan = made_up.made_up_model(strategy), Play(strategy=strategy).plan(1)
    except (StrategyError, TypeError):
        return "round 1 has no valid plan"
    rested, restarted = (
        sum(name.endswith(endings) for name in model) for endings in (plan.frozen, plan.restarted)
    )
    told = f"round 1 freezes {rested} of {len(model)} tensors"
    told += f", restarts {restarted}" if restarted else ""
    return told + (f", penalty mu = {plan.proximal_mu:g}" if plan.proximal_mu else "")


def _hyper_parameter(strategy: Strategy, item: dataclasses.Field[object]) -> str:
    known = (item.metadata.get("interval"), item.metadata.get("explanation"))
    value = f"{item.name} = {getattr(strategy, item.name)!r}"
    return "  ".join([value, *(str(told) for told in known if told)])

"""Codecs, sending intervals and random generators, which both sides derive from the settings."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fl_vitlora.communication.lanes import Lanes, parse_lane, read_lanes
from fl_vitlora.config import Config, LanesConfig, to_mapping
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning.groups import LORA_A, LORA_B
from fl_vitlora.rng import derive_seed
from fl_vitlora.strategy import Strategy
from fl_vitlora.strategy.extras import call, wants


@functools.lru_cache(maxsize=8)
def lanes_of(config: LanesConfig) -> Lanes:
    """Returns the codec and sending interval of each group of tensors, for uplink or downlink."""
    specs: dict[str, Any] = to_mapping(config)
    return read_lanes(specs, specs.pop("codec"))


def chance(seed: int, *path: str | int) -> np.random.Generator:
    """Returns the random generator that the codecs use for one message."""
    return np.random.default_rng(derive_seed(seed, "codec", *path))


def check_codecs(config: Config, strategy: Strategy) -> None:
    """Refuses unknown codecs, and codecs that do not fit the other settings.

    Args:
        config: The configuration of the experiment.
        strategy: The strategy of the run.

    Raises:
        UserError: If a codec is refused; the message names the setting, the reason and a remedy.
    """
    for direction in ("uplink", "downlink"):
        fed_back = direction == "downlink" or config.compression.error_feedback
        specs: dict[str, str | None] = to_mapping(getattr(config.compression, direction))
        for name, spec in specs.items():
            where = f"compression.{direction}.{name}"
            try:
                codec = parse_lane("float32" if spec is None else spec).codec
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
            if fed_back and not codec.contracts:
                raise UserError(
                    f"{where}: the error of {codec} can be larger than the vector, so with error "
                    "feedback it would grow from round to round; take nearest rounding, more "
                    "levels or shorter blocks"
                )
    if config.privacy.secure_aggregation and not lanes_of(config.compression.uplink).exact:
        raise UserError(
            "compression.uplink with privacy.secure_aggregation: masked words look random, so no "
            "codec makes them shorter; remove one of the two settings, or set codecs only for the "
            "downlink"
        )
    _check_rests(config, strategy)


def _check_rests(config: Config, strategy: Strategy) -> None:
    """Refuses sending intervals with which trained changes would never reach the server.

    Raises:
        UserError: If a group is never sent; the message names the group and the reason.
    """
    uplink = lanes_of(config.compression.uplink)
    rarely = [group for group in (LORA_A, LORA_B) if uplink.by_group[group].every > 1]
    if not rarely:
        return
    if wants(strategy.plan, "state"):
        raise UserError(
            f"compression.uplink every({uplink.by_group[rarely[0]].every}) with strategy "
            f"{config.strategy.name}: the plan depends on the strategy's state, so it is "
            "not known in advance whether trained changes are sent; send every group in every "
            "round"
        )
    plans = {
        number: call(strategy.plan, number, client=0) for number in range(1, config.rounds + 1)
    }
    for group in rarely:
        every, name = uplink.by_group[group].every, f"{config.strategy.name}: .{group}"
        anew = {ending for plan in plans.values() for ending in plan.restarted} | {
            *strategy.rebased
        }
        if f".{group}" in anew:
            raise UserError(
                f"compression.uplink every({every}) with strategy {name} is overwritten in every "
                "round, so changes that are not sent are lost; send the group in every round"
            )
        trained = {n for n, plan in plans.items() if not f".{group}".endswith(plan.frozen)}
        if trained and not any(n % every == 0 or n == config.rounds for n in trained):
            raise UserError(
                f"compression.uplink every({every}) with strategy {name} is never sent in a round "
                "in which it is trained; take another interval"
            )

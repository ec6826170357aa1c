"""What both ends of the wire derive from the configuration: lanes, and chance; what is refused."""

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


@functools.lru_cache(maxsize=8)
def lanes_of(config: LanesConfig) -> Lanes:
    """Reads how tensors travel in one direction."""
    specs: dict[str, Any] = to_mapping(config)
    return read_lanes(specs, specs.pop("codec"))


def chance(seed: int, *path: str | int) -> np.random.Generator:
    """Makes the generator of what codecs leave to chance in one message."""
    return np.random.default_rng(derive_seed(seed, "codec", *path))


def check_codecs(config: Config, strategy: Strategy) -> None:
    """Refuses codecs that are none, and those that cannot be combined with what else was chosen.

    Args:
        config: The experiment.
        strategy: What clients run of it.

    Raises:
        UserError: With the place, the reason, and what would do instead.
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
                    f"{where}: {codec} strays further than its input is long, so that errors that "
                    "are fed back would grow; take nearest rounding, more levels or shorter blocks"
                )
    if config.privacy.secure_aggregation and not lanes_of(config.compression.uplink).exact:
        raise UserError(
            "compression.uplink with privacy.secure_aggregation: masked words look random and no "
            "codec makes them shorter; leave one away, or take codecs for compression.downlink only"
        )
    _check_rests(config, strategy)


def _check_rests(config: Config, strategy: Strategy) -> None:
    """Refuses lanes in which what clients train would never arrive.

    Raises:
        UserError: With the group, and why.
    """
    plans = {number: strategy.plan(number) for number in range(1, config.rounds + 1)}
    uplink = lanes_of(config.compression.uplink)
    for group in (LORA_A, LORA_B):
        every, name = uplink.by_group[group].every, f"{config.strategy.name}: .{group}"
        if every == 1:
            continue
        anew = {ending for plan in plans.values() for ending in plan.restarted} | {
            *strategy.rebased
        }
        if f".{group}" in anew:
            raise UserError(
                f"compression.uplink every({every}) with strategy {name} is written anew in every "
                "round, so that what is not sent in a round is lost; let it travel in every round"
            )
        trained = {n for n, plan in plans.items() if not f".{group}".endswith(plan.frozen)}
        if trained and not any(n % every == 0 or n == config.rounds for n in trained):
            raise UserError(
                f"compression.uplink every({every}) with strategy {name} never travels in a round "
                "in which it is trained; take another interval"
            )

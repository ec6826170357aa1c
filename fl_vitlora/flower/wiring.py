"""What both ends of the wire derive from the configuration: lanes, and chance; what is refused."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fl_vitlora.communication.lanes import Lanes, parse_lane, read_lanes
from fl_vitlora.config import Config, LanesConfig, to_mapping
from fl_vitlora.errors import UserError
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
                codec = parse_lane(spec or "float32").codec
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
    uplink = lanes_of(config.compression.uplink)
    for ending in strategy.plan(1).restarted:
        if uplink.of(ending).every > 1:
            raise UserError(
                f"compression.uplink every({uplink.of(ending).every}) with strategy "
                f"{config.strategy.name}: {ending.lstrip('.')} begins every round anew, so that "
                "what is not sent in a round is lost; let it travel in every round"
            )

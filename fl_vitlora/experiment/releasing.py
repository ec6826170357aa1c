"""What the strategy is given of a round's updates: themselves, or their noisy mean."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fl_vitlora.config import Config, PrivacyConfig
from fl_vitlora.flower.strategies.accounting import statement, with_chosen_noise
from fl_vitlora.privacy.noise import (
    FROM_SEED,
    FROM_SYSTEM,
    mean_update,
    released,
    repeatable_key,
    secret_key,
)
from fl_vitlora.strategy import Update


@dataclass(frozen=True, kw_only=True)
class Release:
    """Differential privacy at the server, where it is asked for.

    Attributes:
        config: The experiment.
        secret_seed: The seed of the noise where it must not follow from the seed of the run, which
            clients know. Whoever knows the noise can subtract it.
    """

    config: Config
    secret_seed: int | None = field(default=None, repr=False)

    @functools.cached_property
    def noise(self) -> PrivacyConfig:
        """Returns the settings of privacy with the noise that a target of ε asks for."""
        return with_chosen_noise(self.config.privacy, self.config.rounds)

    def release(
        self, server_round: int, updates: Sequence[Update], cohort: int
    ) -> Sequence[Update]:
        """Returns the updates of a round, or where they are private their noisy mean alone."""
        privacy = self.noise
        if privacy.clipping_norm is None:
            return updates
        key = repeatable_key(self.config.seed) if self.secret_seed is None else secret_key
        noisy = released(
            mean_update(updates, [1.0] * len(updates)),
            cohort=cohort,
            clipping_norm=privacy.clipping_norm,
            noise_multiplier=privacy.noise_multiplier,
            key=key(server_round),
        )
        return [noisy]

    def statement(self, told: dict[str, Any] | None, rounds: int) -> dict[str, Any] | None:
        """Returns what `result.json` says of differential privacy; None without it.

        Args:
            told: What the strategy's own accountant says, if it has one.
            rounds: The number of rounds that were run.
        """
        said = told or statement(self.noise, rounds)
        source = FROM_SEED if self.secret_seed is None else FROM_SYSTEM
        return said | {"noise_from": source} if said else None

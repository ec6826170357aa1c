"""Gives the strategy a round's updates, or only a noisy mean under differential privacy."""

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
    """An object that applies differential privacy at the server, if the settings require it.

    Attributes:
        config: The configuration of the experiment.
        secret_seed: The secret seed of the noise in a deployment. The seed of the run is not used,
            because clients know the seed of the run and could subtract the noise. In a simulation,
            `secret_seed` is None, and the noise is drawn with the seed of the run.
    """

    config: Config
    secret_seed: int | None = field(default=None, repr=False)

    @functools.cached_property
    def noise(self) -> PrivacyConfig:
        """Returns the privacy settings; if a target ε is set, the noise is chosen to reach it."""
        return with_chosen_noise(self.config.privacy, self.config.rounds)

    def release(
        self, server_round: int, updates: Sequence[Update], cohort: int
    ) -> Sequence[Update]:
        """Returns the updates of a round, or under differential privacy only their noisy mean.

        Args:
            server_round: The number of the round, from 1.
            updates: The usable updates of the round.
            cohort: The number of clients that were asked for an update.
        """
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

    def statement(self, own: dict[str, Any] | None, rounds: int) -> dict[str, Any] | None:
        """Returns the statement on differential privacy for `result.json`, or None without noise.

        Args:
            own: The statement that the strategy has computed; None without such a statement.
            rounds: The number of rounds that were run.
        """
        said = own or statement(self.noise, rounds)
        source = FROM_SEED if self.secret_seed is None else FROM_SYSTEM
        return said | {"noise_from": source} if said else None

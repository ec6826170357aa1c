"""Checks whether a run can use secure aggregation or differential privacy."""

from __future__ import annotations

from fl_vitlora.config import Config, PrivacyConfig
from fl_vitlora.errors import UserError
from fl_vitlora.flower.strategies.accounting import epsilon, with_chosen_noise
from fl_vitlora.flower.strategies.aggregators import AnyStrategy
from fl_vitlora.population.sampling import cohort_size
from fl_vitlora.privacy.secure_sum import FEWEST
from fl_vitlora.strategy import Strategy
from fl_vitlora.strategy.extras import wants

WRAPPER = "flwr.serverapp.strategy:DifferentialPrivacyServerSideFixedClipping"


def sees_only_sums(config: Config) -> bool:
    """Returns True if the strategy gets only the mean of the updates, and no single update."""
    return config.privacy.secure_aggregation or config.privacy.clipping_norm is not None


def check_privacy(config: Config, strategy: AnyStrategy) -> None:
    """Refuses settings with which secure aggregation or differential privacy is impossible.

    Args:
        config: The configuration of the experiment.
        strategy: The strategy of the run, from this project or from Flower.

    Raises:
        UserError: If secure aggregation or differential privacy is impossible; the message gives
            the reason and a remedy.
    """
    privacy, cohort = config.privacy, cohort_size(config.clients, config.fraction)
    _check_noise(privacy)
    check_client_keys(privacy)
    if sees_only_sums(config):
        _check_strategy(config, strategy)
    if privacy.secure_aggregation and cohort < FEWEST:
        raise UserError(
            f"privacy.secure_aggregation: a sum of {cohort} updates reveals single updates, so at "
            f"least {FEWEST} clients must take part in a round; raise --clients or --fraction"
        )
    chosen = with_chosen_noise(privacy, config.rounds)
    epsilon(  # finds a missing package now, and not only at the end of the run
        noise_multiplier=chosen.noise_multiplier, releases=config.rounds, delta=privacy.delta
    )


def check_client_keys(privacy: PrivacyConfig) -> None:
    """Refuses settings that protect secure sums, if the run has no secure sums.

    Raises:
        UserError: If one of these settings is used without secure aggregation.
    """
    wish = "client_keys" if privacy.client_keys else "" if privacy.reveal_seeds else "reveal_seeds"
    if wish and not privacy.secure_aggregation:
        raise UserError(
            f"privacy.{wish} protects secure sums, but this run has none; add "
            f"--set privacy.secure_aggregation=true, or remove privacy.{wish}"
        )


def _check_noise(privacy: PrivacyConfig) -> None:
    """Refuses noise that is set twice, and noise without a clipping norm."""
    noise, target = privacy.noise_multiplier, privacy.target_epsilon
    if noise and target is not None:
        raise UserError(
            f"privacy.target_epsilon {target:g} chooses the noise, so it cannot be combined with "
            f"privacy.noise_multiplier {noise:g}; remove one of the two"
        )
    if (noise or target is not None) and privacy.clipping_norm is None:
        wish = f"noise_multiplier {noise:g}" if noise else f"target_epsilon {target:g}"
        raise UserError(
            f"privacy.{wish} without privacy.clipping_norm: noise only hides updates of a bounded "
            "norm; set the bound, for example --set privacy.clipping_norm=1"
        )


def _check_strategy(config: Config, strategy: AnyStrategy) -> None:
    """Refuses a strategy that needs single updates."""
    secure, name = config.privacy.secure_aggregation, config.strategy.name
    wish, deed = (
        ("privacy.secure_aggregation", "a secure sum hides")
        if secure
        else ("privacy.clipping_norm", "are averaged before the strategy sees them")
    )
    if not isinstance(strategy, Strategy):
        instead = "" if secure else f", or Flower's own for differential privacy: {WRAPPER}"
        raise UserError(
            f"{wish}: strategy {name} of Flower needs single updates, which {deed}; take "
            f"a strategy of this project that needs only sums, such as fedavg{instead}"
        )
    if not strategy.sums_suffice:
        raise UserError(
            f"{wish}: strategy {name} needs single updates, which {deed}; take a strategy that "
            "needs only sums, such as fedavg"
        )
    if secure and wants(strategy.plan, "client"):
        raise UserError(
            f"{wish}: strategy {name} gives each client a plan of its own (plan asks for client), "
            "and the masks cancel only if all clients of a round get the same plan; take a "
            "strategy with one plan for all, such as fedavg"
        )
    bounds = config.privacy.clipping_norm is not None
    if bounds and type(strategy).report is not Strategy.report:
        raise UserError(
            f"privacy.clipping_norm: clients of strategy {name} send reports and remember them, "
            "and clipping would change the reports; take a strategy without reports, such as fedavg"
        )
    if config.finetuning.client_ranks:
        raise UserError(
            f"{wish} with finetuning.client_ranks: only updates of the same rank can be summed "
            "before the strategy sees them; remove client_ranks"
        )

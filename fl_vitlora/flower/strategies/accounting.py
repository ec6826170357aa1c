"""The privacy loss of a run under differential privacy: ε for a chosen δ.

Flower's accountant of Rényi differential privacy (RDP) adds up the rounds. Each of T rounds
releases one mean with Gaussian noise of multiplier z. α > 1 is an order of RDP, and δ is the
probability of (ε, δ)-differential privacy:

    RDP of T rounds at order α = T · α / (2 z²)
    ε = min over α of  RDP + ln(1 - 1/α) - ln(δ·α) / (α - 1)

The participants of a round are drawn from the run's seed, which is not secret. Therefore sampling
gives no extra privacy: ε is computed as if every client took part in every round. If only a
fraction of the clients trains in a round, ε is an upper bound.

Source: Mironov, arXiv 1702.07476, corollary 3; Canonne, Kamath and Steinke, arXiv 2004.00010,
proposition 12.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from fl_vitlora.config import PrivacyConfig
from fl_vitlora.errors import UserError

if TYPE_CHECKING:
    from flwr.supercore.privacy_accounting import PrivacyAccountant

LEAST_NOISE, MOST_NOISE = 1e-3, 1e6  # the noise multiplier is searched between these numbers
NOISE_TOLERANCE = 1e-4  # largest relative error of the noise multiplier that is found
EVERYBODY = 1  # any number of clients gives the same ε without amplification by sampling


def make_accountant(delta: float, clients: int) -> PrivacyAccountant:
    """Makes Flower's accountant, without amplification by sampling.

    Args:
        delta: The probability δ of (ε, δ)-differential privacy, in (0, 1).
        clients: The number of clients of the federation.

    Raises:
        UserError: If the package dp-accounting is not installed.
    """
    from flwr.supercore import privacy_accounting as flower
    from flwr.supercore.privacy_accounting.rdp_accountant import RdpAccountant

    terms = flower.PrivacyConfig(
        target_delta=delta,
        population_size=clients,
        neighboring_relation=flower.NeighboringRelation.ADD_OR_REMOVE_ONE,
        sampling_method=flower.SamplingMethod.NO_AMPLIFICATION,
    )
    try:
        return RdpAccountant(terms)
    except ImportError:
        raise UserError(
            "to compute ε, install the package dp-accounting: python -m pip install -e '.[privacy]'"
        ) from None


def epsilon(*, noise_multiplier: float, releases: int, delta: float) -> float:
    """Returns the privacy loss ε of a client after some rounds.

    Args:
        noise_multiplier: The noise multiplier z: the standard deviation of the noise, divided by
            the sensitivity.
        releases: The number T of noisy means that were released.
        delta: The probability δ of (ε, δ)-differential privacy, in (0, 1).

    Returns:
        The loss ε; infinite without noise.

    Raises:
        UserError: If the package dp-accounting is not installed.

    Example:
        >>> round(epsilon(noise_multiplier=2.0, releases=20, delta=1e-5), 1)
        12.3
    """
    if not noise_multiplier:
        return math.inf
    from flwr.supercore.privacy_accounting import GaussianPrivacyEvent

    accountant = make_accountant(delta, EVERYBODY)
    event = GaussianPrivacyEvent(noise_multiplier, EVERYBODY, EVERYBODY)
    accountant.compose(event, releases)
    return accountant.get_epsilon(delta)


def noise_for(*, target: float, releases: int, delta: float) -> float:
    """Returns the smallest noise multiplier with which a run's privacy loss is at most ε.

    More noise means a smaller ε. Therefore a bisection on a logarithmic scale finds z. The result
    is larger than the exact z by at most a ten-thousandth of z, so ε never exceeds the target.

    Args:
        target: The largest allowed loss ε, positive.
        releases: The number T of noisy means that will be released.
        delta: The probability δ of (ε, δ)-differential privacy, in (0, 1).

    Returns:
        The noise multiplier z.

    Raises:
        UserError: If no noise reaches the target, or the package dp-accounting is not installed.

    Example:
        >>> z = noise_for(target=8.0, releases=20, delta=1e-5)
        >>> 7.99 < epsilon(noise_multiplier=z, releases=20, delta=1e-5) <= 8.0
        True
    """

    def spent(noise_multiplier: float) -> float:
        return epsilon(noise_multiplier=noise_multiplier, releases=releases, delta=delta)

    low, high = LEAST_NOISE, MOST_NOISE
    if (least := spent(high)) > target:
        raise UserError(
            f"privacy.target_epsilon {target:g}: with privacy.delta {delta:g} the accountant finds "
            f"no ε below {least:.2g}, even with very large noise; take a larger target"
        )
    if spent(low) <= target:
        raise UserError(
            f"privacy.target_epsilon {target:g}: a noise multiplier of {low:g} already reaches "
            "this target, but so little noise hides no client; take a smaller target, or set "
            "privacy.noise_multiplier"
        )
    while high > low * (1 + NOISE_TOLERANCE):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if spent(middle) <= target else (middle, high)
    return high


def with_chosen_noise(privacy: PrivacyConfig, releases: int) -> PrivacyConfig:
    """Returns the settings with the noise multiplier that keeps ε within the target.

    Without a target ε, the result equals the given settings.

    Args:
        privacy: The settings of the user, checked by `confidentiality.check_privacy`.
        releases: The number T of planned rounds.
    """
    if privacy.target_epsilon is None:
        return privacy
    noise = noise_for(target=privacy.target_epsilon, releases=releases, delta=privacy.delta)
    return replace(privacy, noise_multiplier=noise)


def statement(privacy: PrivacyConfig, releases: int) -> dict[str, Any] | None:
    """Returns the privacy loss of a run, as `result.json` shows it.

    Args:
        privacy: The settings with the noise multiplier of the run (`with_chosen_noise`).
        releases: The number T of rounds.

    Returns:
        A dictionary with ε, δ, the settings of the noise and the number of releases, by name; None
        if the run has no noise and therefore no differential privacy.
    """
    if not privacy.noise_multiplier:
        return None
    target = privacy.target_epsilon
    return {
        **({} if target is None else {"target_epsilon": target}),
        "epsilon": epsilon(
            noise_multiplier=privacy.noise_multiplier, releases=releases, delta=privacy.delta
        ),
        "delta": privacy.delta,
        "releases": releases,
        "accountant": "rdp",
        "noise_multiplier": privacy.noise_multiplier,
        "clipping_norm": privacy.clipping_norm,
    }

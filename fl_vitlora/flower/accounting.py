"""What differential privacy comes to over a run: ε for the δ that was chosen.

Flower's accountant of Rényi differential privacy adds up the rounds, each a Gaussian release of
noise multiplier z:

    RDP of T rounds at order α = T · α / (2 z²)
    ε = min over α of  RDP + ln(1 - 1/α) - ln(δ·α) / (α - 1)

Who takes part in a round is drawn from the run's seed, which is no secret, so that nothing is
gained by chance: ε counts every client as if it had been in every round. Where a fraction of the
clients trains in a round it is an upper bound.

Source: Mironov, arXiv 1702.07476, corollary 3; Canonne, Kamath and Steinke, arXiv 2004.00010,
proposition 12.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fl_vitlora.config import PrivacyConfig
from fl_vitlora.errors import UserError

if TYPE_CHECKING:
    from flwr.supercore.privacy_accounting import PrivacyAccountant

EVERYBODY = 1  # numbers of clients, which do not matter without amplification by sampling


def make_accountant(delta: float, clients: int) -> PrivacyAccountant:
    """Makes Flower's accountant, which counts on no chance having kept a client out of a round.

    Args:
        delta: δ, in (0, 1).
        clients: How many there are.

    Raises:
        UserError: When the package that does the sums is not installed.
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
            "computing ε takes the package dp-accounting: python -m pip install -e '.[privacy]'"
        ) from None


def epsilon(*, noise_multiplier: float, releases: int, delta: float) -> float:
    """Computes the ε that a client has lost after some rounds.

    Args:
        noise_multiplier: z, standard deviation of the noise over the sensitivity.
        releases: T, how many noisy means were made of updates.
        delta: δ, in (0, 1).

    Returns:
        ε; infinite where there is no noise.

    Raises:
        UserError: When the package that does the sums is not installed.

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


def statement(privacy: PrivacyConfig, releases: int) -> dict[str, Any] | None:
    """Says in `result.json` what a run's differential privacy came to.

    Args:
        privacy: As it was asked for.
        releases: T, how many rounds there were.

    Returns:
        Plain values; nothing where there is no noise, and so no privacy.
    """
    if not privacy.noise_multiplier:
        return None
    return {
        "epsilon": epsilon(
            noise_multiplier=privacy.noise_multiplier, releases=releases, delta=privacy.delta
        ),
        "delta": privacy.delta,
        "releases": releases,
        "accountant": "rdp",
        "noise_multiplier": privacy.noise_multiplier,
        "clipping_norm": privacy.clipping_norm,
    }

"""What a client of secure sums demands of the server before it trains or evaluates.

A client trains with a new order of its images each time, so that two sums that differ by one client
do not give this client's update (`client.app`). With many epochs at a tiny learning rate the order
would not matter. Therefore the client refuses other work than the settings and the strategy's plan
give. It also refuses a list of participants (roster) that is not signed by all of them, or in which
one client weighs too much.
"""

from __future__ import annotations

import math

from flwr.app import Context, RecordDict

from fl_vitlora.config import Config
from fl_vitlora.flower.client.workspace import ClientSettings, client_of
from fl_vitlora.flower.strategies.aggregators import Unaided
from fl_vitlora.flower.wire import masking, vouching
from fl_vitlora.flower.wire.round_message import RoundMessage
from fl_vitlora.privacy.agreement import check_shares
from fl_vitlora.strategy import Strategy
from fl_vitlora.strategy.extras import call, wants
from fl_vitlora.training.local import scheduled_rate


def check_sum(
    settings: ClientSettings, instruction: RecordDict, context: Context, asked: RoundMessage
) -> None:
    """Refuses the roster and the work of a secure sum if the client must not take part.

    Args:
        settings: The settings of the client.
        instruction: The records of the instruction to train.
        context: The client's memory, with the public key that it has drawn for this run.
        asked: The instruction, as it was read.

    Raises:
        ValueError: If the roster lacks a signature, if a client weighs too much in it, or if the
            server asks for other work than the settings and the strategy's plan give.
    """
    config = settings.config
    if settings.identities is not None:
        vouching.check(context, instruction, settings.identities, config.min_clients)
    if not config.privacy.secure_aggregation:
        return
    roster = masking.read_roster(instruction)
    if config.max_client_share is not None:
        check_shares(roster, config.max_client_share)
    check_work(asked, roster.round, config, settings.strategy, client_of(context))


def check_work(
    asked: RoundMessage, roster_round: int, config: Config, strategy: Strategy, client: int
) -> None:
    """Refuses, in a secure sum, another round, learning rate or number of epochs than agreed.

    With a strategy of Flower, or if the strategy's plan depends on the server's state, the client
    can check only the round.

    Args:
        asked: The instruction, as it was read.
        roster_round: The round of the roster of the sum.
        config: The settings of the run.
        strategy: The client's half of the strategy.
        client: The number of the client.

    Raises:
        ValueError: If the instruction differs from the settings and the strategy's plan.
    """
    if asked.round != roster_round:
        raise _refusal(f"round {asked.round}", f"round {roster_round}, as in the roster")
    if isinstance(strategy, Unaided) or wants(strategy.plan, "state"):
        return
    plan = call(strategy.plan, asked.round, client=client)
    rate = scheduled_rate(config.training, asked.round, config.rounds) * plan.rate
    if not math.isclose(asked.rate, rate, rel_tol=1e-9):
        raise _refusal(f"{asked.rate:g} as the learning rate", f"{rate:g}")
    if asked.epochs != plan.epochs:
        own = "the number in the settings"
        raise _refusal(f"{asked.epochs or own} as the number of epochs", f"{plan.epochs or own}")


def check_most(config: Config, most: int | None) -> None:
    """Refuses, in a run with secure sums, to evaluate some images if the settings ask for all.

    The losses of a few models on a single image reveal gradients of this image.

    Args:
        config: The settings of the run.
        most: The number of images that the server asks for; None for all.

    Raises:
        ValueError: If the server asks for fewer images than the settings.
    """
    if config.privacy.secure_aggregation and config.evaluation.images is None and most is not None:
        raise ValueError(
            f"message refused: it asks to evaluate {most} images, expected all images "
            "(evaluation.images is not set)"
        )


def _refusal(got: str, expected: str) -> ValueError:
    setting = "privacy.secure_aggregation"
    return ValueError(f"instruction refused ({setting}): got {got}, expected {expected}")

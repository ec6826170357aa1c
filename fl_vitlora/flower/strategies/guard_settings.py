"""Checks whether clients of a run can compute what an honest server sends (`client.guard`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fl_vitlora.config import Config
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import shelf
from fl_vitlora.flower.strategies.aggregators import AnyStrategy
from fl_vitlora.flower.wire.wiring import lanes_of
from fl_vitlora.strategy import Strategy
from fl_vitlora.strategy.extras import call, wants
from fl_vitlora.training.movement import step_sum
from fl_vitlora.training.steps import steps_of


def check_guard(config: Config, strategy: AnyStrategy) -> None:
    """Refuses a guard if the settings of the run give clients no bound for the server's tensors.

    Args:
        config: The configuration of the experiment.
        strategy: The strategy of the run, from this project or from Flower.

    Raises:
        UserError: If clients cannot compute what an honest server sends; the message gives the
            reason and a remedy.
    """
    if config.privacy.guard_steps is None:
        return
    reason = next(_reasons(config, strategy), None)
    if reason is not None:
        raise UserError(f"privacy.guard_steps {config.privacy.guard_steps}: {reason}")


def _reasons(config: Config, strategy: AnyStrategy) -> Iterator[str]:
    """Yields the reasons why clients cannot compute what an honest server sends."""
    name = config.strategy.name
    if not isinstance(strategy, Strategy) or strategy.step_bound() is None:
        yield (
            f"strategy {name} states no bound of its steps (step_bound); take a strategy that "
            "states a bound, for example fedavg or median"
        )
        return
    if wants(strategy.plan, "state") or type(strategy).broadcast is not Strategy.broadcast:
        yield (
            f"strategy {name} sends clients values that only the server can compute; take fedavg "
            "or median"
        )
    elif wants(strategy.plan, "client") or _changes_work(strategy, config.rounds):
        yield (
            f"strategy {name} sets learning rates or epochs, so its steps have no known bound; "
            "take fedavg or median"
        )
    elif type(strategy).drift is not Strategy.drift:
        yield (f"strategy {name} adds a drift to each step, which has no known bound; take fedavg")
    method = shelf.method_of(config.finetuning, strategy.adapter)
    if method.retracts or method.decides or method.has_rests or method.measured:
        yield (
            f"with method {method.name} the server changes tensors by rules that clients do not "
            "know; take another method, for example lora+patch_embed"
        )
    training = config.training
    if step_sum(training, 1) is None:
        yield (
            f"no bound is known for training.optimizer {training.optimizer} with weight_decay "
            f"{training.weight_decay:g} and clip_norm {training.clip_norm}; take adam, adamw or "
            "adagrad without weight decay, or sgd with training.clip_norm"
        )
    for direction in ("uplink", "downlink"):
        lanes = lanes_of(getattr(config.compression, direction))
        if not lanes.exact or any(lane.every > 1 for lane in lanes.by_group.values()):
            yield f"compression.{direction} changes tensors by unknown amounts; take float32"
    privacy = config.privacy
    if privacy.noise_multiplier or privacy.target_epsilon is not None:
        yield "noise has no bound; remove the noise or the guard"
    if privacy.secure_aggregation:
        yield (
            "the rounding of secure sums has no bound that clients know; remove "
            "privacy.secure_aggregation or the guard"
        )
    if config.attack.kinds:
        yield "hostile clients move the model by any amount; remove attack.kinds or the guard"


def _changes_work(strategy: Strategy, rounds: int) -> bool:
    """Returns True if a plan sets the learning rate or the epochs in any round."""
    plans = (call(strategy.plan, number) for number in range(1, rounds + 1))
    return any(plan.epochs is not None or plan.rate != 1 for plan in plans)


def check_steps(config: Config, images: Mapping[int, int]) -> None:
    """Refuses a guard that is too small for a client of the run.

    Args:
        config: The configuration of the experiment.
        images: For each client, the number of its training images.

    Raises:
        UserError: If a client takes more steps in a round than the guard says.
    """
    most = config.privacy.guard_steps
    if most is None:
        return
    client, steps = max(
        ((c, steps_of(n, config.training)) for c, n in images.items()), key=lambda pair: pair[1]
    )
    if steps > most:
        raise UserError(
            f"privacy.guard_steps {most}: client {client} takes {steps} steps in a round; set "
            f"privacy.guard_steps={steps} at all clients"
        )

"""Decides whether the head of a run starts at zero or with a linear discriminant analysis.

With a head that starts at zero, an ordinary pre-trained ViT needs many more rounds, because the
other tensors learn little while the head is bad. The part `lda` of a fine-tuning method gives the
head a good start in round 1. With the setting ``finetuning.head_start=auto`` this module adds `lda`
to the method, if the statistics of `lda` reach the server as exact means and the run can use the
statistics. This decision is made once, before the run folder is made. The run folder stores the
decision, so that a resumed run has the same start as the interrupted run.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from fl_vitlora.config import Config
from fl_vitlora.config.method_names import parts_of
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import lda, shelf
from fl_vitlora.flower.strategies.aggregators import AnyStrategy
from fl_vitlora.flower.strategies.confidentiality import sees_only_sums
from fl_vitlora.flower.wire.wiring import lanes_of
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.strategy import Strategy

LDA = "lda"  # the name of the part, and a value of `finetuning.head_start`
EXACT = "float32"  # the codec that does not change any number
HEAD = ("head.weight", "head.bias")


def with_head_start(
    config: Config, strategy: AnyStrategy, drafted: Backbone | None = None
) -> Config:
    """Returns a configuration that says how the head starts.

    Args:
        config: The configuration as the user wrote it.
        strategy: The strategy of the run, from this project or from Flower.
        drafted: The model of the configuration, made by `backbone.draft`. If `drafted` is None, the
            function makes the model when it is needed.

    Returns:
        The configuration with `finetuning.head_start` set to "zero" or "lda". With "lda", the
        method contains the part `lda`. If `config` is already a result of this function, the
        configuration does not change.

    Raises:
        UserError: If the method has the part `lda` although the setting says that the head starts
            at zero, or if the model cannot be built.

    Example:
        >>> from strategies.fedavg import FedAvg
        >>> with_head_start(Config(), FedAvg()).finetuning.head_start
        'zero'
    """
    tuning = config.finetuning
    parts = parts_of(tuning.method)
    if LDA in parts:
        if tuning.head_start == "zero":
            raise UserError(
                f"finetuning.head_start zero with method {tuning.method}: the part lda starts the "
                "head with statistics of round 1; remove the part lda or this setting"
            )
        return replace(config, finetuning=replace(tuning, head_start="lda"))
    added = replace(tuning, method="+".join((*parts, LDA)), head_start="lda")
    whole = replace(config, finetuning=added)
    wished, free = tuning.head_start == "lda", tuning.head_start == "auto"
    if wished or (free and not why_zero(whole, strategy, drafted)):
        return whole
    return replace(config, finetuning=replace(tuning, head_start="zero"))


def why_zero(config: Config, strategy: AnyStrategy, drafted: Backbone | None = None) -> str:
    """Returns the reason why the head of a run should start at zero.

    Args:
        config: The configuration, with the part `lda` in the method.
        strategy: The strategy of the run.
        drafted: The model of the configuration, made by `backbone.draft`. If `drafted` is None, the
            function makes the model when it is needed.

    Returns:
        The reason, as the end of a sentence. The text is empty if the head should start with the
        discriminant analysis.

    Raises:
        UserError: If the model cannot be built.
    """
    model, uplink = config.model, config.compression.uplink
    reasons = {
        "the run starts with the head of a finished run": model.init_from is not None,
        "the models of this package are trained for a head that starts at zero": (
            model.name in backbone.BUNDLED
        ),
        "random weights have no features to distinguish classes": model.weights == backbone.RANDOM,
        "a run of one round would train no tensor": config.rounds == 1,
        "the strategy may change means": (
            not isinstance(strategy, Strategy)
            or not strategy.sums_suffice
            or any(name.endswith(strategy.personal) for name in HEAD)
        ),
        "secure aggregation or clipping may change means": sees_only_sums(config),
        "the codec of the uplink rounds means": (uplink.other or uplink.codec) != EXACT,
        "the codec of the downlink rounds the measured head too coarsely": _codes_coarsely(config),
        "hostile clients may send any means": bool(config.attack.kinds),
        "clients with a guard cannot check a measured head": config.privacy.guard_steps is not None,
    }
    found = next((reason for reason, holds in reasons.items() if holds), "")
    return found or _why_not_with_others(config, drafted)


def _codes_coarsely(config: Config) -> bool:
    """Returns True if the codec of the downlink would spoil a head that is one large step."""
    with suppress(UserError):  # an unknown codec is refused later, with the name of its setting
        return not lanes_of(config.compression.downlink).of(HEAD[0]).codec.fine
    return False


def _why_not_with_others(config: Config, drafted: Backbone | None) -> str:
    """Returns the reason why the part `lda` does not fit the other parts or the model, or ""."""
    try:
        shelf.method_of(config.finetuning)
    except UserError as error:
        return str(error)
    known = drafted or backbone.draft(config.model, classes=2)
    if not lda.has_one_head(known.model):
        return "the model does not have one linear head"
    return ""

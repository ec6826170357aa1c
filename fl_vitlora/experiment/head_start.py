"""Decides how the head of a run starts: at zero, or from a linear discriminant analysis.

A head at zero costs an ordinary pre-trained ViT many rounds, because nothing behind a bad head
learns. The part `lda` of a fine-tuning method gives the head a good start in round 1. With the
setting ``finetuning.head_start=auto`` this module adds `lda` to the method wherever its statistics
reach the server as exact means and the run can use them. The decision is made once, before the run
folder is made. The folder records it, so a resumed run starts as the interrupted one did.
"""

from __future__ import annotations

from dataclasses import replace

from fl_vitlora.config import Config
from fl_vitlora.config.method_names import parts_of
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import lda, shelf
from fl_vitlora.flower.strategies.aggregators import AnyStrategy
from fl_vitlora.flower.strategies.confidentiality import sees_only_sums
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.strategy import Strategy

LDA = "lda"  # the name of the part, and a value of the setting
EXACT = "float32"  # the codec that changes no number
HEAD = ("head.weight", "head.bias")


def with_head_start(
    config: Config, strategy: AnyStrategy, drafted: Backbone | None = None
) -> Config:
    """Returns a configuration that says how the head starts.

    Args:
        config: The configuration as the user wrote it.
        strategy: The strategy of the run, from this project or from Flower.
        drafted: The model of the configuration, as `backbone.draft` makes it; None to make it if it
            is needed.

    Returns:
        The configuration with `finetuning.head_start` set to "zero" or "lda". If it is "lda", the
        part `lda` belongs to the method. A configuration that was returned by this function stays
        as it is.

    Raises:
        UserError: If the method has the part `lda` although the head is to start at zero, or if
            the model cannot be built.

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
                "head from statistics of round 1; remove one of the two"
            )
        return replace(config, finetuning=replace(tuning, head_start="lda"))
    added = replace(tuning, method="+".join((*parts, LDA)), head_start="lda")
    whole = replace(config, finetuning=added)
    wished, free = tuning.head_start == "lda", tuning.head_start == "auto"
    if wished or (free and not why_zero(whole, strategy, drafted)):
        return whole
    return replace(config, finetuning=replace(tuning, head_start="zero"))


def why_zero(config: Config, strategy: AnyStrategy, drafted: Backbone | None = None) -> str:
    """Returns why the head of a run should start at zero.

    Args:
        config: The configuration, with the part `lda` in the method.
        strategy: The strategy of the run.
        drafted: The model of the configuration, as `backbone.draft` makes it; None to make it if it
            is needed.

    Returns:
        The reason, as the end of a sentence. It is empty if the discriminant analysis is the better
        start.

    Raises:
        UserError: If the model cannot be built.
    """
    model, uplink = config.model, config.compression.uplink
    reasons = {
        "the models of this package are trained for a head that starts at zero": (
            model.name in backbone.BUNDLED
        ),
        "random weights have no features to tell classes apart": model.weights == backbone.RANDOM,
        "a run of one round would train nothing": config.rounds == 1,
        "the strategy may change means": (
            not isinstance(strategy, Strategy)
            or not strategy.sums_suffice
            or any(name.endswith(strategy.personal) for name in HEAD)
        ),
        "secure aggregation or clipping may change means": sees_only_sums(config),
        "the codec of the uplink rounds means": (uplink.other or uplink.codec) != EXACT,
        "hostile clients may send any means": bool(config.attack.kinds),
        "clients with a guard cannot check a measured head": config.privacy.guard_steps is not None,
    }
    found = next((reason for reason, holds in reasons.items() if holds), "")
    return found or _why_not_with_others(config, drafted)


def _why_not_with_others(config: Config, drafted: Backbone | None) -> str:
    """Returns why the part `lda` does not go with the other parts of the method, or the model."""
    try:
        shelf.method_of(config.finetuning)
    except UserError as error:
        return str(error)
    known = drafted or backbone.draft(config.model, classes=2)
    if not lda.has_one_head(known.model):
        return "the model does not have one linear head"
    return ""

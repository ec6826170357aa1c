"""Checks an experiment before any file is written, before Ray starts, and before messages are sent.

A simulation and the server of a deployment call `check`, so that they report a mistake with the
same message. A SuperNode (the machine of a client) calls `check_node`, which makes only the checks
that are possible on a node. Mistakes that depend on the images, such as a partition that leaves a
client without images, are found when the images are divided (`preparation`). The division of images
also comes before any file is written.
"""

from __future__ import annotations

from pathlib import Path

import torch

from fl_vitlora.adaptation import policies
from fl_vitlora.config import Config, ModelConfig
from fl_vitlora.data.augmentation import check_copies
from fl_vitlora.data.holding_out import check_validation, has_validation
from fl_vitlora.encryption.storage_keys import passphrase
from fl_vitlora.errors import UserError
from fl_vitlora.experiment import example_images
from fl_vitlora.finetuning import methods, shelf
from fl_vitlora.flower.strategies.aggregators import (
    AnyStrategy,
    check_experiment,
    check_storable,
    client_half,
)
from fl_vitlora.flower.strategies.confidentiality import check_client_keys, check_privacy
from fl_vitlora.flower.strategies.guard_settings import check_guard
from fl_vitlora.flower.wire.wiring import check_codecs
from fl_vitlora.models import backbone
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.reporting.run_folder import check_unused
from fl_vitlora.training.prediction import predictor_for


def check(
    config: Config,
    strategy: AnyStrategy,
    *,
    drafted: Backbone | None,
    new_folder: bool,
    writes_checkpoints: bool,
    needs_passphrase: bool,
) -> Config:
    """Checks everything about an experiment that can be known without its images.

    Args:
        config: The configuration as the user wrote it.
        strategy: The strategy of the run, from this project or from Flower.
        drafted: The result of `draft_of` for the model of the configuration. The fine-tuning method
            is attached to this model.
        new_folder: True if the run makes the folder `out`; False if the run in this folder is
            resumed.
        writes_checkpoints: True if the run stores checkpoints. A deployment stores no checkpoints,
            so it accepts strategies whose state no checkpoint can hold.
        needs_passphrase: True if this process writes or opens shards. If the shards are sealed with
            a passphrase, the process needs the passphrase.

    Returns:
        The configuration that the run uses, with the changes that the strategy requires.

    Raises:
        UserError: If the experiment cannot run. The message is one line and names a setting that
            would work.
    """
    policies.check(config)
    example_images.check(config)
    check_patience(config)
    check_validation(config.data)
    check_copies(config.data)
    config = policies.for_strategy(config, client_half(strategy))
    check_experiment(strategy, config)
    if writes_checkpoints:
        check_storable(strategy)
    check_privacy(config, strategy)
    check_method_under_privacy(config)
    check_codecs(config, client_half(strategy))
    check_guard(config, strategy)
    if needs_passphrase:
        check_storage(config)
    if new_folder and config.out:
        check_unused(Path(config.out))
    predictor_for(config.evaluation.predictor, shelf.method_of(config.finetuning))
    check_model(config, drafted)
    return config


def check_node(config: Config, strategy: AnyStrategy) -> Config:
    """Checks the configuration of a SuperNode.

    Args:
        config: The configuration as the node's operator wrote it.
        strategy: The strategy of the run.

    Returns:
        The configuration that the node uses, with the changes that the strategy requires.

    Raises:
        UserError: If the experiment cannot run. The message is the same as the message of `check`.
    """
    policies.check(config)
    example_images.check(config, deployed=True)
    config = policies.for_strategy(config, client_half(strategy))
    check_codecs(config, client_half(strategy))
    check_guard(config, strategy)
    check_client_keys(config.privacy)
    predictor_for(config.evaluation.predictor, shelf.method_of(config.finetuning))
    return config


def check_method_under_privacy(config: Config) -> None:
    """Checks that differential privacy and the fine-tuning method can be combined.

    Raises:
        UserError: If updates are clipped to a norm, and a part of the method measures means. Also
            if noise is added, and a part chooses tensors by the loss, which has no noise.
    """
    parts, privacy = shelf.method_of(config.finetuning).parts, config.privacy
    reading = [name for name, part in parts if part.reads_loss]
    if reading and (privacy.noise_multiplier or privacy.target_epsilon is not None):
        raise UserError(
            f"noise with method {config.finetuning.method}: the part {reading[0]} chooses tensors "
            "by the clients' loss, to which no noise is added, so the model would reveal more than "
            "ε says; remove the noise or change the part"
        )
    measuring = [name for name, part in parts if part.measured]
    if measuring and privacy.clipping_norm is not None:
        raise UserError(
            f"privacy.clipping_norm with method {config.finetuning.method}: the part "
            f"{measuring[0]} measures means, and a clipped update has wrong means; remove this "
            "part or privacy.clipping_norm"
        )


def check_patience(config: Config) -> None:
    """Checks that a run with `evaluation.patience` has validation images.

    Raises:
        UserError: If the run has no validation images. The test images must not decide in which
            round a run ends.
    """
    patience = config.evaluation.patience
    if patience is not None and not has_validation(config.data):
        raise UserError(
            f"evaluation.patience {patience}: expected validation images, because the test images "
            "must not decide in which round a run ends; hold out a share of the training images, "
            "for example --set data.validation_fraction=0.1"
        )


def check_storage(config: Config) -> None:
    """Checks that the user has given a passphrase, if shards are sealed with a passphrase.

    Raises:
        UserError: If the passphrase is missing.
    """
    if config.encryption.at_rest == "passphrase":
        passphrase("encryption.at_rest passphrase")


def draft_of(model: ModelConfig) -> Backbone | None:
    """Builds a model without its weights for checks, and checks that the weights exist.

    Building this draft takes about a second. Therefore a run makes the draft only once, and all
    functions that check the model use the same draft.

    Returns:
        The model without memory for its tensors; None for the bundled models, which need no checks.

    Raises:
        UserError: If the model cannot be built, or the weights cannot be found.
    """
    if model.name in backbone.BUNDLED and model.weights in (backbone.PRETRAINED, backbone.RANDOM):
        return None
    return backbone.draft(model, classes=2)


def check_model(config: Config, drafted: Backbone | None) -> None:
    """Checks that the fine-tuning method can train the layers of a model.

    Two kinds of problems are found only later by `preparation.prepare_model`: problems that depend
    on the values of the weights, and problems of methods that read the weights.

    Args:
        config: The configuration of the run.
        drafted: The result of `draft_of` for the model. The method is attached to this model.

    Raises:
        UserError: If the method cannot be attached to the model.
    """
    if drafted is None:
        return
    method = shelf.method_of(config.finetuning)
    if any(part.reads_weights for _, part in method.parts):
        return
    with torch.device("meta"):
        methods.attach(drafted.model, method, config.seed)
        methods.check_gradients(drafted.model, drafted.image_shape)

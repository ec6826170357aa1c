"""Which combinations of key scope, adaptation and policy of the patch embedding mean what.

Pure questions to a configuration: who has the same key, what is exchanged, who turns tensors by a
key, who evaluates; and which combinations are refused, with the reason. `coordinates` has the
formulas, `docs/trust.md` says what every party sees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from fl_vitlora.config import Config
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods
from fl_vitlora.models.reading import POSITION
from fl_vitlora.population import byzantine, faults, ranks
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy


def common_key(config: Config) -> bool:
    """Tells whether all parties have the same key, or none."""
    return config.encryption.scope in ("shared", "block") or not config.encryption.steps


def exchanges_reader(config: Config) -> bool:
    """Tells whether the patch embedding is trained and sent."""
    return what_becomes_of_reader(config) in ("aggregate", "aligned")


def aligns(config: Config) -> bool:
    """Tells whether the patch embedding is exchanged in plain coordinates."""
    return what_becomes_of_reader(config) == "aligned" and bool(config.encryption.steps)


def adapts(config: Config) -> bool:
    """Tells whether models are adapted to a key; plain images have none."""
    return config.encryption.adapt and bool(config.encryption.steps)


def reader_is_stored(config: Config) -> bool:
    """Tells whether the server's model may read with another reader than the public model's.

    It is adapted then, or has a kernel for every patch; who cannot make it is given its file.
    """
    return adapts(config) or aligns(config)


def what_becomes_of_reader(config: Config) -> str:
    """Names the policy of the patch embedding as it takes effect."""
    trained = methods.method_of(config.finetuning).trains_patch_embedding
    return config.finetuning.patch_embedding if trained else "frozen"


def start_is_adapted(config: Config) -> bool:
    """Tells whether the server's first reader is turned by the key, and so betrays it."""
    return adapts(config) and common_key(config) and not aligns(config)


def server_needs_reader(config: Config) -> bool:
    """Tells whether a server without a key must be given a reader: to exchange it, or to evaluate.

    Where clients evaluate and the patch embedding is not exchanged, it never reads a patch.
    """
    return reader_is_stored(config) and (exchanges_reader(config) or not clients_evaluate(config))


def lacks_key_ring(config: Config) -> bool:
    """Tells whether a run would draw a new secret."""
    return needs_key_ring(config) and not Path(config.encryption.key_file).exists()


def needs_key_ring(config: Config) -> bool:
    """Tells whether images are encrypted, or shards sealed, under a key ring."""
    return bool(config.encryption.steps) or config.encryption.at_rest == "ring"


def keeps_reader(config: Config) -> bool:
    """Tells whether every client trains a patch embedding of its own and keeps it."""
    return what_becomes_of_reader(config) == "local"


def stays(name: str) -> bool:
    """Tells whether a tensor reads ciphertext, so that it is kept where it is local.

    Example:
        >>> stays("patch_embed.proj.bias"), stays("head.weight")
        (True, False)
    """
    return methods.group_of(name) == methods.PATCH_EMBEDDING or name == POSITION


def exchanged(
    config: Config, trained: Mapping[str, Tensor], personal: tuple[str, ...] = ()
) -> State:
    """Selects those of the trained tensors that clients exchange with the server.

    Args:
        config: What becomes of the patch embedding.
        trained: All of them.
        personal: Endings of those that the strategy leaves to the clients; the method may leave
            others to them.
    """
    local = keeps_reader(config)
    personal = (*personal, *methods.method_of(config.finetuning).personal)
    return {
        name: tensor
        for name, tensor in trained.items()
        if not (local and stays(name)) and not name.endswith(personal)
    }


def for_strategy(config: Config, strategy: Strategy) -> Config:
    """Checks that a strategy fits an experiment, and lets clients evaluate what only they have.

    Args:
        config: The experiment as it was asked for.
        strategy: Whose client half the clients run.

    Returns:
        The experiment as it is to be run.

    Raises:
        UserError: When the strategy asks for what the experiment has not.
    """
    name = config.strategy.name
    method = methods.method_of(config.finetuning, strategy.adapter)
    if strategy.low_rank and not method.low_rank:
        raise UserError(
            f"strategy {name} works on low-rank matrices, and method {config.finetuning.method} "
            "has none; take --method lora+patch_embed or lora"
        )
    if ranks.rank_of(config, 0) is not None and not strategy.any_rank:
        raise UserError(
            f"strategy {name} needs one rank for all clients, but finetuning.client_ranks gives "
            "them ranks of their own; take flora, flexlora or hetlora"
        )
    personal = (*strategy.personal, *method.personal)
    if not personal:
        return config
    if config.evaluation.by == "central":
        owner = f"strategy {name}" if strategy.personal else f"method {config.finetuning.method}"
        raise UserError(
            f"evaluation.by central: {owner} leaves {', '.join(personal)} to the "
            "clients, so that no central model exists; take evaluation.by clients"
        )
    return replace(config, evaluation=replace(config.evaluation, by="clients"))


def clients_evaluate(config: Config) -> bool:
    """Tells whether clients measure accuracy, each on encrypted test images of its own."""
    if config.evaluation.by == "auto":
        return keeps_reader(config) or aligns(config) or not _serverable(config)
    return config.evaluation.by == "clients"


def clients_turn(config: Config) -> bool:
    """Tells whether a client's side must have its key, to turn tensors by it."""
    return aligns(config) or (adapts(config) and not common_key(config))


def clients_need_key(config: Config) -> bool:
    """Tells whether a simulated client's side takes its key: to turn tensors, or to try others."""
    evaluates = clients_evaluate(config) and bool(config.encryption.steps)
    return clients_turn(config) or evaluates


def check(config: Config) -> None:
    """Refuses combinations of settings that cannot work.

    Raises:
        UserError: With the reason, and what would work instead.
    """
    byzantine.check(config)
    faults.check(config)
    ranks.check(config)
    encryption, policy = config.encryption, config.finetuning.patch_embedding
    if keeps_reader(config) and config.evaluation.by == "central":
        raise UserError(
            "evaluation.by central: with finetuning.patch_embedding local no central model exists; "
            "take evaluation.by clients"
        )
    if not encryption.steps:
        return
    if encryption.scope == "image" and (encryption.adapt or aligns(config)):
        wish = "encryption.adapt" if encryption.adapt else f"finetuning.patch_embedding {policy}"
        raise UserError(
            f"{wish} with encryption.scope image: every image has a key of its own, and one model "
            "cannot be adapted to all of them; take scope shared, client or block"
        )
    mixes = encryption.adapt and encryption.scope == "client" and exchanges_reader(config)
    if mixes and not aligns(config) and not encryption.allow_meaningless:
        raise UserError(
            "encryption.scope client with encryption.adapt and finetuning.patch_embedding "
            "aggregate: each client's patch embedding has its columns in another order, so that "
            "their mean means nothing; take aligned or local (to see it: "
            "encryption.allow_meaningless=true)"
        )
    unmet = config.evaluation.by == "central" and encryption.scope == "client"
    plain_within = encryption.adapt and (aligns(config) or not exchanges_reader(config))
    if unmet and not plain_within and not encryption.allow_meaningless:
        raise UserError(
            "evaluation.by central with encryption.scope client: the test images would have a key "
            "that no client trained with; take evaluation.by clients (to see it: "
            "encryption.allow_meaningless=true)"
        )


def _serverable(config: Config) -> bool:
    """Tells whether a server without a key can evaluate."""
    return common_key(config) or config.encryption.scope == "image"

"""Answers questions about a run: who shares a key, which tensors are sent, and who evaluates.

The functions in this module read a configuration and have no side effects. The answers depend on
three settings: which images share a key (`encryption.scope`), whether models are adapted to a key
(`encryption.adapt`), and what happens to the clients' patch embeddings
(`finetuning.patch_embedding`, the policy). `check` refuses combinations of settings with which a
run would fail or mean nothing. The module `coordinates` has the formulas, and `docs/trust.md`
explains what server and clients can see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from fl_vitlora.config import Config
from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import methods, shelf
from fl_vitlora.models.reading import POSITION
from fl_vitlora.population import byzantine, faults, ranks
from fl_vitlora.state import State
from fl_vitlora.strategy import Strategy


def common_key(config: Config) -> bool:
    """Returns True if all clients have the same key, or if nothing is encrypted."""
    return config.encryption.scope in ("shared", "block") or not config.encryption.steps


def exchanges_reader(config: Config) -> bool:
    """Returns True if clients train the patch embedding and send it to the server."""
    return what_becomes_of_reader(config) in ("aggregate", "aligned")


def aligns(config: Config) -> bool:
    """Returns True if the patch embedding is sent in the coordinates of plain images."""
    return what_becomes_of_reader(config) == "aligned" and bool(config.encryption.steps)


def adapts(config: Config) -> bool:
    """Returns True if models are adapted to a key; always False without encryption."""
    return config.encryption.adapt and bool(config.encryption.steps)


def reader_is_stored(config: Config) -> bool:
    """Returns True if the server's patch embedding may differ from that of the public model.

    The server's patch embedding differs if it is adapted to a key, or if it has a separate kernel
    for every patch. A client or server without the key cannot compute the adapted patch embedding,
    and gets it as a file.
    """
    return adapts(config) or aligns(config)


def what_becomes_of_reader(config: Config) -> str:
    """Returns the policy of the clients' patch embeddings, or "frozen" if no client trains them."""
    trained = shelf.method_of(config.finetuning).trains_patch_embedding
    return config.finetuning.patch_embedding if trained else "frozen"


def start_is_adapted(config: Config) -> bool:
    """Returns True if the server's first patch embedding is adapted to the key and reveals it."""
    return adapts(config) and common_key(config) and not aligns(config)


def computes_on_plain(config: Config) -> bool:
    """Returns True if the server's model computes on plain images as clients do on ciphertext.

    This is the case if each client adapts the server's model to the client's key (`coordinates`).
    """
    return adapts(config) and (aligns(config) or not common_key(config))


def needs_key_to_compute(config: Config) -> bool:
    """Returns True if only someone with the key can compute what clients' models compute.

    With ``aligned`` and a model that is not adapted, a client computes with E₀ + T(E - E₀). Only
    someone with the key can apply T (`coordinates`).
    """
    return aligns(config) and not adapts(config)


def server_needs_reader(config: Config) -> bool:
    """Returns True if a server without a key needs the file of its patch embedding.

    The server needs the file if the patch embedding is exchanged, or if the server evaluates. If
    the clients evaluate and the patch embedding is not exchanged, the server never reads a patch.
    """
    return reader_is_stored(config) and (exchanges_reader(config) or not clients_evaluate(config))


def lacks_key_ring(config: Config) -> bool:
    """Returns True if the run needs a key ring whose file does not exist yet."""
    return needs_key_ring(config) and not Path(config.encryption.key_file).exists()


def needs_key_ring(config: Config) -> bool:
    """Returns True if the images, or the files of the shards, are encrypted with a key ring."""
    return bool(config.encryption.steps) or config.encryption.at_rest == "ring"


def keeps_reader(config: Config) -> bool:
    """Returns True if every client trains its own patch embedding and keeps it."""
    return what_becomes_of_reader(config) == "local"


def stays(name: str) -> bool:
    """Returns True if a tensor belongs to the patch embedding or is the position embedding.

    Under the policy ``local`` no client sends its patch embedding or position embedding.

    Example:
        >>> stays("patch_embed.proj.bias"), stays("head.weight")
        (True, False)
    """
    return methods.group_of(name) == methods.PATCH_EMBEDDING or name == POSITION


def exchanged(
    config: Config, trained: Mapping[str, Tensor], personal: tuple[str, ...] = ()
) -> State:
    """Returns the trained tensors that clients exchange with the server.

    Args:
        config: The experiment, with the policy of the patch embedding.
        trained: All trained tensors by name.
        personal: Endings of the names of tensors that clients do not send, as the strategy demands.
            The fine-tuning method may name further tensors that clients do not send.

    Returns:
        A dictionary: the exchanged tensors by name.
    """
    local = keeps_reader(config)
    personal = (*personal, *shelf.method_of(config.finetuning).personal)
    return {
        name: tensor
        for name, tensor in trained.items()
        if not (local and stays(name)) and not name.endswith(personal)
    }


def for_strategy(config: Config, strategy: Strategy) -> Config:
    """Checks that a strategy fits an experiment, and sets who evaluates.

    If clients do not send all trained tensors, the clients must evaluate.

    Args:
        config: The experiment as the user configured it.
        strategy: The strategy of the run.

    Returns:
        The experiment, with `evaluation.by` set to "clients" if the clients must evaluate.

    Raises:
        UserError: If the strategy or the method does not fit the other settings.
    """
    name = config.strategy.name
    method = shelf.method_of(config.finetuning, strategy.adapter)
    if strategy.low_rank and not method.low_rank:
        raise UserError(
            f"strategy {name} needs low-rank matrices, but method {config.finetuning.method} has "
            "none; choose --method lora+patch_embed or --method lora"
        )
    if ranks.rank_of(config, 0) is not None and not strategy.any_rank:
        raise UserError(
            f"strategy {name} needs the same rank for all clients, but finetuning.client_ranks "
            "sets different ranks; choose --strategy flora, flexlora or hetlora"
        )
    personal = (*strategy.personal, *method.personal)
    if not personal:
        return config
    if config.evaluation.by == "central":
        owner = f"strategy {name}" if strategy.personal else f"method {config.finetuning.method}"
        raise UserError(
            f"evaluation.by central: with {owner} the clients do not send {', '.join(personal)}, "
            "so no central model exists; choose evaluation.by clients"
        )
    return replace(config, evaluation=replace(config.evaluation, by="clients"))


def clients_evaluate(config: Config) -> bool:
    """Returns True if the clients measure accuracy, each on its own encrypted test images."""
    if config.evaluation.by == "auto":
        return keeps_reader(config) or aligns(config) or not _serverable(config)
    return config.evaluation.by == "clients"


def clients_turn(config: Config) -> bool:
    """Returns True if a client needs its key to convert the tensors that it gets and sends."""
    return aligns(config) or (adapts(config) and not common_key(config))


def clients_need_key(config: Config) -> bool:
    """Returns True if a simulated client needs its key.

    A client needs its key to convert tensors, or to measure its accuracy under a wrong key.
    """
    evaluates = clients_evaluate(config) and bool(config.encryption.steps)
    return clients_turn(config) or evaluates


def check(config: Config) -> None:
    """Refuses combinations of settings with which a run would fail or mean nothing.

    Raises:
        UserError: If settings do not fit each other; the message names settings that work.
    """
    byzantine.check(config)
    faults.check(config)
    ranks.check(config)
    encryption, policy = config.encryption, config.finetuning.patch_embedding
    if keeps_reader(config) and config.evaluation.by == "central":
        raise UserError(
            "evaluation.by central: with finetuning.patch_embedding local every client keeps its "
            "own patch embedding, so no central model exists; choose evaluation.by clients"
        )
    if not encryption.steps:
        return
    if encryption.scope == "image" and (encryption.adapt or aligns(config)):
        wish = "encryption.adapt" if encryption.adapt else f"finetuning.patch_embedding {policy}"
        raise UserError(
            f"{wish} with encryption.scope image: every image has its own key, and one model "
            "cannot be adapted to all of them; choose scope shared, client or block"
        )
    _check_token_order(config)
    mixes = encryption.adapt and encryption.scope == "client" and exchanges_reader(config)
    if mixes and not aligns(config) and not encryption.allow_meaningless:
        raise UserError(
            "encryption.scope client with encryption.adapt and finetuning.patch_embedding "
            "aggregate: the columns of each client's patch embedding are in a different order, so "
            "their mean is meaningless; choose finetuning.patch_embedding aligned or local (to try "
            "it anyway: encryption.allow_meaningless=true)"
        )
    unmet = config.evaluation.by == "central" and encryption.scope == "client"
    plain_within = encryption.adapt and (aligns(config) or not exchanges_reader(config))
    if unmet and not plain_within and not encryption.allow_meaningless:
        raise UserError(
            "evaluation.by central with encryption.scope client: the test images would be "
            "encrypted under a key with which no client has trained; choose evaluation.by clients "
            "(to try it anyway: encryption.allow_meaningless=true)"
        )


def _check_token_order(config: Config) -> None:
    """Refuses methods that mix tokens if the tokens of two clients can be in different orders."""
    if common_key(config) or "block_scrambling" not in config.encryption.steps:
        return
    for name, part in shelf.method_of(config.finetuning).parts:
        if part.reads_token_order:
            raise UserError(
                f"method {name} mixes tokens, and with encryption.scope {config.encryption.scope} "
                "block_scrambling puts them in another order for every key; choose scope shared, "
                "or mix channels only: finetuning.parameters.mixers=channels"
            )


def _serverable(config: Config) -> bool:
    """Returns True if a server without a key can evaluate.

    The server can evaluate without a key if all clients share one key, or if every image has its
    own key.
    """
    return common_key(config) or config.encryption.scope == "image"

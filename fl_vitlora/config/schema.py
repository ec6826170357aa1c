"""The settings of an experiment: frozen dataclasses, filled from a YAML file and `--set a.b=c`.

The dataclasses have values but no methods. The module `settings` reads their values, and the module
`yaml_text` says which YAML is accepted.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fl_vitlora.config.method_names import PARTS, read_method, read_parameters
from fl_vitlora.config.optimizer_names import OPTIMIZERS, read_optimizer
from fl_vitlora.config.predictor_names import read_predictor
from fl_vitlora.config.rates import LETTERS, ORDINARY, Rates
from fl_vitlora.config.settings import setting, to_list
from fl_vitlora.config.units import Bytes
from fl_vitlora.errors import UserError, unknown

CipherStep = Literal[
    "block_scrambling",
    "pixel_shuffling",
    "negative_positive",
    "colour_shuffling",
    "rotation_inversion",
    "block_negative_positive",
    "nibble_shuffling",
    "block_nibble_shuffling",
    "pixel_negative_positive",
    "pixel_colour_shuffling",
]
# Encryption schemes of the literature: the name of a scheme, and the steps of the scheme.
SCHEMES: Mapping[str, tuple[CipherStep, ...]] = {
    "ViT-blockwise": ("block_scrambling", "pixel_shuffling", "negative_positive"),
    "EtC": (
        "block_scrambling",
        "rotation_inversion",
        "block_negative_positive",
        "colour_shuffling",
    ),
    "LE": ("nibble_shuffling",),
    "ELE": ("block_nibble_shuffling", "block_scrambling"),
    "PE": ("pixel_negative_positive", "pixel_colour_shuffling"),
}

# Groups of settings that may be given as one value, and the setting that receives the value.
SHORT: Mapping[str, str] = {"strategy": "name", "uplink": "codec", "downlink": "codec"}

# Settings that are, or may be, the path of a file or folder.
PATHS = ("out", "data.name", "model.weights", "encryption.key_file")

RATES = tuple(item.name for item in dataclasses.fields(Rates))  # defaults depend on the model
AUTO = "auto"

Adapted = Literal["q", "k", "v", "proj", "fc1", "fc2"]
Attack = Literal["sign_flip", "scale", "nan"]
Fault = Literal["raise", "crash", "slow"]


def read_steps(value: Any, path: str) -> tuple[Any, ...]:
    """Reads the name of an encryption scheme, or a list of encryption steps.

    Raises:
        UserError: If the value is neither the name of a scheme nor a list of steps.
    """
    if isinstance(value, str) and value in SCHEMES:
        return SCHEMES[value]
    steps, read = typing.get_args(CipherStep), tuple(to_list(value, path))
    for step in read:
        if step in list(SCHEMES):
            raise UserError(
                f"{path}: expected the scheme {step} alone, or a list of steps without a scheme"
            )
        if step not in steps:
            raise unknown(f"{path}", step, [*SCHEMES, *steps])
    return read


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images, and how they are divided among the clients."""

    name: str = setting(
        "digits",
        "The data set: 'digits' (bundled), the name of a Hugging Face data set, or a local path.",
    )
    config: str | None = setting(
        None, "The configuration of a Hugging Face data set that has several configurations."
    )
    revision: str | None = setting(None, "The branch, tag or commit of a Hugging Face data set.")
    train_split: str | None = setting(
        None,
        "The name of the split to train on. By default it is a split with a usual name, train.",
    )
    test_split: str | None = setting(
        None,
        "The name of the split to test on; 'none' holds out a share of the training images "
        "instead. By default it is the split with a usual name, such as test.",
    )
    layout: Literal["auto", "classes", "splits", "clients", "table"] = setting(
        "auto",
        "The meaning of the first folders in a folder of images: classes, splits or clients. "
        "The value table means that a table lists the images; auto detects the layout.",
    )
    image_column: str | None = setting(
        None, "The column that holds the images. By default the column is found by its type."
    )
    label_column: str | None = setting(
        None, "The column that holds the labels. By default the column is found by its type."
    )
    fit: Literal["squash", "crop", "pad"] = setting(
        "squash",
        "How an image is fitted to the aspect ratio of the model's input: squash resizes it "
        "without keeping its ratio, crop cuts its edges off, pad adds borders.",
    )
    background: tuple[int, ...] = setting(
        (255, 255, 255),
        "The colour behind transparent pixels and around padded images: one grey level, or "
        "red, green and blue.",
        "[0, 255]",
    )
    pixel_range: tuple[float, ...] = setting(
        (),
        "The two pixel values that become black and white in images of more than 8 bits; [] "
        "takes the range of the file format.",
    )
    partition: Literal["dirichlet", "iid", "pathological", "shard", "natural"] = setting(
        "dirichlet",
        "How the images are divided among the clients; natural makes each client's own folder "
        "its shard.",
    )
    alpha: float = setting(
        0.5,
        "The concentration of the Dirichlet partition. A smaller value makes the clients "
        "differ more.",
        "(0, inf)",
    )
    classes_per_client: int = setting(
        2, "The number of labels that each client holds in the pathological partition.", "[1, inf)"
    )
    shards_per_client: int = setting(
        2,
        "The number of label-sorted shards that each client holds in the shard partition.",
        "[1, inf)",
    )
    min_samples: int = setting(
        2, "The smallest number of images that a client may hold.", "[1, inf)"
    )
    test_fraction: float = setting(
        0.2,
        "The share of the images that becomes the test set if the data has no test split.",
        "(0, 1)",
    )
    limit: int | None = setting(
        None,
        "The largest number of training images, and of test images, that is used. By default "
        "all images are used.",
        "[1, inf)",
    )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The backbone and its weights."""

    name: str = setting(
        "vit_letters_16",
        "The backbone: 'vit_letters_16' or 'vit_letters_16_plain' (both bundled), or any ViT "
        "of timm.",
    )
    weights: str = setting(
        "pretrained",
        "The weights of the backbone: 'pretrained' (bundled or from the hub), 'random', or a "
        "local file.",
    )
    image_size: tuple[int, ...] | None = setting(
        None,
        "The side of the images in pixels, or [height, width] in pixels. By default the "
        "model's own size is used.",
        "[1, inf)",
    )
    patch_size: int | None = setting(
        None, "The side of a patch in pixels. By default the model's own size is used.", "[1, inf)"
    )


@dataclass(frozen=True, kw_only=True)
class EncryptionConfig:
    """How the data owner encrypts the images before anyone else receives them."""

    steps: tuple[CipherStep, ...] = setting(
        ("block_scrambling", "pixel_shuffling", "negative_positive"),
        "The encryption steps in the order of their use, or one scheme: ViT-blockwise, EtC, "
        "LE, ELE or PE; [] leaves the images plain.",
        read=read_steps,
    )
    scope: Literal["shared", "client", "image", "block"] = setting(
        "shared",
        "Which images share a key: all images (shared), those of one client (client), "
        "or none, so that each image has its own (image). The value block uses one key that "
        "differs from block to block.",
    )
    block_size: int | None = setting(
        None,
        "The side of an encryption block in pixels. The default is 4 for LE and ELE, and "
        "otherwise the model's patch size.",
        "[1, inf)",
    )
    fixed_blocks: int = setting(
        0, "The number of blocks that block scrambling leaves in their place.", "[0, inf)"
    )
    fixed_entries: int = setting(
        0,
        "The number of entries of a block that pixel shuffling leaves in their place.",
        "[0, inf)",
    )
    adapt: bool = setting(
        False,
        "Whether the model is adapted to the key. The adaptation is exact, but the adapted "
        "model reveals the key.",
    )
    allow_meaningless: bool = setting(
        False, "Whether combinations of settings that cannot work may run, for demonstration."
    )
    key_file: str = setting(
        "keys/owner.key",
        "The path of the owner's key ring, a file of secrets. A missing file is created.",
    )
    at_rest: Literal["ring", "passphrase", "none"] = setting(
        "ring",
        "What seals the shards on disk, plain shards included: a key of the key ring (ring), "
        "the passphrase in the variable FL_VITLORA_PASSPHRASE (passphrase), or nothing "
        "(none).",
    )


@dataclass(frozen=True, kw_only=True)
class FineTuningConfig:
    """Which tensors of the backbone are trained and exchanged."""

    method: str = setting(
        "lora+patch_embed",
        "Which tensors are trained and exchanged, in addition to the head: a sum of "
        f"{', '.join(PARTS)}, peft:NAME and 'package.module:Class'.",
        read=read_method,
    )
    parameters: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "explanation": "Parameters of the method's parts that are not settings, for example "
            "--set finetuning.parameters.gain=2.",
            "read": read_parameters,
        },
    )
    rank: int = setting(4, "The rank r of the low-rank matrices.", "[1, inf)")
    client_ranks: tuple[int, ...] = setting(
        (),
        "The ranks of the clients: one rank for each client, or the values that rank_shares "
        "distributes; [] gives every client the rank finetuning.rank.",
        "[1, inf)",
    )
    rank_shares: tuple[float, ...] = setting(
        (),
        "The share of the clients that gets each value of client_ranks. It is [] if "
        "client_ranks lists one rank for each client.",
        "(0, 1]",
    )
    alpha: float = setting(
        8.0,
        "The scale of the low-rank matrices. Their product is multiplied by alpha / r.",
        "(0, inf)",
    )
    targets: tuple[Adapted, ...] = setting(
        ("q", "v"), "The layers of every transformer block that get low-rank matrices."
    )
    patch_embedding: Literal["aggregate", "aligned", "local"] = setting(
        "aggregate",
        "What happens to the clients' patch embeddings: they are averaged unchanged "
        "(aggregate), averaged in the coordinates of plain images (aligned), or kept by each "
        "client (local).",
    )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a client trains on its shard in a round."""

    optimizer: str = setting(
        "adamw",
        "The optimiser of the clients, which starts afresh in every round. Choices: "
        f"{', '.join(OPTIMIZERS)}.",
        read=read_optimizer,
    )
    learning_rate: float = setting(
        LETTERS.learning_rate,
        "The learning rate at the peak of the schedule. The default is for the bundled models; "
        f"the default for other models is {ORDINARY.learning_rate:g}.",
        "(0, inf)",
    )
    patch_embed_rate: float = setting(
        LETTERS.patch_embed_rate,
        "The factor on the learning rate of the patch embedding. The default for models that are "
        f"not bundled is {ORDINARY.patch_embed_rate:g}.",
        "(0, inf)",
    )
    head_rate: float = setting(
        LETTERS.head_rate,
        "The factor on the learning rate of the head. The default for models "
        f"that are not bundled is {ORDINARY.head_rate:g}.",
        "(0, inf)",
    )
    body_rate: float = setting(
        LETTERS.body_rate,
        "The factor on the learning rate of all other tensors (method full). The default for "
        f"models that are not bundled is {ORDINARY.body_rate:g}.",
        "(0, inf)",
    )
    schedule: Literal["cosine", "constant"] = setting(
        "cosine", "How the learning rate changes over the rounds."
    )
    warmup_rounds: int = setting(
        0, "The number of rounds in which the learning rate rises to its peak.", "[0, inf)"
    )
    batch_size: int = setting(8, "The number of images in a training step.", "[1, inf)")
    epochs: int = setting(
        1, "The number of passes over a client's images in a round (local epochs).", "[1, inf)"
    )
    weight_decay: float = setting(
        0.0,
        "The weight decay. The optimiser adamw subtracts it from the weights; the other optimisers "
        "add it to the gradients.",
        "[0, inf)",
    )
    beta1: float = setting(
        LETTERS.beta1,
        "The decay rate of the mean gradient of adam, adamw and nadam. It is small because a round "
        f"has few steps. The default for models that are not bundled is {ORDINARY.beta1:g}.",
        "[0, 1)",
    )
    momentum: float = setting(0.9, "The momentum of SGD.", "[0, 1)")
    clip_norm: float | None = setting(
        None,
        "The largest norm of a gradient. A longer gradient is scaled down to it. By default "
        "gradients are not clipped.",
        "(0, inf)",
    )
    label_smoothing: float = setting(
        0.0, "The label smoothing of the cross-entropy loss.", "[0, 1)"
    )


@dataclass(frozen=True, kw_only=True)
class StrategyConfig:
    """The aggregation strategy and its hyper-parameters."""

    name: str = setting(
        "fedavg",
        "The aggregation strategy: the name of a file in strategies/, or 'package.module:Class'.",
    )
    options: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={"explanation": "A parameter of the strategy, for example --set strategy.mu=0.1."},
    )


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """What hostile clients do, for research on robust strategies."""

    kinds: tuple[Attack, ...] = setting(
        (),
        "What hostile clients do to their updates; the kinds are assigned to them in turn. [] "
        "means that no client is hostile.",
    )
    clients: int = setting(
        0, "The number of hostile clients. The seed decides which clients are hostile.", "[0, inf)"
    )
    factor: float = setting(
        100.0,
        "The factor by which a hostile client of kind scale multiplies its update.",
        "(0, inf)",
    )


@dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    """What happens to unreliable clients, for research on what a federation withstands."""

    kinds: tuple[Fault, ...] = setting(
        (),
        "What happens to unreliable clients before they train; the kinds are assigned to them "
        "in turn. [] means that no client is unreliable.",
    )
    clients: int = setting(
        0,
        "The number of unreliable clients. The seed decides which clients are unreliable.",
        "[0, inf)",
    )
    rate: float = setting(
        1.0, "The probability that the fault strikes an unreliable client in a round.", "(0, 1]"
    )
    delay: float = setting(
        10.0, "The time in seconds that an unreliable client of kind slow waits.", "[0, inf)"
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Where and how the test accuracy is measured after every round."""

    by: Literal["auto", "central", "clients"] = setting(
        "auto",
        "Where the test accuracy is measured: by the server (central) or by the clients "
        "(clients). The value auto chooses the clients if only they have the key or the patch "
        "embedding.",
    )
    predictor: str = setting(
        "plain",
        "What the model answers to test images: one forward pass (plain), or the answer of "
        "'package.module:Class', for example with test-time adaptation.",
        read=read_predictor,
    )


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """Secure aggregation and differential privacy."""

    secure_aggregation: bool = setting(
        False, "Whether pairs of clients mask their updates, so that the server sees only the sum."
    )
    range: float = setting(
        4.0,
        "The largest absolute value in an update under secure aggregation. Larger values are "
        "clipped.",
        "(0, inf)",
    )
    clipping_norm: float | None = setting(
        None,
        "The largest norm C of an update, for differential privacy. By default there is no "
        "differential privacy.",
        "(0, inf)",
    )
    noise_multiplier: float = setting(
        0.0,
        "The standard deviation of the noise on the sum of the updates, divided by the "
        "clipping norm.",
        "[0, 1000000]",
    )
    target_epsilon: float | None = setting(
        None,
        "The largest epsilon of the whole run. It determines noise_multiplier, which must "
        "then stay 0.",
        "(0, inf)",
    )
    delta: float = setting(1e-5, "The delta for which epsilon is computed.", "(0, 1)")


@dataclass(frozen=True, kw_only=True)
class LanesConfig:
    """How tensors are compressed in one direction."""

    codec: str = setting(
        "float32",
        "The codec of all tensors that have no separate codec, for example int4.",
    )
    patch_embed: str | None = setting(
        None, "The codec of the patch embedding. The default is the value of codec."
    )
    lora_A: str | None = setting(  # noqa: N815 - the literature's name
        None, "The codec of the LoRA matrices A. The default is the value of codec."
    )
    lora_B: str | None = setting(  # noqa: N815
        None, "The codec of the LoRA matrices B. The default is the value of codec."
    )
    head: str | None = setting(None, "The codec of the head. The default is the value of codec.")
    other: str | None = setting(
        None, "The codec of all other tensors. The default is the value of codec."
    )


@dataclass(frozen=True, kw_only=True)
class CompressionConfig:
    """How tensors are compressed in both directions."""

    uplink: LanesConfig = LanesConfig()
    downlink: LanesConfig = LanesConfig()
    error_feedback: bool = setting(
        True, "Whether the error of a codec in one round is added to the update of a later round."
    )


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """The network connection of a client, from which the transfer time is computed."""

    uplink_mbps: float = setting(
        10.0, "The speed of the connection from a client to the server in Mbit/s.", "(0, inf)"
    )
    downlink_mbps: float = setting(
        100.0, "The speed of the connection from the server to a client in Mbit/s.", "(0, inf)"
    )
    latency_ms: float = setting(
        50.0, "The delay of a message in milliseconds, added to its transfer time.", "[0, inf)"
    )


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where the clients run."""

    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto",
        "The device on which the clients compute. The value auto takes a GPU if there is one.",
    )
    workers: int | None = setting(
        None,
        "The number of worker processes. The default is one for each core; on GPUs it is as many "
        "as fit into the memory of each, at most four.",
        "[1, inf)",
    )
    cohort: int | None = setting(
        None,
        "The number of clients that a worker trains in one batch. The default is an eighth of "
        "a round's clients, in steps of up to 64 images.",
        "[1, inf)",
    )
    ray_address: str | None = setting(
        None,
        "The address of a running Ray cluster that can read the run folder. By default Ray is "
        "started on this machine.",
    )
    feature_cache_mb: int = setting(
        1024,
        "The megabytes of disk space in which the clients of a machine keep the features of their "
        "images, for methods that never change the backbone. With 0, every step computes the "
        "features anew.",
        "[0, inf)",
    )
    mixed_precision: bool = setting(
        True,
        "Whether a GPU computes in bfloat16, or in float16 with loss scaling if it has no "
        "bfloat16.",
    )
    round_timeout: float = setting(
        3600.0,
        "The time in seconds to wait for the replies of a round. Repeated messages get the "
        "same time again.",
        "(0, inf)",
    )
    client_timeout: float = setting(
        900.0,
        "The time in seconds that a worker may take for one client before the worker is replaced.",
        "(0, inf)",
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A complete experiment."""

    clients: int = setting(
        20, "The number of clients. Each client holds a shard of the images.", "[1, inf)"
    )
    rounds: int = setting(20, "The number of rounds of federated training.", "[1, 1000000]")
    fraction: float = setting(1.0, "The share of the clients that train in a round.", "(0, 1]")
    max_client_share: float | None = setting(
        None,
        "The largest weight of one client among the clients of a round, however many images "
        "it reports. By default there is no limit.",
        "(0, 1]",
    )
    min_clients: int = setting(
        1,
        "The smallest number of usable updates that a round needs. With fewer updates the run "
        "stops.",
        "[1, inf)",
    )
    budget: Bytes | None = setting(  # noqa: RUF009 - a field, as all settings are
        None,
        "The number of bytes that the run may send, for example 50MB. A round that could "
        "exceed it does not begin. By default there is no limit.",
    )
    target_accuracy: float | None = setting(
        None,
        "A test accuracy, for example 0.95. The result reports the number of bytes after which it "
        "was first reached.",
        "(0, 1]",
    )
    seed: int = setting(0, "The seed of all random choices except the owner's secret.", "[0, inf)")
    checkpoint_every: int = setting(
        1,
        "The number of rounds between two checkpoints, from which --resume can continue. The "
        "value 0 writes no checkpoints.",
        "[0, inf)",
    )
    record_updates: bool = setting(
        False,
        "Whether the run folder stores what the server sees in each round, the model and all "
        "decoded updates, under updates/, for research on attacks.",
    )
    out: str | None = setting(
        None, "The path of the run folder. By default a new folder is created under runs/."
    )
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    encryption: EncryptionConfig = EncryptionConfig()
    finetuning: FineTuningConfig = FineTuningConfig()
    training: TrainingConfig = TrainingConfig()
    strategy: StrategyConfig = StrategyConfig()
    attack: AttackConfig = AttackConfig()
    faults: FaultsConfig = FaultsConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    compression: CompressionConfig = CompressionConfig()
    link: LinkConfig = LinkConfig()
    engine: EngineConfig = EngineConfig()

"""The settings of an experiment: frozen dataclasses, filled from a YAML file and `--set a.b=c`.

The dataclasses have values but no methods. The module `settings` reads their values. The module
`yaml_text` says which YAML text is accepted.
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
PATHS = (
    *("out", "data.name", "data.shards", "data.storage_keys", "data.keep_shards"),
    *("model.weights", "model.init_from", "encryption.key_file", "privacy.client_keys"),
)

RATES = tuple(item.name for item in dataclasses.fields(Rates))  # their defaults depend on the model
AUTO = "auto"

Partition = Literal["dirichlet", "iid", "quantity", "pathological", "shard", "natural"]
Augmentation = Literal["flip", "crop"]
Adapted = Literal["q", "k", "v", "proj", "fc1", "fc2"]
Attack = Literal["sign_flip", "scale", "nan"]
Fault = Literal["raise", "crash", "slow"]


def read_steps(value: Any, path: str) -> tuple[Any, ...]:
    """Reads the setting with the encryption: the name of a scheme, or a list of encryption steps.

    Raises:
        UserError: If the value is neither the name of a scheme nor a list of steps.
    """
    if isinstance(value, str) and value in SCHEMES:
        return SCHEMES[value]
    steps, read = typing.get_args(CipherStep), tuple(to_list(value, path))
    for step in read:
        if step in list(SCHEMES):
            raise UserError(
                f"{path}: expected the scheme {step} alone, or a list of steps without a scheme, "
                "but the list contains both"
            )
        if step not in steps:
            raise unknown(f"{path}", step, [*SCHEMES, *steps])
    return read


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images, and how they are divided among the clients."""

    name: str = setting(
        "digits",
        "The data set: 'digits' (part of this package), the name of a Hugging Face data set, or "
        "the path of a local folder. The name 'given' means images that a Python program hands in.",
    )
    digest: str | None = setting(
        None,
        "The checksum of the images that a Python program hands in. A run computes the checksum by "
        "itself and writes it into the run folder.",
    )
    config: str | None = setting(
        None,
        "The name of a configuration, for a Hugging Face data set that has several of them.",
    )
    revision: str | None = setting(None, "The branch, tag or commit of a Hugging Face data set.")
    train_split: str | None = setting(
        None,
        "The name of the split (part of the data set) to train on. By default it is the split "
        "named train or training.",
    )
    test_split: str | None = setting(
        None,
        "The name of the split (part of the data set) to test on. By default it is a split with a "
        "usual name, such as test or validation. The value 'none' tests on a share of the training "
        "images instead, and does not train on that share.",
    )
    validation_split: str | None = setting(
        None,
        "The name of the split (part of the data set) whose images are for validation. By default "
        "no split is for validation, and data.validation_fraction says if training images are held "
        "out instead.",
    )
    layout: Literal["auto", "classes", "splits", "clients", "table"] = setting(
        "auto",
        "What the first folders in a folder of images mean: each is a class (classes), a split "
        "such as train (splits), or a client (clients). With table, a file such as metadata.csv "
        "lists the images. With auto, the program detects which of these is the case.",
    )
    image_column: str | None = setting(
        None,
        "The name of the column with the images. By default the column is found by its type or a "
        "usual name.",
    )
    label_column: str | None = setting(
        None,
        "The name of the column with the labels. By default the column is found by its type or a "
        "usual name.",
    )
    client_column: str | None = setting(
        None,
        "The name of the column that says to which client an image belongs, such as a hospital, a "
        "writer or a sensor. The partition natural gives each client its own images. The values "
        "are compared exactly as they are stored.",
    )
    fit: Literal["squash", "crop", "pad"] = setting(
        "squash",
        "How an image gets the aspect ratio of the model's input: squash stretches the image, crop "
        "cuts off its edges, and pad adds borders.",
    )
    background: tuple[int, ...] = setting(
        (255, 255, 255),
        "The colour behind transparent pixels and around padded images: one grey level, or the "
        "levels of red, green and blue. Level 0 is dark and 255 is bright.",
        "[0, 255]",
    )
    pixel_range: tuple[float, ...] = setting(
        (),
        "The pixel values [low, high] that become black and white. They are used only for images "
        "of more than 8 bits per channel. With [] the file format of the image decides.",
    )
    partition: Partition = setting(  # noqa: RUF009 - a field, as all settings are
        "dirichlet",
        "How the training images are divided among the clients: with unequal shares of each label "
        "(dirichlet), at random (iid), at random in unequal numbers (quantity), with a few labels "
        "for each client (pathological), or in pieces of the images sorted by label (shard). With "
        "natural, each client has one folder, or one value of data.client_column.",
    )
    alpha: float = setting(
        0.5,
        "The concentration of the Dirichlet distribution in the partitions dirichlet and quantity. "
        "With a smaller value, the labels or the numbers of images of the clients differ more.",
        "(0, inf)",
    )
    classes_per_client: int = setting(
        2,
        "The number of different labels of each client in the pathological partition.",
        "[1, inf)",
    )
    shards_per_client: int = setting(
        2,
        "The number of pieces that each client gets in the shard partition. The pieces are made by "
        "cutting the images, sorted by label, into parts.",
        "[1, inf)",
    )
    min_samples: int = setting(
        2,
        "The smallest number of training images of a client. If a client would have fewer, the run "
        "stops with an error.",
        "[1, inf)",
    )
    feature_skew: float = setting(
        0.0,
        "How much the sensors of the clients differ. Each client has its own colours, contrast, "
        "blur and noise, which change its plain images before encryption. With 0, the images stay "
        "as they are; with 1, the sensors differ most.",
        "[0, 1]",
    )
    copies: int = setting(
        1,
        "The number of encrypted copies of each training image. The first copy is the image "
        "itself, and data.augment says how the other copies differ. An epoch is one pass over all "
        "copies.",
        "[1, 1000]",
    )
    augment: tuple[Augmentation, ...] = setting(
        (),
        "How the owner changes the copies of its training images before encryption: it mirrors "
        "every second copy left to right (flip), or cuts out each copy at a random place (crop). "
        "Digits and letters must not be mirrored.",
    )
    test_fraction: float = setting(
        0.2,
        "The share of the training images that is used for testing only. It matters only if the "
        "data set has no test split, or if data.test_split is none.",
        "(0, 1)",
    )
    validation_fraction: float = setting(
        0.0,
        "The share of the training images that is used for validation only, with the same share of "
        "every class. If it is above 0, the run chooses by these images and never by the test "
        "images, for example the best model. If clients evaluate, each client holds out this share "
        "of its own training images.",
        "[0, 1)",
    )
    limit: int | None = setting(
        None,
        "The largest number of training images that is used. The same limit holds for the test "
        "images. By default all images are used.",
        "[1, inf)",
    )
    shards: str | None = setting(
        None,
        "The folder with encrypted shards that owners made elsewhere with fl-vitlora encrypt. The "
        "run then needs no plain image, and data.name is not used. By default the program makes "
        "the shards from data.name.",
    )
    storage_keys: str | None = setting(
        None,
        "The file, or the folder of files, with the storage keys that open shards of data.shards. "
        "They do not decrypt the images. By default only the key ring opens shards.",
    )
    keep_shards: str = setting(
        "auto",
        "The folder in which encrypted shards are kept, so that the next run with the same images, "
        "settings and keys need not make them again. The value auto means the folder .kept-shards "
        "beside the run folder, and keeps no shards of the digits. The value none keeps nothing.",
    )
    keep_at_most: Bytes = setting(  # noqa: RUF009 - a field, as all settings are
        Bytes(20 * 10**9),
        "The largest size of all kept shards together, such as 20GB. Shards that were not used for "
        "the longest time are removed first.",
    )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The backbone and its weights."""

    name: str = setting(
        "vit_letters_16",
        "The backbone (pre-trained model): 'vit_letters_16' or 'vit_letters_16_plain' (parts of "
        "this package), or the name of a ViT of the library timm.",
    )
    weights: str = setting(
        "pretrained",
        "The weights with which the backbone starts: 'pretrained' (from this package or the "
        "Hugging Face hub), 'random', or the path of a local file.",
    )
    init_from: str | None = setting(
        None,
        "The folder of a finished run, whose trained model is the start of this run. The images, "
        "the clients, the key and the fine-tuning method may be others. Classes are matched by "
        "name. By default a run starts with the weights in model.weights.",
    )
    image_size: tuple[int, ...] | None = setting(
        None,
        "The size to which all images are resized, in pixels: the side of a square, or [height, "
        "width]. By default, images have the size for which the model was made.",
        "[1, inf)",
    )
    patch_size: int | None = setting(
        None,
        "The side of a patch in pixels. By default the model's own patch size is used.",
        "[1, inf)",
    )


@dataclass(frozen=True, kw_only=True)
class EncryptionConfig:
    """How the data owner encrypts the images before anyone else receives them."""

    steps: tuple[CipherStep, ...] = setting(
        ("block_scrambling", "pixel_shuffling", "negative_positive"),
        "The encryption steps in the order of their use, or the name of one scheme: ViT-blockwise, "
        "EtC, LE, ELE or PE. docs/encryption.md explains them. [] leaves the images plain "
        "(unencrypted).",
        read=read_steps,
    )
    scope: Literal["shared", "client", "image", "block"] = setting(
        "shared",
        "Which images share a key: all images (shared), or all images of the same client (client). "
        "With the value image, every image has its own key. With the value block, all images "
        "share a key, and each block within an image is encrypted differently.",
    )
    block_size: int | None = setting(
        None,
        "The side of an encryption block in pixels. By default it is 4 for the schemes LE and ELE, "
        "and the model's patch size for all others.",
        "[1, inf)",
    )
    fixed_blocks: int = setting(
        0,
        "The number of blocks of an image that the step block_scrambling does not move.",
        "[0, inf)",
    )
    fixed_entries: int = setting(
        0,
        "The number of entries (colour values) of a block that the step pixel_shuffling does not "
        "move.",
        "[0, inf)",
    )
    adapt: bool = setting(
        False,
        "Whether the model is adapted to the key. The adapted model computes from encrypted images "
        "exactly what the original model computes from plain images. But the adapted model reveals "
        "the key.",
    )
    allow_meaningless: bool = setting(
        False,
        "Whether to allow combinations of settings whose result is meaningless, for demonstration. "
        "By default such a run stops with an error.",
    )
    key_file: str = setting(
        "keys/owner.key",
        "The path of the owner's key ring, a file with the secrets from which all keys are "
        "derived. If the file does not exist, it is created with a new secret. With data.shards "
        "it may be a folder with the rings of several owners, and nothing is created.",
    )
    at_rest: Literal["ring", "passphrase", "none"] = setting(
        "ring",
        "What encrypts the image files (shards) on disk, even if the images in them are plain: a "
        "key of the key ring (ring), the passphrase in the environment variable "
        "FL_VITLORA_PASSPHRASE (passphrase), or nothing (none).",
    )


@dataclass(frozen=True, kw_only=True)
class FineTuningConfig:
    """Which tensors of the backbone the clients train and exchange with the server."""

    method: str = setting(
        "lora+patch_embed",
        "Which tensors the clients train and send, in addition to the head: one or more of "
        f"{', '.join(PARTS)} and peft:NAME, joined by +. A part of your own is named "
        "'package.module:Class'.",
        read=read_method,
    )
    parameters: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "explanation": "The value of the parameter NAME, for a part of the method that has "
            "such a parameter. For example: --set finetuning.parameters.gain=2.",
            "read": read_parameters,
        },
    )
    rank: int = setting(
        4,
        "The rank r of the low-rank matrices. With a larger rank, more numbers are trained and "
        "sent.",
        "[1, inf)",
    )
    client_ranks: tuple[int, ...] = setting(
        (),
        "The ranks of clients with different ranks: one rank for each client, or a few ranks that "
        "are distributed by rank_shares. [] gives every client the rank finetuning.rank.",
        "[1, inf)",
    )
    rank_shares: tuple[float, ...] = setting(
        (),
        "For each rank in client_ranks, the share of the clients that gets this rank, for example "
        "[0.5, 0.5]. The sum is 1. [] means that client_ranks lists one rank for each client.",
        "(0, 1]",
    )
    alpha: float = setting(
        8.0,
        "The scale alpha of the low-rank matrices A and B of rank r. Their product is multiplied "
        "by alpha / r.",
        "(0, inf)",
    )
    targets: tuple[Adapted, ...] = setting(
        ("q", "v"),
        "The layers of every transformer block that get low-rank matrices: query (q), key (k), "
        "value (v) and output projection (proj) of the attention, and the two layers of the MLP "
        "(fc1, fc2).",
    )
    head_start: Literal["auto", "zero", "lda"] = setting(
        "auto",
        "How the new head starts: at zero (zero), or from a linear discriminant analysis of means "
        "that the clients measure in round 1, in which nothing is trained (lda). With auto the "
        "head starts with lda for pre-trained models that are not part of this package, if the "
        "means reach the server unchanged. This is not so with secure aggregation, "
        "clipping, a guard, a lossy codec, hostile clients, a start from a finished run, a run of "
        "one round, or a strategy that needs more than the mean of the updates. The means reveal "
        "to the server how many images of each class a client has.",
    )
    patch_embedding: Literal["aggregate", "aligned", "local"] = setting(
        "aggregate",
        "What happens to the patch embeddings that the clients train. The server averages them "
        "unchanged (aggregate), or after each client's key is removed from them (aligned), or each "
        "client keeps its own patch embedding (local).",
    )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a client trains on its own images in a round."""

    optimizer: str = setting(
        "adamw",
        "The optimiser with which clients train. Each round begins with a new optimiser, without "
        f"the state of earlier rounds. Choices: {', '.join(OPTIMIZERS)}.",
        read=read_optimizer,
    )
    learning_rate: float = setting(
        LETTERS.learning_rate,
        "The largest learning rate, which is reached after the warm-up. The default is for the "
        f"models of this package. For other models the default is {ORDINARY.learning_rate:g}.",
        "(0, inf)",
    )
    patch_embed_rate: float = setting(
        LETTERS.patch_embed_rate,
        "The learning rate of the patch embedding, as a multiple of training.learning_rate. For "
        f"models that are not part of this package the default is {ORDINARY.patch_embed_rate:g}.",
        "(0, inf)",
    )
    head_rate: float = setting(
        LETTERS.head_rate,
        "The learning rate of the head, as a multiple of training.learning_rate. For models that "
        f"are not part of this package the default is {ORDINARY.head_rate:g}.",
        "(0, inf)",
    )
    body_rate: float = setting(
        LETTERS.body_rate,
        "The learning rate of all other tensors of the backbone, as a multiple of "
        "training.learning_rate. For models that are not part of this package the default is "
        f"{ORDINARY.body_rate:g}.",
        "(0, inf)",
    )
    schedule: Literal["cosine", "constant"] = setting(
        "cosine",
        "How the learning rate changes over the rounds: it falls to almost 0, like half a cosine "
        "wave (cosine), or it stays the same (constant).",
    )
    warmup_rounds: int = setting(
        0,
        "The number of rounds at the start in which the learning rate rises evenly to its largest "
        "value. With 0 there is no such warm-up.",
        "[0, inf)",
    )
    batch_size: int = setting(
        8, "The number of images in one training step of a client.", "[1, inf)"
    )
    epochs: int = setting(
        1, "The number of passes over a client's images in a round (local epochs).", "[1, inf)"
    )
    weight_decay: float = setting(
        0.0,
        "The strength of the weight decay, which pulls the weights towards 0. The optimiser adamw "
        "applies it to the weights, and the other optimisers add it to the gradients. With 0 there "
        "is no weight decay.",
        "[0, inf)",
    )
    beta1: float = setting(
        LETTERS.beta1,
        "The decay rate of the running mean of the gradients in the optimisers adam, adamw and "
        "nadam. The default is small because a round has few steps. For models that are not part "
        f"of this package the default is {ORDINARY.beta1:g}.",
        "[0, 1)",
    )
    momentum: float = setting(
        0.9, "The momentum of the optimiser sgd. Other optimisers ignore it.", "[0, 1)"
    )
    clip_norm: float | None = setting(
        None,
        "The largest Euclidean norm of the gradient of all trained tensors in a step. A longer "
        "gradient is scaled down to this norm. By default gradients are not clipped.",
        "(0, inf)",
    )
    label_smoothing: float = setting(
        0.0,
        "The label smoothing of the cross-entropy loss: the share of the target probability that "
        "is spread evenly over all classes. With 0 there is no smoothing.",
        "[0, 1)",
    )


@dataclass(frozen=True, kw_only=True)
class StrategyConfig:
    """The aggregation strategy, which combines the clients' updates, and its parameters."""

    name: str = setting(
        "fedavg",
        "The aggregation strategy: the name of a file in the folder strategies/, or a class of "
        "your own or of Flower, named 'package.module:Class'.",
    )
    options: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "explanation": "The value of the strategy's parameter NAME, for example "
            "--set strategy.mu=0.1."
        },
    )


@dataclass(frozen=True, kw_only=True)
class AttackConfig:
    """What hostile clients do, for research on robust strategies."""

    kinds: tuple[Attack, ...] = setting(
        (),
        "What hostile clients do to their updates: they reverse the sign (sign_flip), multiply by "
        "attack.factor (scale), or send NaN (nan). If several kinds are given, they are assigned "
        "to the hostile clients in turn. [] means that no client is hostile.",
    )
    clients: int = setting(
        0, "The number of hostile clients. The seed decides which clients are hostile.", "[0, inf)"
    )
    factor: float = setting(
        100.0,
        "The number by which hostile clients of the kind scale multiply their updates.",
        "(0, inf)",
    )


@dataclass(frozen=True, kw_only=True)
class FaultsConfig:
    """How unreliable clients fail, for research on what a federation withstands."""

    kinds: tuple[Fault, ...] = setting(
        (),
        "How unreliable clients fail before they train: with an exception (raise), by the end of "
        "their process (crash), or by waiting (slow). If several kinds are given, they are "
        "assigned to the unreliable clients in turn. [] means that no client is unreliable.",
    )
    clients: int = setting(
        0,
        "The number of unreliable clients. The seed decides which clients are unreliable.",
        "[0, inf)",
    )
    rate: float = setting(
        1.0, "The probability that an unreliable client fails in a round.", "(0, 1]"
    )
    delay: float = setting(
        10.0,
        "The time in seconds that unreliable clients of the kind slow wait before they train.",
        "[0, inf)",
    )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """When, where and how the accuracy is measured."""

    by: Literal["auto", "central", "clients"] = setting(
        "auto",
        "The party that measures the test accuracy: the server (central), or each client on its "
        "own test images (clients). The value auto chooses the server, or the clients if only they "
        "have the key or the patch embedding that is needed.",
    )
    predictor: str = setting(
        "plain",
        "How the logits of test images are computed: by one forward pass of the model (plain), or "
        "by a class of your own, named 'package.module:Class', for example with test-time "
        "adaptation.",
        read=read_predictor,
    )
    every: int = setting(
        1,
        "The number of rounds from one evaluation to the next. The last round is always evaluated.",
        "[1, inf)",
    )
    images: int | None = setting(
        None,
        "The number of images with which a round is evaluated, drawn once with the same share of "
        "every class. If clients evaluate, each client takes an equal part of this number, rounded "
        "up. At the end the last model is evaluated with all images. By default every round is "
        "evaluated with all images.",
        "[1, inf)",
    )
    patience: int | None = setting(
        None,
        "The number of rounds without a better validation accuracy after which the run ends early. "
        "This setting needs validation images. By default the run does not end early.",
        "[1, inf)",
    )


@dataclass(frozen=True, kw_only=True)
class PrivacyConfig:
    """Secure aggregation and differential privacy."""

    secure_aggregation: bool = setting(
        False,
        "Whether clients hide their updates from the server. Each pair of clients adds random "
        "masks that cancel in the sum, so a server that follows the protocol sees only the sum of "
        "all updates. The settings client_keys, reveal_seeds and max_client_share protect against "
        "other servers.",
    )
    range: float = setting(
        4.0,
        "The largest absolute value of a number in an update under secure aggregation. Larger "
        "numbers are clipped to this value.",
        "(0, inf)",
    )
    client_keys: str | None = setting(
        None,
        "The path of a file with the public identity keys of all clients, for secure aggregation. "
        "Clients then sign the list of participants of each round, and take part only if all "
        "others have signed it, so that the server cannot replace their keys by its own keys. If "
        "the file does not exist, a simulation makes it with new keys. By default nothing is "
        "signed.",
    )
    reveal_seeds: bool = setting(
        True,
        "Whether clients help the server to remove the masks of clients that dropped out of a "
        "secure sum. If they do, a server that falsely says that a client dropped out reads the "
        "update of this client. If they do not, a round fails as soon as one client drops out.",
    )
    guard_steps: int | None = setting(
        None,
        "The largest number of training steps that any client takes in a round. Clients then "
        "refuse every instruction that no honest server could send. In round 1 this is a model "
        "that differs from the common start. In all rounds these are tensors farther from the "
        "start than this number of steps in each round can move them, and frozen tensors, rates or "
        "epochs that the settings do not give. By default clients do not check instructions.",
        "[1, inf)",
    )
    clipping_norm: float | None = setting(
        None,
        "The largest Euclidean norm of a client's update, for differential privacy. A longer "
        "update is scaled down to this norm. By default there is no differential privacy.",
        "(0, inf)",
    )
    noise_multiplier: float = setting(
        0.0,
        "The standard deviation of the noise that is added to the sum of the updates, divided by "
        "privacy.clipping_norm. With 0 no noise is added.",
        "[0, 1000000]",
    )
    target_epsilon: float | None = setting(
        None,
        "The largest epsilon (privacy loss) that the whole run may have. The noise is computed "
        "from it, so leave privacy.noise_multiplier at 0. By default there is no such limit.",
        "(0, inf)",
    )
    delta: float = setting(
        1e-5,
        "The delta of differential privacy: roughly, the probability that the privacy loss exceeds "
        "epsilon.",
        "(0, 1)",
    )


@dataclass(frozen=True, kw_only=True)
class LanesConfig:
    """The codecs of one direction: uplink is client to server, downlink is server to client."""

    codec: str = setting(
        "float32",
        "The codec that compresses all tensors without a codec of their own: float32 "
        "(uncompressed), float16, bfloat16, int8, int4, int3, int2, ecsq, nf4, qsgd or sign. The "
        "transforms topk and lowrank can come first, for example topk(0.1)+int4. With "
        "every(n)+CODEC the tensors are sent in every n-th round and in the last round.",
    )
    patch_embed: str | None = setting(
        None,
        "The codec of the patch embedding. If it is not set, `codec` of the same direction "
        "(uplink or downlink) is used.",
    )
    lora_A: str | None = setting(  # noqa: N815 - the literature's name
        None,
        "The codec of the LoRA matrices A. If it is not set, `codec` of the same direction "
        "(uplink or downlink) is used.",
    )
    lora_B: str | None = setting(  # noqa: N815
        None,
        "The codec of the LoRA matrices B. If it is not set, `codec` of the same direction "
        "(uplink or downlink) is used.",
    )
    head: str | None = setting(
        None,
        "The codec of the head. If it is not set, `codec` of the same direction (uplink or "
        "downlink) is used.",
    )
    other: str | None = setting(
        None,
        "The codec of all tensors except the LoRA matrices, the patch embedding and the head. "
        "If it is not set, `codec` of the same direction (uplink or downlink) is used.",
    )


@dataclass(frozen=True, kw_only=True)
class CompressionConfig:
    """How tensors are compressed in both directions."""

    uplink: LanesConfig = LanesConfig()
    downlink: LanesConfig = LanesConfig()
    error_feedback: bool = setting(
        True,
        "Whether the sender of an update adds the part that compression removed to a later update, "
        "so that this part is not lost.",
    )


@dataclass(frozen=True, kw_only=True)
class LinkConfig:
    """The assumed network connection of a client, from which the transfer time is computed."""

    uplink_mbps: float = setting(
        10.0, "The speed of the connection from a client to the server in Mbit/s.", "(0, inf)"
    )
    downlink_mbps: float = setting(
        100.0, "The speed of the connection from the server to a client in Mbit/s.", "(0, inf)"
    )
    latency_ms: float = setting(
        50.0, "The delay in milliseconds that every message adds to its transfer time.", "[0, inf)"
    )


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Where and how the simulated clients run."""

    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto",
        "The device on which the clients compute: the processor (cpu) or an NVIDIA GPU (cuda). "
        "The value auto uses a GPU if there is one.",
    )
    workers: int | None = setting(
        None,
        "The number of worker processes, which train the clients. By default there is one for each "
        "processor core. With GPUs there are as many on each GPU as fit into its memory, at most "
        "four.",
        "[1, inf)",
    )
    cohort: int | None = setting(
        None,
        "The number of clients that a worker trains together in one batch. By default it is an "
        "eighth of the clients of a round, limited so that a step has at most 64 images and, on a "
        "CPU, at most 1024 patches. For a method that never changes the backbone (head, losa), it "
        "is on a CPU a third of the clients, with at most 128 images and 2048 patches.",
        "[1, inf)",
    )
    ray_address: str | None = setting(
        None,
        "The address of a running Ray cluster, for example 10.0.0.1:6379. All its machines must be "
        "able to read the run folder. By default Ray is started on this machine.",
    )
    feature_cache_mb: int = setting(
        1024,
        "The megabytes of disk space in which the clients of a machine keep the features of their "
        "images, for methods that never change the backbone. With 0, every step computes the "
        "features anew.",
        "[0, inf)",
    )
    precision: Literal["auto", "float32", "bfloat16"] = setting(
        "auto",
        "The number format in which a model computes; trained tensors are always float32. The "
        "value auto means float32 on a CPU. On a GPU it means bfloat16, or float16 with loss "
        "scaling if the GPU has no bfloat16. On a CPU bfloat16 is faster only if the CPU has "
        "instructions for it (AMX or AVX512_BF16), and if the model is large.",
    )
    round_timeout: float = setting(
        3600.0,
        "The time in seconds that the server waits for the replies of a round. If the server "
        "repeats messages, it waits the same time again.",
        "(0, inf)",
    )
    client_timeout: float = setting(
        900.0,
        "The time in seconds that a worker may take for one client. A worker that takes longer is "
        "replaced.",
        "(0, inf)",
    )


@dataclass(frozen=True, kw_only=True)
class Config:
    """A complete experiment."""

    clients: int = setting(
        20,
        "The number of clients. Each client has its own part (shard) of the training images.",
        "[1, inf)",
    )
    rounds: int = setting(20, "The number of rounds of federated training.", "[1, 1000000]")
    fraction: float = setting(
        1.0,
        "The share of the clients that train in a round. The clients of each round are "
        "drawn at random.",
        "(0, 1]",
    )
    max_client_share: float | None = setting(
        None,
        "The largest share that one client may have in the weighted mean of a round, however many "
        "images it reports. By default there is no limit. In secure sums clients refuse to send an "
        "update if the server gives one of them a larger share.",
        "(0, 1]",
    )
    min_clients: int = setting(
        1,
        "The smallest number of usable updates that a round needs. If fewer updates arrive, the "
        "run stops.",
        "[1, inf)",
    )
    budget: Bytes | None = setting(  # noqa: RUF009 - a field, as all settings are
        None,
        "The largest number of bytes that the run may send in both directions together, for "
        "example 50MB. A round that could exceed this limit does not begin. By default there is no "
        "limit.",
    )
    target_accuracy: float | None = setting(
        None,
        "A test accuracy, for example 0.95, or a validation accuracy if the run has validation "
        "images. The result reports how many bytes were sent before this accuracy was first "
        "reached. By default nothing is reported.",
        "(0, 1]",
    )
    seed: int = setting(
        0, "The seed of all random choices, except the choice of the owner's secret.", "[0, inf)"
    )
    checkpoint_every: int = setting(
        1,
        "The number of rounds from one checkpoint to the next. The flag --resume continues a run "
        "from its last checkpoint. With 0 no checkpoints are written.",
        "[0, inf)",
    )
    record_updates: bool = setting(
        False,
        "Whether to store what the server sees in each round: the model and all decoded updates. "
        "These data are written to the folder updates/ in the run folder, for research on attacks.",
    )
    plain_examples: int = setting(
        0,
        "The number of training images of client 0 that the picture plots/plain_examples.png "
        "shows, plain and encrypted. The run folder then has plain images, so do not give it to "
        "people who must not see them. With 0 there is no picture.",
        "[0, 20]",
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

"""The tuners of Hugging Face's package `peft`: which of them fit a ViT, and why others do not.

Tuners of a kind that cannot fit are in the table `REFUSED`. For all other tuners, `peft_start`
measures how far the start is from the pre-trained function, whenever a model is prepared. The page
docs/peft.md lists all tuners.

Source: the package peft 0.21, whose pages cite the papers of the tuners.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fl_vitlora.errors import UserError

INSTALL = "pip install -e '.[peft]'"

# Tuners that no setting makes fit, and the reasons.
REFUSED: Mapping[str, str] = {
    "ADALORA": "it prunes its ranks while it trains, which every party would do differently",
    "ADAMSS": "it computes in the type of numbers with which it was made, and fails in float64",
    "ADAPTION_PROMPT": "it adds prompts to the attention of language models",
    "POLY": "it needs the number of a task with every image",
    "SHADOW": "it copies a language model of transformers",
    "TRAINABLE_TOKENS": "it trains the embeddings of words, and images have no words",
    "XLORA": "it mixes adapters that were trained before, and needs a model of transformers",
}
CANNOT_MERGE: Mapping[str, str] = {
    "C3A": "peft computes its merged weight in float32 only",
    "DEFT": "peft computes its merged weight in float32 only",
    "LILY": "its routers choose a weight for each input",
}
# How many times slower than LoRA's the learning rates of these tuners must be. They have a large
# constant factor between a trained number and the weight, and the steps of AdamW do not become
# smaller if a gradient is multiplied by a constant. docs/peft.md has the measurements.
RATES: Mapping[str, float] = {
    "MISS": 0.1,
    "PEANUT": 0.1,
    "RANDLORA": 0.1,
    "TINYLORA": 0.1,
    "WAVEFT": 0.04,
}


def tuners() -> Mapping[str, Any]:
    """Returns the classes of the configurations of all tuners of the installed peft, by name.

    Raises:
        UserError: If peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"methods of peft take the package peft: {INSTALL}")
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS

    return MappingProxyType({str(kind.value): config for kind, config in CONFIGS.items()})


def refusal(tuner: str, config: type[Any]) -> str:
    """Returns the reason why a tuner fits no ViT, or an empty text.

    Args:
        tuner: The name of the tuner.
        config: The class of the tuner's configuration.
    """
    from peft.config import PromptLearningConfig

    if issubclass(config, PromptLearningConfig):
        return "it adds prompts to the words of a language model"
    return REFUSED.get(tuner, "")

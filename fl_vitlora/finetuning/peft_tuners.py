"""Finds the tuners of Hugging Face's package `peft`, and gives reasons why some do not fit a ViT.

The table `REFUSED` has the tuners that cannot fit a ViT. Whenever a model is prepared with another
tuner, `peft_start` measures how much the outputs change before training. The page docs/peft.md
lists all tuners.

Source: The package peft 0.21, whose documentation cites the papers of the tuners.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from fl_vitlora.errors import UserError

INSTALL = "pip install -e '.[peft]'"

# The tuners that do not fit a ViT with any setting, and the reasons.
REFUSED: Mapping[str, str] = {
    "ADALORA": "it reduces its ranks during training, and every client would reduce other ranks",
    "ADAMSS": "it computes only in the number format with which it was made, not in float64",
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
# The factors for the learning rates of tuners that need a smaller rate than LoRA. In these tuners a
# large constant multiplies the trained numbers, so a step changes the weight too much; AdamW does
# not make its steps smaller if all gradients are larger. docs/peft.md has the measurements.
RATES: Mapping[str, float] = {
    "MISS": 0.1,
    "PEANUT": 0.1,
    "RANDLORA": 0.1,
    "TINYLORA": 0.1,
    "WAVEFT": 0.04,
}


def tuners() -> Mapping[str, Any]:
    """Returns a mapping from the names of all tuners in peft to their configuration classes.

    Raises:
        UserError: If peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"methods of peft need the package peft; install it: {INSTALL}")
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS

    return MappingProxyType({str(kind.value): config for kind, config in CONFIGS.items()})


def refusal(tuner: str, config: type[Any]) -> str:
    """Returns the reason why a tuner does not fit a ViT, or an empty text if it may fit.

    Args:
        tuner: The name of the tuner.
        config: The Python class of the tuner's configuration.
    """
    from peft.config import PromptLearningConfig

    if issubclass(config, PromptLearningConfig):
        return "it adds prompts to the words of a language model"
    return REFUSED.get(tuner, "")

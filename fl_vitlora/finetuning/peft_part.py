"""The parts ``peft:NAME``: the tuners of Hugging Face's package `peft`, such as ``peft:HRA``.

A tuner of peft replaces whole layers by its own layers, which contain the frozen layer and the
trained tensors. The part chooses the layers (`peft_layers`), lets the tuner replace these layers
(`peft_replacement`), checks the outputs before training (`peft_start`), and returns the names of
the trained tensors. Only trained tensors are sent. The server and the clients draw the frozen
matrices and the indices of a tuner with the same seed.

The hyper-parameters of a part are `tuner_rate` and the fields of the tuner's configuration, with
peft's defaults (`peft_settings`). A field with the name `alpha` gets the value of the setting
`finetuning.alpha`. The module `peft_tuners` says which tuners fit a ViT.

For most tuners, the mean of the clients' tensors does not give the mean of their weights, because
these tuners multiply trained tensors with each other. The mean is exact for tuners whose increment
is linear in the trained tensors: BEFT, IA3, LN_TUNING, SHIRA, SUPERTUNING, FOURIERFT and WAVEFT.
FOURIERFT and WAVEFT choose entries at random, with a seed that all clients share.

Source: The package peft 0.21, whose documentation cites the papers of the tuners.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from fl_vitlora.config.method_names import PEFT
from fl_vitlora.config.settings import setting
from fl_vitlora.errors import UserError, unknown
from fl_vitlora.finetuning import (
    peft_layers,
    peft_replacement,
    peft_settings,
    peft_start,
    peft_tuners,
)
from fl_vitlora.finetuning.groups import LORA
from fl_vitlora.finetuning.part import Part

OURS = ("targets", "tuner_rate")  # the fields of a part that are not fields of peft


@dataclass(frozen=True, kw_only=True)
class PeftPart(Part):
    """A part of a fine-tuning method whose tensors belong to a tuner of peft.

    `part_class` makes a subclass for each tuner, with the tuner's hyper-parameters as fields.

    Attributes:
        tuner: The name of the tuner in peft, such as ``HRA``.
        targets: The names of the layers (`targets.LAYERS`). For peft the layer `qkv` of timm is one
            layer, so the names must contain all of q, k and v, or none. The default of the setting,
            q and v, also means the whole layer `qkv`.
        tuner_rate: The factor by which the learning rate of the tuner's tensors is multiplied. The
            default is the tuner's entry in the table `peft_tuners.RATES`, or 1 without an entry.
    """

    reads_weights = True
    tuner: ClassVar[str]

    targets: tuple[str, ...] = ("q", "v")
    tuner_rate: float = 1.0

    def note(self) -> str:
        """Returns a sentence for the user if the default targets mean the whole layer `qkv`."""
        return peft_layers.note(self.tuner, self.targets)

    def attach(self, model: nn.Module) -> None:
        """Lets the tuner replace the target layers, and checks that the outputs do not change.

        Raises:
            UserError: If the tuner does not fit the layers, or changes the outputs of the
                pre-trained layers before training.
        """
        own = [item.name for item in dataclasses.fields(self) if item.name not in OURS]
        options = {name: getattr(self, name) for name in own}
        layers = peft_layers.layers_of(model, self.tuner, self.targets)
        before = {path: peft_start.PlainLayer.of(layer) for path, layer in layers.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft warns of its defaults, and of guessed types
            peft_replacement.replace(model, self.tuner, layers, options)
            peft_start.check(self.tuner, before, model, options)

    def trained(self, model: nn.Module) -> Collection[str]:
        """Returns the names of the tuner's trained tensors, which begin with the tuner's prefix."""
        from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING as PREFIXES

        prefix = PREFIXES[self.tuner]
        names = (name for name, _ in model.named_parameters())
        return [n for n in names if any(word.startswith(prefix) for word in n.split("."))]

    def group(self, name: str) -> str:
        """Returns the group `lora` for all trained tensors."""
        del name
        return LORA

    def rate(self, name: str) -> float:
        """Returns `tuner_rate`, the factor for the learning rate of the tuner's tensors."""
        del name
        return self.tuner_rate

    def merge(self, model: nn.Module) -> None:
        """Lets peft add the trained tensors to the weights, and restores plain layers."""
        peft_replacement.put_back(model)


@functools.cache
def part_class(name: str) -> type[PeftPart]:
    """Returns the Python class of a part, with the hyper-parameters of its tuner as fields.

    Args:
        name: The name of the part, such as ``peft:HRA``.

    Raises:
        UserError: If peft is not installed, if peft has no tuner of this name, or if the tuner does
            not fit a ViT.
    """
    tuner, configs = name.removeprefix(PEFT), peft_tuners.tuners()
    if tuner not in configs:
        raise unknown("method", name, [f"{PEFT}{other}" for other in sorted(configs)])
    if reason := peft_tuners.refusal(tuner, configs[tuner]):
        raise UserError(f"method {name} does not fit a ViT: {reason}")
    return dataclasses.make_dataclass(
        f"Peft_{tuner}",
        [*peft_settings.fields_of(configs[tuner]), ("tuner_rate", float, _rate_of(tuner))],
        bases=(PeftPart,),
        namespace={"tuner": tuner, "cannot_merge": peft_tuners.CANNOT_MERGE.get(tuner, "")},
        frozen=True,
        kw_only=True,
    )


def _rate_of(tuner: str) -> Any:
    """Returns the field `tuner_rate` with the default value for a tuner."""
    told = "Factor by which the learning rate of the tuner's tensors is multiplied."
    return setting(peft_tuners.RATES.get(tuner, 1.0), told, "(0, inf)")

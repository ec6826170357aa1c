"""The parts ``peft:NAME``: the tuners of Hugging Face's package `peft`, such as ``peft:HRA``.

A tuner of peft replaces whole layers by layers of its own, which hold the frozen layer and the
trained tensors. The part chooses the layers (`peft_layers`), lets the tuner replace them
(`peft_replacement`), checks the start (`peft_start`), and names the trained tensors. Nothing else
of a tuner is sent: server and clients draw the frozen matrices and the indices of a tuner from the
same seed.

The hyper-parameters of a part are the fields of the tuner's configuration, with peft's defaults
(`peft_settings`), and `tuner_rate`. A field with the name `alpha` gets the value of the setting
`finetuning.alpha`. The module `peft_tuners` says which tuners fit a ViT.

For most tuners, the mean of the clients' tensors does not give the mean of their weights, because
these tuners multiply trained tensors with each other. The mean is exact for tuners whose increment
is linear in the trained tensors: BEFT, IA3, LN_TUNING, SHIRA, SUPERTUNING, and FOURIERFT and
WAVEFT, whose entries are chosen by a common seed.

Source: the package peft 0.21, whose pages cite the papers of the tuners.
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

OURS = ("targets", "tuner_rate")  # the fields of a part that are not peft's


@dataclass(frozen=True, kw_only=True)
class PeftPart(Part):
    """A part of a fine-tuning method whose tensors belong to a tuner of peft.

    `part_class` makes a subclass for each tuner, with the tuner's hyper-parameters as fields.

    Attributes:
        tuner: The name of the tuner in peft, such as ``HRA``.
        targets: The names of the layers (`targets.LAYERS`). The layer `qkv` of timm is one layer
            for peft, so all of q, k and v must be named. The default of the setting, q and v, also
            means the whole layer `qkv`.
        tuner_rate: The factor on the learning rate of the tuner's tensors. The default of
            `tuner_rate` is the tuner's entry in the table `peft_tuners.RATES`, or 1.
    """

    reads_weights = True
    tuner: ClassVar[str]

    targets: tuple[str, ...] = ("q", "v")
    tuner_rate: float = 1.0

    def note(self) -> str:
        """Returns a sentence if the tuner adapts more than the setting `targets` names."""
        return peft_layers.note(self.tuner, self.targets)

    def attach(self, model: nn.Module) -> None:
        """Lets the tuner replace the target layers, and checks that the outputs do not change.

        Raises:
            UserError: If the tuner does not fit the layers, or does not start at the pre-trained
                function.
        """
        own = [item.name for item in dataclasses.fields(self) if item.name not in OURS]
        options = {name: getattr(self, name) for name in own}
        layers = peft_layers.layers_of(model, self.tuner, self.targets)
        before = {path: peft_start.PlainLayer.of(layer) for path, layer in layers.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft tells of its defaults, and of types it guesses
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
        """Returns the factor on the learning rate of the tuner's tensors, `tuner_rate`."""
        del name
        return self.tuner_rate

    def merge(self, model: nn.Module) -> None:
        """Lets peft add the trained tensors to the weights, and puts the plain layers back."""
        peft_replacement.put_back(model)


@functools.cache
def part_class(name: str) -> type[PeftPart]:
    """Returns the class of a part, with the hyper-parameters of its tuner as fields.

    Args:
        name: The name of the part, such as ``peft:HRA``.

    Raises:
        UserError: If peft is not installed, has no such tuner, or the tuner fits no ViT.
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
    told = "Factor on the learning rate of the tuner's tensors."
    return setting(peft_tuners.RATES.get(tuner, 1.0), told, "(0, inf)")

"""The parts ``peft:NAME``: the tuners of Hugging Face's package `peft`, such as ``peft:HRA``.

A tuner of peft replaces whole layers by layers of its own, which hold the frozen layer and the
trained tensors. This module chooses the layers, lets the tuner replace them in a timm ViT, and
names the trained tensors. Nothing else of a tuner is sent: every party draws the frozen matrices
and the indices of a tuner itself, from the same seed.

The hyper-parameters of a part are the fields of the tuner's configuration, with peft's defaults. A
field with the name `alpha` gets the value of the setting `finetuning.alpha`.

Not every tuner fits a ViT in federated learning. Tuners of a kind that cannot fit are in the table
`REFUSED`. For all others the start is measured whenever a model is prepared: a tuner is refused if
it changes the pre-trained weights, or if its layers do not begin with the outputs of the plain
layers. The page docs/peft.md lists all tuners.

Averaging is biased for most tuners, because they multiply trained tensors with each other. It is
exact for those whose increment is linear in the trained tensors: BEFT, IA3, LN_TUNING, SHIRA,
SUPERTUNING, and FOURIERFT and WAVEFT, whose entries are chosen by a common seed.

Source: the package peft 0.21, whose pages cite the papers of the tuners.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import re
import typing
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.config.method_names import PEFT
from fl_vitlora.config.settings import SettingParser, convert, setting
from fl_vitlora.errors import UserError, shown, unknown
from fl_vitlora.finetuning import targets
from fl_vitlora.finetuning.groups import LORA
from fl_vitlora.finetuning.part import Part

INSTALL = "pip install -e '.[peft]'"
ADAPTER = "default"  # peft's usual name for the only adapter of a model
FUSED = frozenset(targets.FUSED)
CLOSE = 1e-4  # largest change of a layer's outputs at the start, as a share of the largest output

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
# These tuners add in place to the outputs of the frozen layer, which the products of training
# (`products`) do not allow. So they get a copy of the outputs.
IN_PLACE = ("C3A", "GRALORA", "TINYLORA")

# Fields of peft's configurations that this project decides, or that would have no effect here.
HIDDEN = frozenset(
    {"bias", "fan_in_fan_out", "megatron_core", "progressbar", "use_asa"}
    | {"target_modules", "feedforward_modules", "exclude_modules", "modules_to_save"}
    | {"layers_to_transform", "layers_pattern", "target_parameters", "ensure_weight_tying"}
    | {"save_indices", "save_only_topk_weights", "save_precomputed_indices", "save_projection"}
    | {"peft_type", "task_type", "inference_mode", "revision", "base_model_name_or_path"}
    | {"peft_version"}
)
PLAIN = (bool, int, float, str)


@dataclass(frozen=True, kw_only=True)
class PeftPart(Part):
    """A part of a fine-tuning method whose tensors belong to a tuner of peft.

    `part_class` makes a subclass for each tuner, with the tuner's hyper-parameters as fields.

    Attributes:
        tuner: The name of the tuner in peft, such as ``HRA``.
        targets: The names of the layers (`targets.LAYERS`). The layer `qkv` of timm is one layer
            for peft, so all of q, k and v must be named. The default of the setting, q and v,
            means the whole layer.
    """

    reads_weights = True
    tuner: ClassVar[str]

    targets: tuple[str, ...] = ("q", "v")

    def note(self) -> str:
        """Returns a sentence if the tuner adapts more than the setting `targets` names."""
        if self.targets != FineTuningConfig().targets or self.tuner == "LN_TUNING":
            return ""
        return (
            f"peft:{self.tuner} adapts the whole layer qkv, because peft cannot adapt q and v "
            "alone; other layers: --set 'finetuning.targets=[q,k,v,proj]'"
        )

    def attach(self, model: nn.Module) -> None:
        """Lets the tuner replace the target layers, and checks that the outputs do not change.

        Raises:
            UserError: If the tuner does not fit the layers, or does not start at the pre-trained
                function.
        """
        layers = self._layers(model)
        before = {path: _Plain.of(layer) for path, layer in layers.items()}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft tells of its defaults, and of types it guesses
            self._inject(model, list(layers))
            if self.tuner in IN_PLACE:
                for layer in layers.values():
                    layer.register_forward_hook(_copied)
            for path, plain in before.items():
                self._check_start(plain, path, model.get_submodule(path))

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

    def merge(self, model: nn.Module) -> None:
        """Lets peft add the trained tensors to the weights, and puts the plain layers back."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for path, module in list(model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                module.merge()
                plain = module.get_base_layer()
                for key, hook in list(plain._forward_hooks.items()):
                    if hook is _copied:
                        del plain._forward_hooks[key]
                targets.put_module(model, path, plain)

    def _layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """Returns the layers that the tuner replaces, by their names in the model."""
        if self.tuner == "LN_TUNING":
            chosen: list[nn.Module] = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
        else:
            chosen = []
            targets.attach(model, self._slices(), lambda layer, _: _noted(chosen, layer))
        own = {id(layer) for layer in chosen}
        return {path: layer for path, layer in model.named_modules() if id(layer) in own}

    def _slices(self) -> tuple[str, ...]:
        """Returns the names of the target slices, with all of q, k and v or none of them.

        Raises:
            UserError: If only some of q, k and v are named.
        """
        fused = FUSED & set(self.targets)
        if self.note() or fused in (FUSED, frozenset()):
            return ("q", "k", "v") if self.note() else self.targets
        others = [name for name in self.targets if name not in FUSED]
        raise UserError(
            f"method peft:{self.tuner}: peft cannot adapt {', '.join(sorted(fused))} alone, "
            "because timm's layer qkv is one layer; choose it whole: "
            f"--set 'finetuning.targets=[{','.join([*targets.FUSED, *others])}]'"
        )

    def _inject(self, model: nn.Module, paths: list[str]) -> None:
        """Makes the tuner, which replaces the layers with the given names in place."""
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS
        from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING as TUNERS

        options = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        options["target_modules"] = paths
        if self.tuner == "LN_TUNING":  # peft compares endings: `norm` would be `attn.norm` as well
            options["target_modules"] = "|".join(map(re.escape, paths))
        del options["targets"]
        if self.tuner == "IA3":
            options["feedforward_modules"] = [path for path in paths if path.endswith("fc2")]
        try:
            config = CONFIGS[self.tuner](**options)
            TUNERS[self.tuner](model, config, ADAPTER)
        except Exception as error:  # raised by code of peft
            cause = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"method peft:{self.tuner}: peft refuses: {cause}") from error
        del model.peft_config

    def _check_start(self, plain: _Plain, path: str, layer: nn.Module) -> None:
        """Raises an error if a layer differs from the plain layer in its weights or outputs."""
        if plain.changed():
            raise UserError(
                f"method peft:{self.tuner} changes the pre-trained weights of {path} at the start"
                f"{self._advice()}"
            )
        far = plain.distance(layer)
        if not far <= CLOSE:
            raise UserError(
                f"method peft:{self.tuner} does not start at the pre-trained function: the outputs "
                f"of {path} change by {100 * far:.2g} %{self._advice()}"
            )

    def _advice(self) -> str:
        """Returns the advice to try another start, if the tuner has a choice of two."""
        starts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        flags = [n for n, v in starts.items() if n.startswith("init_") and v is False]
        return f"; try --set finetuning.parameters.{flags[0]}=true" if flags else ""


@dataclass(frozen=True, kw_only=True)
class _Plain:
    """A plain layer before a tuner replaces it: copies of its weights, and outputs for a probe."""

    layer: nn.Module
    weights: Mapping[str, Tensor]
    probe: Tensor
    outputs: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, layer: Any) -> _Plain:
        """Describes a linear layer or a layer normalisation."""
        weight: Tensor = layer.weight
        width = weight.shape[-1]
        probe = torch.linspace(0, 40, 4 * width).sin().reshape(4, width).to(weight)
        weights = {name: p.detach().clone() for name, p in layer.named_parameters()}
        return cls(layer=layer, weights=weights, probe=probe, outputs=layer(probe))

    def changed(self) -> bool:
        """Returns True if the weights of the layer differ from the copies."""
        now = dict(self.layer.named_parameters())
        return any(not torch.equal(now[name], old) for name, old in self.weights.items())

    @torch.no_grad()
    def distance(self, layer: nn.Module) -> float:
        """Returns the largest change of the outputs, as a share of the largest plain output."""
        change = (layer.eval()(self.probe) - self.outputs).abs().max()
        return float(change / self.outputs.abs().max())


def _copied(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor:
    """Returns a copy of the outputs of a layer, as a forward hook."""
    del layer, inputs
    return outputs.clone()


def _noted(chosen: list[nn.Module], layer: nn.Module) -> nn.Module:
    """Appends a layer to a list, and returns the layer."""
    chosen.append(layer)
    return layer


def tuners() -> Mapping[str, Any]:
    """Returns the classes of the configurations of all tuners of the installed peft, by name.

    Raises:
        UserError: If peft is not installed.
    """
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"methods of peft take the package peft: {INSTALL}")
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS

    return MappingProxyType({str(kind.value): config for kind, config in CONFIGS.items()})


@functools.cache
def part_class(name: str) -> type[PeftPart]:
    """Returns the class of a part, with the hyper-parameters of its tuner as fields.

    Args:
        name: The name of the part, such as ``peft:HRA``.

    Raises:
        UserError: If peft is not installed, has no such tuner, or the tuner fits no ViT.
    """
    tuner, configs = name.removeprefix(PEFT), tuners()
    if tuner not in configs:
        raise unknown("method", name, [f"{PEFT}{other}" for other in sorted(configs)])
    if reason := refusal(tuner, configs[tuner]):
        raise UserError(f"method {name} does not fit a ViT: {reason}")
    return dataclasses.make_dataclass(
        f"Peft_{tuner}",
        list(_fields(configs[tuner])),
        bases=(PeftPart,),
        namespace={"tuner": tuner, "cannot_merge": CANNOT_MERGE.get(tuner, "")},
        frozen=True,
        kw_only=True,
    )


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


def _fields(config: type[Any]) -> Iterable[tuple[str, Any, Any]]:
    """Yields the name, the type and the field of each hyper-parameter of a configuration."""
    hints = typing.get_type_hints(config)
    for item in dataclasses.fields(config):
        kinds = _alternatives(hints[item.name])
        usable = all(kind in PLAIN or typing.get_origin(kind) is Literal for kind in kinds)
        if item.name in HIDDEN or not usable or item.default is dataclasses.MISSING:
            continue
        told = str(item.metadata.get("help", ""))
        yield item.name, Any, setting(item.default, told, read=_reader(kinds))


def _alternatives(hint: Any) -> list[Any]:
    """Returns the types of a union except None, or the type itself."""
    kinds = typing.get_args(hint) if typing.get_origin(hint) is not Literal else ()
    return [kind for kind in kinds or (hint,) if kind is not type(None)]


def _reader(kinds: list[Any]) -> SettingParser:
    """Returns a function that reads a value of one of several types."""

    def read(value: Any, path: str) -> Any:
        if isinstance(value, float) and value.is_integer() and float not in kinds:
            value = int(value)  # `finetuning.alpha` is a float, and peft's `alpha` is an int
        problems = []
        for kind in kinds:
            try:
                return convert(kind, value, path)
            except UserError as error:
                problems.append(error)
        raise problems[0] if len(kinds) == 1 else UserError(f"{path}: {shown(value)} does not fit")

    return read

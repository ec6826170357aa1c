"""Tuners of peft keep the rules for methods, or are refused with the reason."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import timm
import torch

from fl_vitlora.config import FineTuningConfig, load
from fl_vitlora.config.confirmation import check_method as check_confirmed
from fl_vitlora.config.grid_words import read_words
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.validation import check_model, draft_of
from fl_vitlora.finetuning import methods, peft_part, peft_tuners, shelf
from fl_vitlora.finetuning.products import quicken
from fl_vitlora.state import State, count
from fl_vitlora.testing.method import findings
from tests.conftest import random_vit

pytest.importorskip("peft")
HEAD = 970

# The tuners that fit the bundled ViT, and the settings that they need, as docs/peft.md lists them.
WORKING: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("BEFT", "BOFT", "DEFT", "DELORA", "FROD", "GRALORA", "HIRA", "HRA")},
    **{name: {} for name in ("IA3", "LILY", "LN_TUNING", "LOHA", "LOKR", "LORA", "MISS", "OFT")},
    **{name: {} for name in ("OSF", "PEANUT", "PSOFT", "PVERA", "RANDLORA", "SHIRA")},
    **{name: {} for name in ("SUPERTUNING", "TINYLORA", "VERA", "WAVEFT")},
    "C3A": {"block_size": 96, "init_weights": True},
    "FOURIERFT": {"init_weights": True},
    "GLORA": {"config_D_E": "none"},
    "ROAD": {"group_size": 32},
}
PROMPTS = ("CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING")
# The tuners that do not fit, at least not with their defaults, and a part of the reason.
REFUSED = {
    **dict.fromkeys((*PROMPTS, "P_TUNING"), "adds prompts to the words"),
    "ADALORA": "reduces its ranks",
    "ADAMSS": "not in float64",
    "ADAPTION_PROMPT": "adds prompts to the attention",
    "C3A": "block size should be a factor",
    "FOURIERFT": r"change by .* %; try --set finetuning\.parameters\.init_weights=true",
    "POLY": "the number of a task",
    "ROAD": "divisible by group_size",
    "SHADOW": "copies a language model",
    "TRAINABLE_TOKENS": "embeddings of words",
    "UNILORA": "does not start at the pre-trained function",
    "VBLORA": "divisible by `vector_length`",
    "XLORA": "adapters that were trained before",
}


def made(method: str, **settings: Any) -> Any:
    return shelf.method_of(FineTuningConfig(method=method, **settings))


def prepared(method: str, seed: int = 0, **settings: Any) -> Any:
    model = random_vit().model
    methods.prepare(model, FineTuningConfig(method=method, **settings), seed)
    return model


def test_a_tuner_keeps_every_rule_together_with_the_patch_embedding():
    assert [found for found in findings("peft:HRA+patch_embed") if found.problem] == []


@pytest.mark.slow
@pytest.mark.parametrize("tuner", WORKING)
def test_every_tuner_that_the_table_names_keeps_every_rule(tuner: str):
    method = made(f"peft:{tuner}", parameters=WORKING[tuner])
    assert [found for found in findings(method) if found.problem] == []


@pytest.mark.parametrize(("tuner", "reason"), REFUSED.items())
def test_a_tuner_that_does_not_fit_is_refused_with_the_reason(tuner: str, reason: str):
    with pytest.raises(UserError, match=reason):
        prepared(f"peft:{tuner}")


def test_every_tuner_of_peft_either_works_or_is_refused():
    assert WORKING.keys() | REFUSED.keys() == peft_tuners.tuners().keys()


@pytest.mark.parametrize(
    ("tuner", "trained"),
    [
        ("HRA", 6 * 96 * 8),  # eight reflections of the inputs
        ("LORA", 6 * 8 * (96 + 288)),
        ("LOHA", 6 * 2 * 8 * (96 + 288)),
        ("OFT", 6 * 3 * (32 * 31 // 2)),  # three blocks of skew-symmetric matrices
        ("VERA", 6 * (288 + 256)),  # two vectors, and none of the frozen projections
        ("SHIRA", 6 * 32 * (96 + 288)),  # the values, and not their indices
        ("LN_TUNING", (6 * 2 + 1) * 2 * 96),
    ],
)
def test_only_the_trained_tensors_are_sent(tuner: str, trained: int):
    assert count(methods.trainable(prepared(f"peft:{tuner}"))) == trained + HEAD


LINEAR = ("BEFT", "FOURIERFT", "IA3", "LN_TUNING", "SHIRA", "SUPERTUNING", "WAVEFT")


def merged_after(tuner: str, state: State) -> State:
    model = prepared(f"peft:{tuner}", parameters=WORKING[tuner]).double()
    methods.load_state(model, state)
    methods.merge(model)
    return {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("tuner", [*LINEAR, "LORA"])
def test_the_mean_of_trained_tensors_is_the_mean_of_weights_where_that_is_claimed(tuner: str):
    start = methods.trainable(prepared(f"peft:{tuner}", parameters=WORKING[tuner]))
    torch.manual_seed(0)
    one, other = (
        {n: p.detach().double() + 0.1 * torch.randn(p.shape) for n, p in start.items()}
        for _ in range(2)
    )
    mean = merged_after(tuner, {name: (one[name] + other[name]) / 2 for name in one})
    apart = [merged_after(tuner, state) for state in (one, other)]
    gap = max(float((mean[n] - (apart[0][n] + apart[1][n]) / 2).abs().max()) for n in mean)
    assert (gap < 1e-6) == (tuner in LINEAR)


@pytest.mark.parametrize("tuner", ["C3A", "GRALORA", "HRA", "TINYLORA"])
def test_a_tuner_trains_on_the_fast_products_of_frozen_layers(tuner: str):
    model = prepared(f"peft:{tuner}", parameters=WORKING[tuner])
    expected = model(torch.ones(2, 3, 16, 16))
    quicken(model)
    logits = model(torch.ones(2, 3, 16, 16))
    logits.square().sum().backward()
    assert torch.allclose(logits, expected, atol=1e-4)
    assert all(p.grad is not None for p in methods.trainable(model).values())


def test_two_tuners_add_up_on_different_layers_and_not_on_the_same():
    model = prepared("peft:HRA+peft:LN_TUNING")
    assert count(methods.trainable(model)) == 6 * 96 * 8 + (6 * 2 + 1) * 2 * 96 + HEAD
    for method in ("peft:HRA+peft:LORA", "lora+peft:HRA", "peft:HRA+lora"):
        with pytest.raises(UserError, match=r"change the layer|finds no linear layer"):
            prepared(method)


def test_hyper_parameters_are_those_of_the_tuner():
    model = prepared("peft:HRA", parameters={"r": 2}, targets=("q", "k", "v", "fc1"))
    assert count(methods.trainable(model)) == 6 * 2 * 2 * 96 + HEAD
    with pytest.raises(UserError, match=r"unknown parameter of method peft:HRA 'rr'.*'r'"):
        made("peft:HRA", parameters={"rr": 2})
    with pytest.raises(UserError, match="r: expected a whole number"):
        made("peft:HRA", parameters={"r": "many"})
    with pytest.raises(UserError, match="did you mean 'peft:HRA'"):
        made("peft:HRAA")


def test_a_part_of_qkv_alone_is_refused_with_the_targets_that_fit():
    with pytest.raises(UserError, match=r"cannot adapt q alone.*targets=\[q,k,v,proj\]"):
        prepared("peft:HRA", targets=("q", "proj"))
    assert "adapts the whole layer qkv" in made("peft:HRA").notes[0]
    assert made("peft:HRA", targets=("proj",)).notes == ()


def test_a_tuner_that_changes_the_pretrained_weights_is_refused():
    with pytest.raises(UserError, match="changes the pre-trained weights"):
        prepared("peft:LORA", parameters={"init_lora_weights": "pissa"})


def test_the_models_own_names_remain_and_equal_seeds_give_equal_tensors():
    one, other = prepared("peft:LORA+patch_embed"), prepared("peft:LORA+patch_embed", seed=1)
    names = methods.trainable(one)
    assert {"patch_embed.proj.weight", "head.weight"} <= names.keys()
    assert "lora:blocks.0.attn.qkv.lora_A.default.weight" in names
    first = "blocks.0.attn.qkv.lora_A.default.weight"
    assert not torch.equal(one.get_parameter(first), other.get_parameter(first))
    assert torch.equal(one.get_parameter(first), prepared("peft:LORA").get_parameter(first))


def test_without_peft_the_message_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    peft_part.part_class.cache_clear()
    with pytest.raises(UserError, match=r"pip install -e '\.\[peft\]'"):
        made("peft:HRA")


def test_a_file_or_a_comparison_may_name_a_tuner():
    config = load(None, {"finetuning.method": "peft:LoHa+patch_embed"})
    assert config.finetuning.method == "peft:LOHA+patch_embed"
    check_confirmed("peft:LOHA+patch_embed")
    assert read_words(["lora", "peft:HRA"], ["fedavg"]) == {
        "finetuning.method": ["lora", "peft:HRA"]
    }


@pytest.mark.parametrize("tuner", ["LOHA", "SHIRA", "BOFT"])
def test_a_tuner_that_reads_weights_passes_the_check_of_a_model_without_weights(tuner: str):
    model = {"model.name": "vit_tiny_patch16_224", "model.weights": "random"}
    config = load(None, {"finetuning.method": f"peft:{tuner}", **model})
    check_model(config, draft_of(config.model))


def test_a_tuner_fits_a_published_vit():
    """A random ViT-Ti/16 of timm, adapted, moved, merged and loaded into the plain model."""
    arguments: dict[str, Any] = {"num_classes": 3, "img_size": 32, "depth": 2}
    model = timm.create_model("vit_tiny_patch16_224", **arguments).eval()
    config = FineTuningConfig(method="peft:OFT", targets=("q", "k", "v", "proj", "fc1"))
    methods.prepare(model.requires_grad_(requires_grad=False), config, 0)
    torch.manual_seed(0)
    for parameter in methods.trainable(model).values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = model.double()(images)
    methods.merge(model)
    plain = timm.create_model("vit_tiny_patch16_224", **arguments).eval().double()
    plain.load_state_dict(model.state_dict())
    assert torch.allclose(plain(images), expected, atol=1e-10, rtol=0)


def test_nothing_is_asked_of_the_network():
    """Connections fail at once, and nobody notices."""
    program = """
import socket
def refuse(*_):
    raise SystemExit("asked the network")
socket.socket.connect = socket.getaddrinfo = refuse
from fl_vitlora.testing.method_subject import Subject
from fl_vitlora.config import FineTuningConfig
from fl_vitlora.finetuning import shelf
Subject(method=shelf.method_of(FineTuningConfig(method="peft:HRA"))).prepared()
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_HUB")}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)

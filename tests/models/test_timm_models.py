"""Names of models and where their weights come from; no test calls out."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor

from fl_vitlora.config import Config, ModelConfig, load
from fl_vitlora.config.method_names import PARTS
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.validation import check_model, draft_of
from fl_vitlora.models import hub_weights, timm_models
from fl_vitlora.models.backbone import WEIGHTS_FOLDER, Backbone, build, draft

TINY, TAG = "vit_tiny_patch16_224", "augreg_in21k"
COMMIT = 10 * "c0de"
DEPTH = {"depth": 1, "img_size": 32}


def as_on_the_hub(folder: Path) -> dict[str, Tensor]:
    """Writes a small model as the hub lays it out: config.json and model.safetensors."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    state: dict[str, Tensor] = timm.create_model(TINY, num_classes=7, **DEPTH).state_dict()
    save_file(state, folder / "model.safetensors")
    described = {
        "architecture": TINY,
        "num_classes": 7,
        "model_args": DEPTH,
        "pretrained_cfg": {"tag": "mine", "mean": [0.5] * 3, "std": [0.5] * 3},
    }
    (folder / "config.json").write_text(json.dumps(described))
    return state


def has(built: Backbone, state: dict[str, Tensor]) -> bool:
    found = built.model.state_dict()
    return all(torch.equal(found[n], t) for n, t in state.items() if not n.startswith("head"))


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets every attempt to call out fail the test."""

    def call_out(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"called out: {args}")

    monkeypatch.setattr(socket, "create_connection", call_out)
    monkeypatch.setattr(socket.socket, "connect", call_out)


@pytest.mark.usefixtures("no_network")
def test_a_folder_laid_out_like_the_hub_gives_architecture_and_weights(tmp_path: Path):
    state = as_on_the_hub(tmp_path / "mine")
    config = ModelConfig(name=f"local-dir:{tmp_path / 'mine'}")
    built = build(config, 3, 0)
    assert has(built, state)
    assert built.image_shape == (3, 32, 32)
    assert f"{TINY}.mine of {tmp_path / 'mine' / 'model.safetensors'}" == built.source
    assert built.notes == (
        f"weights {tmp_path / 'mine' / 'model.safetensors'}: a head in the file was ignored",
    )
    assert draft(config, 3).image_shape == (3, 32, 32)


@pytest.mark.usefixtures("no_network")
def test_what_lies_in_the_cache_of_the_hub_is_read_without_a_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The folders are those of the cache of huggingface_hub: refs, snapshots, files."""
    root = tmp_path / "hub" / "models--owner--mine"
    state = as_on_the_hub(root / "snapshots" / COMMIT)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("hf-hub:owner/mine", f"hf-hub:owner/mine@{COMMIT}"):
        built = build(ModelConfig(name=name), 3, 0)
        assert has(built, state)
        assert built.source.endswith(name)
    with pytest.raises(
        UserError, match="owner/other is not in the local cache, and the hub cannot"
    ):
        build(ModelConfig(name="hf-hub:owner/other"), 3, 0)


@pytest.mark.parametrize("name", [TINY, f"{TINY}.{TAG}", f"timm/{TINY}.{TAG}", f"timm/{TINY}"])
def test_names_of_timm_are_read_with_and_without_tag_and_owner(name: str):
    assert timm_models.resolved_name(name, {}) == name.removeprefix("timm/")
    built = build(ModelConfig(name=name, weights="random", image_size=(32,)), 3, 0)
    assert built.source == "random"
    with pytest.raises(UserError, match="is not in the local cache, and the hub cannot") as caught:
        draft(ModelConfig(name=name), 3)
    assert f"timm/{TINY}." in str(caught.value)


def test_the_tag_decides_which_weights_are_asked_for():
    for tag in ("augreg_in21k", "augreg_in21k_ft_in1k"):
        with pytest.raises(UserError, match=rf"timm/{TINY}\.{tag} is not"):
            draft(ModelConfig(name=f"timm/{TINY}.{tag}"), 3)


@pytest.mark.parametrize(
    ("name", "expectation"),
    [
        (f"{TINY}.augreg_in21", rf"unknown pretrained tag .* did you mean '{TINY}\.{TAG}'"),
        ("timm/vit_tiny_patch16_244", rf"unknown model .* did you mean '{TINY}'"),
        ("local-dir:/nowhere", r"/nowhere: expected a folder with the file config\.json"),
        ("owner/name", "unknown model"),
        ("hf-hub:", "expected hf-hub:owner/name"),
        ("hf-hub:../../x", "expected hf-hub:owner/name"),
    ],
)
def test_other_names_are_refused_in_one_line(name: str, expectation: str):
    with pytest.raises(UserError, match=expectation) as caught:
        draft(ModelConfig(name=name), 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expectation"),
    [
        ("no JSON", "cannot be built"),
        ("{}", "cannot be built"),
        ('{"architecture": "unheard_of"}', "cannot be built"),
        ('{"architecture": "resnet18", "pretrained_cfg": {}}', "no patch embedding"),
        (f'{{"architecture": "{TINY}", "pretrained_cfg": {{}}}}', "found none"),
        (
            f'{{"architecture": "{TINY}", "model_args": {{"x": 1}}}}',
            "cannot|does not support the given",
        ),
    ],
)
def test_a_folder_that_describes_no_model_is_refused(
    tmp_path: Path, content: str, expectation: str
):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=expectation) as caught:
        build(ModelConfig(name=f"local-dir:{tmp_path}"), 3, 0)
    assert "\n" not in str(caught.value)


def test_the_proxy_is_asked_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    for variable in ("https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
    assert hub_weights._first_address("https://hub.example/") == ("hub.example", 443)
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    assert hub_weights._first_address("https://hub.example/") == ("proxy.example", 3128)
    monkeypatch.setenv("no_proxy", "hub.example")
    assert hub_weights._first_address("https://hub.example/") == ("hub.example", 443)


def look(config: Config) -> None:
    """Looks at a model as the start of a run does."""
    check_model(config, draft_of(config.model))


REFUSED = [
    "volo_d1_224",
    "hiera_tiny_224",
    "mvitv2_tiny",
    "pvt_v2_b0",
    "vit_tiny_r_s16_p8_224",
    "xcit_nano_12_p8_224",
    "tiny_vit_5m_224",
    "fasternet_t0",
    "resnet18",
]


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_do_not_begin_with_patches_are_refused_before_anything_starts(name: str):
    config = load(None, {"model.name": name, "model.weights": "random"})
    with pytest.raises(UserError, match="no patch embedding of non-overlapping patches"):
        look(config)


@pytest.mark.parametrize("name", ["beit_base_patch16_224", "eva02_tiny_patch14_224"])
def test_models_that_would_bypass_lora_are_refused_before_anything_starts(name: str):
    asked = {"model.name": name, "model.weights": "random"}
    with pytest.raises(UserError, match="would ignore LoRA"):
        look(load(None, asked))
    look(load(None, {**asked, "finetuning.method": "full"}))


@pytest.mark.parametrize("name", [TINY, "deit_tiny_distilled_patch16_224", "cait_xxs24_224"])
def test_models_that_can_be_trained_pass(name: str):
    look(load(None, {"model.name": name, "model.weights": "random"}))


@pytest.mark.parametrize("part", PARTS)
def test_every_method_can_be_tried_on_an_ordinary_model_before_its_weights_are_loaded(part: str):
    alone = part not in ("descent", "feature_statistics")
    method = part if alone else f"lora+{part}"
    given = {"model.name": TINY, "model.weights": "random", "finetuning.method": method}
    look(load(None, given))


def test_a_bundled_model_with_weights_of_ones_own_passes_the_first_look():
    weights = str(WEIGHTS_FOLDER / "vit_letters_16_plain.safetensors")
    look(load(None, {"model.weights": weights}))

"""The head starts from a discriminant analysis where its statistics are exact, and is recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import yaml
from flwr.serverapp.strategy import FedAvg as FlowersFedAvg
from safetensors.torch import save_file

import strategies
from fl_vitlora import config as configuration
from fl_vitlora.config import Config
from fl_vitlora.errors import UserError
from fl_vitlora.experiment import runner
from fl_vitlora.experiment.head_start import why_zero, with_head_start
from fl_vitlora.experiment.known_runs import as_it_runs
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.flower.simulation.engine import Engine
from fl_vitlora.reporting.run_folder import find_run
from fl_vitlora.strategy import Strategy
from tests.whole_runs import execute

TINY = "vit_tiny_patch16_224"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights of an ordinary ViT in a file."""
    torch.manual_seed(0)
    model = timm.create_model(TINY, pretrained=False, img_size=32, num_classes=0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(model.state_dict(), path)
    return str(path)


def ordinary(weights: str, **given: Any) -> Config:
    own = {path.replace("__", "."): value for path, value in given.items()}
    model = {"model.name": TINY, "model.weights": weights, "model.image_size": [32]}
    return configuration.load(None, {"rounds": 3, **model, **own})


def start_of(config: Config) -> tuple[str, str]:
    tuning = with_head_start(config, strategies.load_for(config)).finetuning
    return tuning.head_start, tuning.method


def test_the_default_job_and_a_run_of_an_ordinary_model_start_differently(weights: str) -> None:
    assert start_of(Config()) == ("zero", "lora+patch_embed")
    assert start_of(ordinary(weights)) == ("lda", "lora+patch_embed+lda")
    fine = ordinary(weights, compression__downlink="int8")
    assert start_of(fine) == ("lda", "lora+patch_embed+lda")


@pytest.mark.parametrize(
    "given",
    [
        {"finetuning__head_start": "zero"},
        {"rounds": 1},
        {"strategy": "krum"},
        {"strategy": "flora"},
        {"privacy__secure_aggregation": True},
        {"privacy__clipping_norm": 1.0},
        {"compression__uplink": "int4"},
        {"compression__downlink": "ecsq(1.4)"},
        {"compression__downlink__head": "int2"},
        {"compression__uplink__other": "bfloat16"},
        {"attack__kinds": ["scale"], "attack__clients": 1},
        {"model__weights": "random"},
        {
            "model__name": "vit_letters_16",
            "model__weights": "pretrained",
            "model__image_size": None,
        },
    ],
    ids="-".join,
)
def test_where_means_may_be_changed_the_head_starts_at_zero(
    weights: str, given: dict[str, Any]
) -> None:
    assert start_of(ordinary(weights, **given)) == ("zero", "lora+patch_embed")


def test_each_reason_is_a_sentence_of_its_own(weights: str) -> None:
    config = ordinary(weights, finetuning__method="lora+lda")
    assert why_zero(config, strategies.load_for(config)) == ""
    assert why_zero(config, FlowersFedAvg()) == "the strategy may change means"
    one_round = ordinary(weights, finetuning__method="lora+lda", rounds=1)
    assert "one round" in why_zero(one_round, strategies.load_for(one_round))


def test_a_model_with_two_heads_starts_at_zero(tmp_path: Path) -> None:
    name = "deit_tiny_distilled_patch16_224"
    path = tmp_path / "deit.safetensors"
    save_file(timm.create_model(name, img_size=32, num_classes=0).state_dict(), path)
    config = ordinary(str(path), model__name=name)
    assert start_of(config) == ("zero", "lora+patch_embed")


def test_what_the_user_asks_for_is_done(weights: str) -> None:
    asked = ordinary(weights, finetuning__head_start="lda", privacy__secure_aggregation=True)
    assert start_of(asked) == ("lda", "lora+patch_embed+lda")
    by_method = configuration.load(None, {"finetuning.method": "head+lda"})
    assert start_of(by_method) == ("lda", "head+lda")
    torn = ordinary(weights, finetuning__method="head+lda", finetuning__head_start="zero")
    with pytest.raises(UserError, match=r"head_start zero with method head\+lda: the part lda"):
        start_of(torn)


def test_a_decision_is_made_once(weights: str) -> None:
    """A run is resumed from the decided configuration, and a comparison knows it again."""
    for config in (Config(), ordinary(weights), ordinary(weights, strategy="krum")):
        decided = with_head_start(config, strategies.load_for(config))
        assert with_head_start(decided, strategies.load_for(decided)) == decided
        assert as_it_runs(config, strategies.load_for) == decided
    other = with_head_start(ordinary(weights, strategy="krum"), strategies.load("krum", {}))
    assert with_head_start(other, strategies.load("fedavg", {})) == other


def test_a_run_of_an_older_version_started_at_zero(tmp_path: Path, weights: str) -> None:
    tree = configuration.to_mapping(ordinary(weights))
    del tree["finetuning"]["head_start"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    config, _ = find_run(tmp_path)
    assert config.finetuning.head_start == "zero"


def test_a_start_builds_the_model_once_to_look_at_it(
    tmp_path: Path, weights: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head start and the check of the layers look at the same draft."""
    built = list[str]()

    def counted(name: str, **given: Any) -> Any:
        built.append(name)
        return create(name, **given)

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", counted)
    config = ordinary(weights, out=str(tmp_path / "run"))
    started = runner._checked(config, strategies.load_for(config), Watch(), resume=False)
    assert started.config.finetuning.head_start == "lda"
    assert len(built) == 1


@pytest.mark.slow
def test_a_run_of_an_ordinary_model_measures_first_and_records_it(
    tmp_path: Path, weights: str, engine: Engine
) -> None:
    model = {"model__name": TINY, "model__weights": weights, "model__image_size": [32]}
    done = execute(tmp_path, engine, **model, rounds=2)
    config, _ = find_run(done.folder)
    assert (config.finetuning.head_start, done.result["method"]) == ("lda", "lora+patch_embed+lda")
    first, second = (set(line["payload_by_group"]) for line in done.lines)
    assert first == {"other"}
    assert second >= {"patch_embed", "lora_A", "lora_B", "head"}


OWN = {name: strategies.load(name, {}) for name in strategies.available()}
AVERAGING = [name for name, own in OWN.items() if isinstance(own, Strategy) and own.sums_suffice]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", AVERAGING)
def test_the_start_goes_with_each_strategy_that_averages(
    tmp_path: Path, engine: Engine, strategy: str
) -> None:
    done = execute(
        tmp_path, engine, strategy=strategy, finetuning__head_start="lda", rounds=3, fraction=1.0
    )
    first, *_ = done.lines
    assert first["accuracy"] > 0.5

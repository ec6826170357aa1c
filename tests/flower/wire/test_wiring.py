"""What both ends derive from the configuration, and which combinations are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

import strategies
from fl_vitlora.communication.codecs import CODECS
from fl_vitlora.config import load, resolve
from fl_vitlora.config.grid import is_grid, read_grid
from fl_vitlora.config.yaml_text import read_yaml
from fl_vitlora.errors import UserError
from fl_vitlora.flower.strategies.aggregators import Unaided, client_half
from fl_vitlora.flower.wire.wiring import chance, check_codecs, lanes_of


def test_one_word_is_the_codec_of_all_groups_and_groups_may_have_their_own():
    given = {"compression.uplink": "float16", "compression.uplink.head": "bfloat16"}
    uplink = lanes_of(load(None, given).compression.uplink)
    assert str(uplink.of("head.bias").codec) == "bfloat16"
    assert str(uplink.of("patch_embed.proj.weight").codec) == "float16"


def test_by_default_nothing_is_compressed():
    compression = load(None).compression
    assert lanes_of(compression.uplink).exact
    assert lanes_of(compression.downlink).exact


@pytest.mark.parametrize(
    ("path", "spec", "told"),
    [
        ("compression.uplink", "int44", "compression.uplink.codec: unknown codec 'int44'; did you"),
        ("compression.downlink.head", "every(0)", "compression.downlink.head: codec 'every(0)'"),
    ],
)
def test_a_codec_that_is_none_is_told_with_its_place(path: str, spec: str, told: str):
    with pytest.raises(UserError) as caught:
        check_codecs(load(None, {path: spec}), Unaided())
    assert str(caught.value).startswith(told)


@pytest.mark.parametrize("spec", ["int2(rounding=stochastic)", "qsgd(7,512)", "topk(0.1)+qsgd(1)"])
def test_a_codec_that_strays_is_not_fed_its_errors(spec: str):
    with pytest.raises(UserError, match=r"compression\.uplink\.head: .* would grow"):
        check_codecs(load(None, {"compression.uplink.head": spec}), Unaided())
    with pytest.raises(UserError, match=r"compression\.downlink\.codec: .* would grow"):
        check_codecs(load(None, {"compression.downlink": spec}), Unaided())
    free = {"compression.uplink": spec, "compression.error_feedback": False}
    check_codecs(load(None, free), Unaided())


def test_masked_updates_are_not_compressed_but_what_clients_are_sent_may_be():
    secure = {"privacy.secure_aggregation": True}
    check_codecs(load(None, {**secure, "compression.downlink": "float16"}), Unaided())
    with pytest.raises(UserError, match="masked words look random"):
        check_codecs(load(None, {**secure, "compression.uplink": "float16"}), Unaided())


def test_every_message_has_chances_of_its_own():
    one, same, other = (chance(0, "uplink", n).random(5).tolist() for n in (1, 1, 2))
    assert one == same != other


def test_what_begins_anew_in_every_round_travels_in_every_round():
    flora = client_half(strategies.load("flora", {}))
    for name in ("flora", "flexlora", "fedsvd"):
        every = {"compression.uplink.lora_B": "every(2)+int4", "strategy": name}
        with pytest.raises(UserError, match="lora_B is overwritten in every round"):
            check_codecs(load(None, every), client_half(strategies.load(name, {})))
    check_codecs(load(None, {"compression.uplink.head": "every(2)+int4"}), flora)


def test_a_group_that_would_never_travel_when_it_was_trained_is_refused():
    """RoLoRA trains B in odd rounds; every second round is even, and so is the last."""
    rolora = client_half(strategies.load("rolora", {}))
    every = {"compression.uplink.lora_B": "every(2)+int4", "strategy": "rolora"}
    with pytest.raises(UserError, match="lora_B is never sent in a round in which it is trained"):
        check_codecs(load(None, every), rolora)
    check_codecs(load(None, {**every, "rounds": 21}), rolora)
    check_codecs(load(None, {**every, "compression.uplink.lora_B": "every(3)+int4"}), rolora)


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_as_it_is_by_default_may_travel_both_ways(name: str):
    spec = {"topk": "topk(0.1)", "lowrank": "lowrank(2)"}.get(name, name)
    both = {"compression.uplink": spec, "compression.downlink": spec}
    check_codecs(load(None, both), Unaided())


@pytest.mark.parametrize(
    "path", ["thousand_fold.yaml", "grids/thousand_fold.yaml", "grids/codecs.yaml"]
)
def test_what_the_files_recommend_may_travel(path: str):
    tree = read_yaml(str(Path(__file__).parents[3] / "configs" / path))
    experiments = (
        [config for _, config in read_grid(tree, {}).runs] if is_grid(tree) else [resolve(tree, {})]
    )
    for experiment in experiments:
        check_codecs(experiment, Unaided())

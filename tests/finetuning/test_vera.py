"""VeRA: two vectors for each slice are trained; the frozen matrices are shared and never sent."""

from __future__ import annotations

import copy

import torch

from fl_vitlora.config import FineTuningConfig
from fl_vitlora.finetuning import methods
from fl_vitlora.finetuning.vera import SharedPair, VeRA, VeRAAdapter
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.state import count
from fl_vitlora.testing.method import check_method
from fl_vitlora.testing.method_clients import gap_of
from tests.conftest import random_vit
from tests.finetuning.moved_model import subject_of


def prepared(seed: int = 0) -> Backbone:
    built = random_vit()
    config = FineTuningConfig(method="vera", targets=("q", "v", "fc1", "fc2"))
    methods.prepare(built.model, config, seed)
    return built


def pairs(built: Backbone) -> list[SharedPair]:
    return [m.pair for m in built.model.modules() if isinstance(m, VeRAAdapter)]


def test_the_weight_is_that_of_the_formula():
    torch.manual_seed(0)
    weight = torch.randn(5, 7, dtype=torch.float64)
    adapter = VeRA(shared_rank=3).adapter(weight).double()
    assert torch.equal(adapter.adapted(weight), weight)
    for parameter in adapter.parameters():
        parameter.data.normal_()
    inner, outer = torch.diag(adapter.inner), torch.diag(adapter.outer)
    expected = weight + outer @ adapter.pair.B @ inner @ adapter.pair.A
    assert torch.allclose(adapter.adapted(weight), expected, atol=1e-14, rtol=1e-14)


def test_slices_of_equal_shape_share_their_matrices_also_in_copies_and_after_a_move():
    built = prepared()
    places = {t.data_ptr() for pair in pairs(built) for t in (pair.A, pair.B)}
    assert len(pairs(built)) == 6 * 4
    assert len(places) == 3 * 2  # the shapes are those of q and v, of fc1 and of fc2
    other = copy.deepcopy(built)
    other.model.double()
    assert len({t.data_ptr() for pair in pairs(other) for t in (pair.A, pair.B)}) == 3 * 2


def test_the_vectors_of_slices_are_not_shared():
    model = prepared().model
    methods.load_state(
        model, {n: torch.randn_like(t) for n, t in methods.export_state(model).items()}
    )
    own = [t for n, t in methods.trainable(model).items() if n.endswith(".outer")]
    assert len({float(t.detach()[0]) for t in own}) == 6 * 4


def test_parties_with_the_same_seed_draw_the_same_matrices():
    for one, other in zip(pairs(prepared()), pairs(prepared()), strict=True):
        assert torch.equal(one.A, other.A)
        assert torch.equal(one.B, other.B)
    assert not torch.equal(pairs(prepared())[0].A, pairs(prepared(seed=1))[0].A)


def test_a_slice_trains_one_number_for_each_output_and_each_rank():
    built = prepared()
    expected = 6 * (2 * 96 + 288 + 96 + 4 * 256) + 970
    assert count(methods.trainable(built.model)) == expected
    names = {name.rpartition(".")[2] for name in methods.trainable(built.model)}
    assert names == {"inner", "outer", "weight", "bias"}


def test_averages_are_biased_but_exact_for_equal_clients():
    assert gap_of(subject_of(VeRA())) > 1e-3
    assert gap_of(subject_of(VeRA()), seeds=(1, 1)) < 1e-12


def test_both_vectors_have_the_larger_learning_rate():
    model = prepared().model
    rates = methods.rates(model)
    own = [name for name in methods.trainable(model) if not name.startswith("head")]
    assert dict.fromkeys(own, 10.0) == dict(rates)


def test_slices_of_any_shape_keep_every_rule():
    check_method(VeRA(shared_rank=8, targets=("v", "fc1", "fc2")))

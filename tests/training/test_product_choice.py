"""The choice of a library for matrix products: it is measured once and then kept."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from fl_vitlora.errors import UserError
from fl_vitlora.finetuning import products
from fl_vitlora.training import product_choice
from fl_vitlora.training.product_choice import (
    cache_file,
    choose_library,
    description,
    fastest,
    read_choices,
    seconds_of,
    shapes_of,
)
from tests.conftest import MakeBackbone
from tests.in_process import precision

ROWS = 32


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(products.VARIABLE, raising=False)


@pytest.fixture
def model(make_backbone: MakeBackbone) -> nn.Module:
    return make_backbone().model


def test_only_layers_without_trained_tensors_count(model: nn.Module):
    """The bundled model has six blocks, whose width is 96; the head is trained."""
    assert shapes_of(model) == {(288, 96): 12, (96, 96): 6, (96, 288): 6}


def test_the_measured_choice_is_kept_and_used_again(model: nn.Module):
    first = choose_library(model, "cpu", ROWS)
    assert first in products.LIBRARIES
    assert read_choices() == {description(shapes_of(model), ROWS): first}
    (other,) = set(products.LIBRARIES) - {first}
    kept = json.loads(cache_file().read_text())
    cache_file().write_text(json.dumps(dict.fromkeys(kept, other)))
    assert choose_library(model, "cpu", ROWS) == other  # nothing was measured


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}'])
def test_a_file_that_cannot_be_read_is_written_again(content: str, model: nn.Module):
    choose_library(model, "cpu", ROWS)
    whole = read_choices()
    cache_file().write_text(content)
    choose_library(model, "cpu", ROWS)
    assert read_choices().keys() == whole.keys()


def test_without_a_cache_folder_a_choice_is_made_all_the_same(
    model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))  # no folder can be made in it
    assert choose_library(model, "cpu", ROWS) in products.LIBRARIES


@pytest.mark.parametrize("slow", products.LIBRARIES)
def test_the_library_that_takes_longer_is_not_chosen(slow: str, monkeypatch: pytest.MonkeyPatch):
    def seconds(m: int, n: int, rows: int) -> dict[str, float]:
        return {name: m * n * rows * (2.0 if name == slow else 1.0) for name in products.LIBRARIES}

    monkeypatch.setattr(product_choice, "seconds_of", seconds)
    assert fastest({(8, 4): 2, (4, 4): 1}, ROWS) != slow


def test_the_libraries_take_turns_so_that_a_change_of_the_machine_meets_both(
    monkeypatch: pytest.MonkeyPatch,
):
    order = []

    def noted(name: str) -> Callable[..., torch.Tensor]:
        def product(x: torch.Tensor, weight: torch.Tensor, bias: None) -> torch.Tensor:
            order.append(name)
            return x @ weight.mT

        return product

    monkeypatch.setattr(products, "one_dnn_linear", noted("onednn"))
    monkeypatch.setattr(nn.functional, "linear", noted("mkl"))
    found = seconds_of(8, 4, ROWS)
    assert order == [*products.LIBRARIES] * product_choice.REPETITIONS
    assert all(spent > 0 for spent in found.values())


def test_measuring_leaves_the_number_of_threads_as_it_was():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fastest({(8, 4): 1}, ROWS)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_products_are_measured_in_float32_whatever_the_default_is():
    with precision(torch.float64):
        assert fastest({(8, 4): 1}, ROWS) in products.LIBRARIES


@pytest.mark.parametrize("named", products.LIBRARIES)
def test_the_environment_decides_without_measuring(
    named: str, model: nn.Module, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(products.VARIABLE, named)
    assert choose_library(model, "cpu", ROWS) == named
    assert read_choices() == {}


def test_an_unknown_library_is_refused(model: nn.Module, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(products.VARIABLE, "mlk")
    with pytest.raises(UserError, match=r"FL_VITLORA_PRODUCTS=mlk .* expected mkl or onednn"):
        choose_library(model, "cpu", ROWS)


def test_a_gpu_has_no_choice(model: nn.Module):
    assert choose_library(model, "cuda", ROWS) == products.DEFAULT
    assert read_choices() == {}


@pytest.mark.parametrize("library", products.LIBRARIES)
def test_a_process_computes_with_the_library_that_it_was_told(library: str):
    before = products.used()
    try:
        products.use(library)
        assert products.used() == library
        if products.has_choice():
            quick = products.product_for(torch.zeros(2, 2))
            assert (quick is nn.functional.linear) is (library == "mkl")
    finally:
        products.use(before)

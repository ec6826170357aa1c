"""With models adapted to keys, a whole federated run is the run on plain images.

A signed permutation of pixels, undone in the patch embedding, changes the order in which numbers
are added, and nothing else. So the two runs differ by rounding, and by what training makes of it:

* Plain descent leaves rounding as small as it is.
* AdamW divides a gradient by its own size. An element whose gradient is smaller than its rounding
  takes a step of full size in either direction, and whatever is trained after that depends on it.

The share of such elements is about that of the rounding in a gradient: the width of the model
times the unit of the number format, as gradients are sums of so many terms. An element that is
noise in all steps is wrong by at most twice the sum S of their rates. So with n elements the
distance of two runs is at most about 2·S·√(n·share). It is measured beside how far training moved
the model, of which it is two hundredths in float32. In float64 there are no such elements in so
few steps; what remains is a distance as much smaller as the unit is. The least mistake, a single
wrong sign in the key of a single client, changes the run by more than a third of that way.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import pytest
import torch

from fl_vitlora.encryption.holder import KeyHolder, client_party
from fl_vitlora.encryption.patch_reader import PatchReader
from fl_vitlora.finetuning import products
from fl_vitlora.models.reading import exchanged_reader, with_exchanged_reader
from fl_vitlora.state import State, count, l2_norm, subtract
from tests.in_process import Ended, Spoil, federate, settings

WIDTH = 96  # of the bundled model
PATCHES = 16
UNIT = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
PLAIN: dict[str, Any] = {"encryption__steps": []}
OWN_KEYS: dict[str, Any] = {
    "encryption__scope": "client",
    "encryption__adapt": True,
    "finetuning__patch_embedding": "aligned",
}
ONE_KEY: dict[str, Any] = {"encryption__adapt": True}
SGD: dict[str, Any] = {"training__optimizer": "sgd", "training__learning_rate": 0.05}


def in_plain_coordinates(run: Ended) -> State:
    """Turns the model of a run whose server has everybody's key back to plain images."""
    turned = run.holder.restore(exchanged_reader(run.model, PATCHES), "server")
    return with_exchanged_reader(run.model, turned)


def way_of(run: Ended) -> float:
    """Measures how far training moved a model."""
    return l2_norm(subtract(run.model, run.initial))


def noise_of(run: Ended) -> float:
    """Bounds the distance of two runs with AdamW that differ by rounding; see the module."""
    unit = UNIT[next(iter(run.model.values())).dtype]
    share = WIDTH * UNIT[torch.float32]
    return 2 * run.rates * math.sqrt(count(run.model) * share) * unit / UNIT[torch.float32]


@functools.cache
def plain_run(seed: int, library: str) -> Ended:
    """Runs in float32 with AdamW on plain images; the library is part of the question."""
    assert library == products.used()
    return federate(settings(seed, **PLAIN), torch.float32)


@pytest.fixture(params=products.LIBRARIES)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets one library compute all products, and the other one none."""
    monkeypatch.setenv(products.VARIABLE, request.param)
    before = torch.backends.mkldnn.set_flags(_enabled=request.param == "onednn")
    yield request.param
    torch.backends.mkldnn.set_flags(_enabled=before[0])


@pytest.mark.parametrize("optimizer", [{}, SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("keys", [OWN_KEYS, ONE_KEY], ids=["own keys", "one key"])
def test_in_double_precision_a_whole_run_is_the_plain_run(
    keys: dict[str, Any], optimizer: dict[str, Any]
) -> None:
    """Some clients rest in a round, as in most experiments."""
    plain = federate(settings(0, **PLAIN, **optimizer, fraction=0.66), torch.float64)
    keyed = federate(settings(0, **keys, **optimizer, fraction=0.66), torch.float64)
    reached = keyed.model if keys is OWN_KEYS else in_plain_coordinates(keyed)
    assert {tensor.dtype for tensor in reached.values()} == {torch.float64}
    assert way_of(plain) > 0.1
    bound = 1e-12 * way_of(plain) if optimizer else noise_of(plain)
    assert l2_norm(subtract(reached, plain.model)) < bound
    assert keyed.accuracy == plain.accuracy
    assert keyed.loss == pytest.approx(plain.loss, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_where_descent_amplifies_no_rounding_single_precision_shows_it_as_well(
    seed: int, library: str
) -> None:
    plain = federate(settings(seed, **PLAIN, **SGD), torch.float32)
    keyed = federate(settings(seed, **OWN_KEYS, **SGD), torch.float32)
    distance = l2_norm(subtract(keyed.model, plain.model))
    assert distance < WIDTH * UNIT[torch.float32] * way_of(plain)
    assert keyed.loss == pytest.approx(plain.loss, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_with_adamw_in_single_precision_the_runs_differ_by_few_elements_that_are_noise(
    seed: int, library: str
) -> None:
    plain = plain_run(seed, library)
    keyed = federate(settings(seed, **OWN_KEYS), torch.float32)
    assert l2_norm(subtract(keyed.model, plain.model)) < noise_of(plain)
    assert noise_of(plain) < 0.1 * way_of(plain)


def wrong_sign(reader: PatchReader) -> PatchReader:
    """Forgets a single negative-positive transformation."""
    weight = reader.weight.clone()
    weight[..., 20] *= -1
    return dataclasses.replace(reader, weight=weight)


def wrong_entry(reader: PatchReader) -> PatchReader:
    """Swaps two pixels of a patch."""
    weight = reader.weight.clone()
    weight[..., [20, 23]] = weight[..., [23, 20]]
    return dataclasses.replace(reader, weight=weight)


def wrong_place(reader: PatchReader) -> PatchReader:
    """Swaps two neighbouring patches of an image."""
    if reader.position is None or not reader.position.shape[1]:
        return reader
    position = reader.position.clone()
    position[[5, 6]] = position[[6, 5]]
    return dataclasses.replace(reader, position=position)


def of_one_client(wrong: Any) -> Spoil:
    """Makes a key holder that is mistaken about a single client."""

    class Mistaken(KeyHolder):
        def adapt(self, reader: PatchReader, party: str) -> PatchReader:
            right = super().adapt(reader, party)
            return wrong(right) if party == client_party(0) else right

    def spoil(holder: KeyHolder) -> KeyHolder:
        fields = (field.name for field in dataclasses.fields(holder))
        return Mistaken(**{name: getattr(holder, name) for name in fields})

    return spoil


@pytest.mark.parametrize("wrong", [wrong_sign, wrong_entry, wrong_place])
@pytest.mark.parametrize("seed", range(3))
def test_the_least_mistake_in_one_adaptation_is_far_beyond_that_bound(
    seed: int, wrong: Any
) -> None:
    plain = plain_run(seed, products.used())
    keyed = federate(settings(seed, **OWN_KEYS), torch.float32, of_one_client(wrong))
    assert l2_norm(subtract(keyed.model, plain.model)) > 3 * noise_of(plain)

"""Hostile servers read one update of a secure sum, and what clients can do against it.

Real clients answer. Each of them trains on its own digits.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.false_dropout import FalseDropout
from fl_vitlora.attacks.false_keys import FalseKeys
from fl_vitlora.attacks.inconsistent_models import InconsistentModels
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.single_out import SingleOut
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.unequal_weights import UnequalWeights
from fl_vitlora.attacks.unmasking import ERROR, NUMBERS, REFUSED, Read, honest_order
from fl_vitlora.attacks.views import HostileServerView, Order
from fl_vitlora.encryption.identities import Identities, Pins, draw_identity
from fl_vitlora.experiment.hostile_server import asking, sum_clients
from fl_vitlora.finetuning import methods
from fl_vitlora.flower.client.workspace import ClientSettings
from fl_vitlora.state import scale
from fl_vitlora.testing.made_up_sums import MadeUpSumClient
from strategies.fedavg import FedAvg
from tests.attacks.made_up_views import digits, model_of, named, public, settings
from tests.flower.conftest import write_shards

STEP = 4.0 / 2**30 * 3  # of the fixed point, with the range 4 and three clients
DRAWN = {client: draw_identity(client) for client in range(3)}
PINS = Pins(keys={c: one.public for c, one in DRAWN.items()}, source="clients.pub")
IDENTITIES = Identities(pins=PINS, private_keys={c: one.private for c, one in DRAWN.items()})


@pytest.fixture
def written(tmp_path: Path) -> ClientSettings:
    config = settings(privacy__secure_aggregation=True)
    keyless = replace(config, encryption=replace(config.encryption, key_file=""))
    return write_shards(tmp_path, keyless, bytes(32))


def observed(
    written: ClientSettings, victim: int, *, pinned: bool = False, **given: Any
) -> tuple[HostileServerView, Truth]:
    """Returns what the server has against a client, and the update that the client really makes."""
    config = replace(written.config, privacy=replace(written.config.privacy, **given))
    clients = replace(written, config=config, identities=IDENTITIES if pinned else None)
    backbone, reader = model_of(config)
    start = methods.export_state(backbone.model)
    view = HostileServerView(
        public=public(config, digits(0, 3).images, reader),
        reader=reader,
        client=victim,
        model=backbone.model,
        start=start,
        ask=lambda order: "",
        sum_clients=lambda: sum_clients(clients),
    )
    bare = replace(config, privacy=replace(config.privacy, secure_aggregation=False))
    order = Order(tensors=start, round=1, rate=view.public.rates[0])
    update = asking(replace(clients, config=bare, identities=None), victim)(order)
    assert not isinstance(update, str)
    return view, Truth(updates={victim: update})


def found(
    attack: Attack[HostileServerView, Read], view: HostileServerView, truth: Truth
) -> dict[str, Figure]:
    assert attack.lacks(view) == ""
    return named(attack.score(attack.guess(view), truth))


@pytest.mark.parametrize("attack", [FalseKeys(), FalseDropout()], ids=["keys", "dropout"])
def test_the_update_of_a_client_is_read_to_the_last_step_of_the_fixed_point(
    written: ClientSettings, attack: Any
):
    view, truth = observed(written, 1)
    guess = attack.guess(view)
    for name, tensor in truth.updates[1].items():
        assert (guess.delta[name] - tensor).abs().max() <= 0.51 * STEP + 1e-7 * tensor.abs().max()
    figures = named(attack.score(guess, truth))
    assert figures[NUMBERS].value == 100
    assert (figures[NUMBERS].floor or 0) < 50
    assert figures[ERROR].value < 1e-3  # percent
    assert figures[REFUSED].value == 0


def test_false_keys_are_refused_by_clients_with_pinned_keys(written: ClientSettings):
    view, truth = observed(written, 1, pinned=True)
    figures = found(FalseKeys(), view, truth)
    assert figures[NUMBERS].value == figures[NUMBERS].floor
    assert (figures[ERROR].value, figures[REFUSED].value) == (100, 100)


def test_pinned_keys_do_not_prevent_a_false_dropout(written: ClientSettings):
    view, truth = observed(written, 2, pinned=True)
    figures = found(FalseDropout(), view, truth)
    assert figures[NUMBERS].value == 100


def test_a_false_dropout_is_in_vain_if_clients_reveal_no_seeds(written: ClientSettings):
    view, truth = observed(written, 2, pinned=True, reveal_seeds=False)
    figures = found(FalseDropout(), view, truth)
    assert figures[NUMBERS].value == figures[NUMBERS].floor
    assert (figures[ERROR].value, figures[REFUSED].value) == (100, 100)


@pytest.mark.parametrize("given", [{}, {"pinned": True, "reveal_seeds": False}])
def test_masks_do_not_cancel_if_clients_are_told_different_things(
    written: ClientSettings, given: dict[str, Any]
):
    view, truth = observed(written, 1, **given)
    figures = found(InconsistentModels(), view, truth)
    assert figures[NUMBERS].value == figures[NUMBERS].floor
    assert (figures[ERROR].value, figures[REFUSED].value) == (100, 0)
    single = SingleOut(view, silence=True, outweigh=False)
    honest = Order(tensors=view.start, round=1, rate=view.public.rates[0])
    assert single.ask(honest) == "the masks do not cancel"


def test_clients_that_check_the_work_of_a_sum_do_not_stop_a_server_that_keeps_to_the_plan(
    written: ClientSettings,
):
    """An audit must not count a refusal that a smarter server would not get."""
    view, _ = observed(replace(written, strategy=FedAvg()), 1)
    single = SingleOut(view, silence=False, outweigh=False)
    for _ in range(2):
        assert isinstance(single.ask(honest_order(view)), dict)
    silent = SingleOut(view, silence=True, outweigh=False)
    assert "got 0 as the learning rate" in str(silent.ask(honest_order(view)))


def test_without_this_dependence_one_client_alone_would_be_in_the_sum():
    """The masks of these clients do not depend on what the server told them."""

    class Credulous(MadeUpSumClient):
        def _told(self, order: Order) -> bytes:
            return b""

    config = settings(privacy__secure_aggregation=True)
    backbone, reader = model_of(config)
    start = methods.export_state(backbone.model)
    updates = {client: scale(start, (client + 1) / 100) for client in range(3)}
    view = HostileServerView(
        public=public(config, digits(0, 3).images, reader),
        reader=reader,
        client=1,
        model=backbone.model,
        start=start,
        ask=lambda order: "",
        sum_clients=lambda: {c: Credulous(c, update) for c, update in updates.items()},
    )
    figures = found(InconsistentModels(), view, Truth(updates=updates))
    assert figures[NUMBERS].value == 100
    assert figures[ERROR].value < 1e-3  # percent


@pytest.mark.parametrize("pinned", [False, True])
def test_a_sum_in_which_one_client_has_all_the_weight_is_its_update(
    written: ClientSettings, pinned: bool
):
    view, truth = observed(written, 1, pinned=pinned)
    figures = found(UnequalWeights(), view, truth)
    assert figures[ERROR].value < 0.01  # percent
    assert figures[REFUSED].value == 0


def test_clients_with_a_limit_of_shares_refuse_unequal_weights(written: ClientSettings):
    limited = replace(written, config=replace(written.config, max_client_share=0.5))
    view, truth = observed(limited, 1)
    figures = found(UnequalWeights(), view, truth)
    assert figures[NUMBERS].value == figures[NUMBERS].floor
    assert (figures[ERROR].value, figures[REFUSED].value) == (100, 100)
    single = SingleOut(view, silence=False, outweigh=True)
    reason = single.ask(Order(tensors=view.start, round=1, rate=view.public.rates[0]))
    assert "max_client_share" in str(reason)
    assert "client 1 a share of 1 in the mean, expected at most 0.5" in str(reason)


def test_without_secure_sums_there_is_nothing_to_unmask():
    config = settings()
    backbone, reader = model_of(config)
    view = HostileServerView(
        public=public(config, digits(0, 3).images, reader),
        reader=reader,
        client=0,
        model=backbone.model,
        start=methods.export_state(backbone.model),
        ask=lambda order: "",
    )
    for attack in (FalseKeys(), FalseDropout(), InconsistentModels(), UnequalWeights()):
        assert "there are no secure sums" in attack.lacks(view)


def test_another_update_is_not_taken_for_the_one_that_was_sent():
    """The figure of a guess that is wrong by ten steps."""
    true = {"head.weight": torch.linspace(0.1, 0.2, 100)}
    wrong = {"head.weight": true["head.weight"] + 10 * STEP}
    guess = Read(client=0, delta=wrong, step=STEP, refused=0.0)
    figures = named(FalseKeys().score(guess, Truth(updates={0: true})))
    assert figures[NUMBERS].value == 0

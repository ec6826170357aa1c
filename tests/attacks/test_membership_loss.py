"""A model's loss on images tells whether it has learnt them by heart."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fl_vitlora.attacks.membership_figures import area_under_curve, chance_of, true_positives
from fl_vitlora.attacks.membership_loss import MembershipLoss
from fl_vitlora.attacks.results import Outcome
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import UserView
from tests.attacks.made_up_views import digits, public, settings

KNOWN = public(settings(), digits(0, 4).images)
LABELS = torch.arange(2000) % 10
MEMBERS = torch.arange(2000) < 1000


def outcome(certainty: Tensor) -> Outcome:
    """Attacks a model that answers with the right class, as certainly as is given."""
    logits = F.one_hot(LABELS, 10) * certainty.unsqueeze(1)
    view = UserView(public=KNOWN, logits=logits, labels=LABELS)
    assert MembershipLoss().lacks(view) == ""
    figures = MembershipLoss().score(MembershipLoss().guess(view), Truth(members=lambda: MEMBERS))
    return Outcome(attack="", adversary="", figures=figures)


def test_images_that_a_model_knows_by_heart_are_told():
    draw = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    found = outcome(draw + 5 * MEMBERS)
    assert [figure.value for figure in found.figures] == [100, 100, 100]
    assert found.verdict == "recovered"


def test_of_a_model_that_answers_all_images_alike_nothing_is_told():
    draw = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    area, *rates = outcome(draw).figures
    assert abs(area.value - 50) < 3
    assert all(rate.gain is not None and abs(rate.gain) < 0.02 for rate in rates)


def test_the_area_is_the_share_of_pairs_in_the_right_order():
    draw = torch.Generator().manual_seed(0)
    members, others = (torch.randint(0, 9, (n,), generator=draw).double() for n in (23, 31))
    pairs = members.unsqueeze(1) - others.unsqueeze(0)
    slow = float(((pairs > 0).double() + 0.5 * (pairs == 0)).mean())
    assert abs(area_under_curve(members, others) - slow) < 1e-12


def test_the_threshold_lets_no_more_others_through_than_it_says():
    draw = torch.Generator().manual_seed(0)
    for rate in (0.0, 0.01, 0.25):
        others = torch.randn(150, generator=draw)
        assert true_positives(others, others, rate) <= rate


def test_chance_is_what_a_member_like_any_other_image_finds():
    draw = torch.Generator().manual_seed(0)
    found = [
        true_positives(torch.randn(50, generator=draw), torch.randn(19, generator=draw), 0.1)
        for _ in range(2000)
    ]
    assert abs(sum(found) / len(found) - chance_of(0.1, 19)) < 0.01


def test_a_model_that_cannot_be_asked_or_too_few_candidates_are_refused():
    nobody = UserView(public=KNOWN, logits=torch.empty(0, 10), labels=LABELS[:0])
    assert "clients keep parts" in MembershipLoss().lacks(nobody)
    few = UserView(public=KNOWN, logits=torch.zeros(20, 10), labels=LABELS[:20])
    assert "20 are at hand" in MembershipLoss().lacks(few)

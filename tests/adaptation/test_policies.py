"""What is refused and why; who evaluates, and who needs a key."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from fl_vitlora.adaptation import policies
from fl_vitlora.adaptation.policies import check
from fl_vitlora.config import Config
from fl_vitlora.errors import UserError
from tests.combinations import POLICIES, SCOPES, allowed, configure

# What cannot work, as (scope, adapted, policy): a key for every image leaves nothing to adapt to;
# patch embeddings adapted to different keys have no mean; kept ones leave no central model; test
# images under a key of nobody mean nothing but to a model in plain coordinates.
IMAGES = {("image", True, policy) for policy in POLICIES} | {("image", False, "aligned")}
MIXED = {("client", True, "aggregate")}
NOBODY = {("client", adapt, policy) for adapt in (False, True) for policy in POLICIES}
NOBODY -= {("client", True, "aligned")}
KEPT = {(scope, adapt, "local") for scope in SCOPES for adapt in (False, True)}


def refused(**given: Any) -> set[tuple[str, bool, str]]:
    return {
        (scope, adapt, policy)
        for scope, adapt, policy in product(SCOPES, (False, True), POLICIES)
        if not allowed(configure(scope, adapt=adapt, policy=policy, **given))
    }


@pytest.mark.parametrize("steps", ["ViT-blockwise", "EtC"])
@pytest.mark.parametrize("method", ["lora+patch_embed", "full"])
def test_exactly_what_cannot_work_is_refused(method: str, steps: str):
    given = {"finetuning__method": method, "encryption__steps": steps}
    for by in ("auto", "clients"):
        assert refused(evaluation__by=by, **given) == IMAGES | MIXED
    assert refused(evaluation__by="central", **given) == IMAGES | MIXED | NOBODY | KEPT


@pytest.mark.parametrize("method", ["lora+patch_embed", "full"])
def test_only_what_runs_without_meaning_can_be_asked_for_all_the_same(method: str):
    given = {"finetuning__method": method, "encryption__allow_meaningless": True}
    for by in ("auto", "clients"):
        assert refused(evaluation__by=by, **given) == IMAGES
    assert refused(evaluation__by="central", **given) == IMAGES | KEPT


@pytest.mark.parametrize("method", ["lora", "head"])
def test_a_patch_embedding_that_is_not_trained_has_no_policy(method: str):
    adapted = {("image", True, policy) for policy in POLICIES}
    assert refused(finetuning__method=method) == adapted
    unmet = {("client", False, policy) for policy in POLICIES}  # adapted, any key is as good
    central = refused(finetuning__method=method, evaluation__by="central")
    assert central == adapted | unmet


def test_plain_images_have_no_keys_to_refuse():
    assert refused(encryption__steps=[]) == set()
    assert refused(encryption__steps=[], evaluation__by="central") == KEPT


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (
            configure(policy="local", evaluation__by="central"),
            ["evaluation.by central", "patch_embedding local", "choose evaluation.by clients"],
        ),
        (
            configure("image", adapt=True),
            ["encryption.adapt with", "scope image", "choose scope shared, client or block"],
        ),
        (
            configure("image", policy="aligned"),
            ["patch_embedding aligned with", "scope image", "choose scope shared, client or block"],
        ),
        (
            configure("client", adapt=True),
            [
                "scope client",
                "aggregate",
                "choose finetuning.patch_embedding aligned or local",
                "allow_meaningless=true",
            ],
        ),
        (
            configure("client", evaluation__by="central"),
            ["scope client", "choose evaluation.by clients", "allow_meaningless=true"],
        ),
    ],
    ids=["local", "image, adapted", "image, aligned", "mixed", "nobody's key"],
)
def test_a_refusal_names_the_cause_and_what_to_do(config: Config, parts: list[str]):
    with pytest.raises(UserError) as caught:
        check(config)
    assert [part for part in parts if part not in str(caught.value)] == []
    assert "\n" not in str(caught.value)


# whether clients evaluate by themselves (auto), then whether they need a key for one thing or other
TRUTH = {
    # scope, adapted, policy: auto, needs by auto, needs by central, needs by clients
    ("shared", False, "aggregate"): (False, False, False, True),
    ("shared", True, "aggregate"): (False, False, False, True),
    ("shared", False, "aligned"): (True, True, True, True),
    ("shared", True, "aligned"): (True, True, True, True),
    ("shared", False, "local"): (True, True, None, True),
    ("shared", True, "local"): (True, True, None, True),
    ("block", False, "aggregate"): (False, False, False, True),
    ("block", True, "aggregate"): (False, False, False, True),
    ("block", False, "aligned"): (True, True, True, True),
    ("block", True, "aligned"): (True, True, True, True),
    ("block", False, "local"): (True, True, None, True),
    ("block", True, "local"): (True, True, None, True),
    ("client", False, "aggregate"): (True, True, None, True),
    ("client", False, "aligned"): (True, True, None, True),
    ("client", True, "aligned"): (True, True, True, True),
    ("client", False, "local"): (True, True, None, True),
    ("client", True, "local"): (True, True, None, True),
    ("image", False, "aggregate"): (False, False, False, True),
    ("image", False, "local"): (True, True, None, True),
}


def test_the_truth_table_has_every_allowed_combination():
    everything = set(product(SCOPES, (False, True), POLICIES))
    assert set(TRUTH) == everything - IMAGES - MIXED
    central = {row for row, (*_, needed, _) in TRUTH.items() if needed is not None}
    assert central == set(TRUTH) - NOBODY - KEPT


@pytest.mark.parametrize("row", TRUTH, ids=str)
def test_who_evaluates_and_who_needs_a_key(row: tuple[str, bool, str]):
    scope, adapt, policy = row
    auto, *needs = TRUTH[row]
    for by, needed in zip(("auto", "central", "clients"), needs, strict=True):
        config = configure(scope, adapt=adapt, policy=policy, evaluation__by=by)
        by_clients = {"auto": auto, "central": False, "clients": True}[by]
        assert policies.clients_evaluate(config) == by_clients
        if needed is not None:
            assert policies.clients_need_key(config) == needed


@pytest.mark.parametrize("by", ["auto", "clients", "central"])
def test_plain_images_need_no_key(by: str):
    for scope, adapt, policy in product(SCOPES, (False, True), POLICIES):
        config = configure(
            scope, adapt=adapt, policy=policy, evaluation__by=by, encryption__steps=[]
        )
        assert not policies.clients_need_key(config)
        if by == "auto":
            assert policies.clients_evaluate(config) == (policy == "local")


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("policy", POLICIES)
def test_an_untrained_patch_embedding_takes_a_key_where_keys_differ(scope: str, policy: str):
    """Only then each client's frozen patch embedding is adapted by itself."""
    for method, adapt in product(("lora", "head"), (False, True)):
        config = configure(scope, adapt=adapt, policy=policy, finetuning__method=method)
        if allowed(config):
            assert policies.clients_evaluate(config) == (scope == "client")
            assert policies.clients_need_key(config) == (scope == "client")

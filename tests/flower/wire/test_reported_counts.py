"""A client weighs no more than its largest share, and never more than it greeted with."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict
from hypothesis import given
from hypothesis import strategies as st

import strategies
from fl_vitlora.config import TrainingConfig, load, to_yaml
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.deployment import node_settings
from fl_vitlora.flower.wire.reported_counts import Counts, largest_share, limited
from fl_vitlora.training.steps import batches_of, steps_of
from tests.flower.conftest import write_shards

COUNTS = st.lists(st.integers(1, 10**9), min_size=1, max_size=30)
SHARES = st.floats(0.01, 1.0)


@given(counts=COUNTS, share=SHARES)
def test_no_client_weighs_more_than_its_share(counts: list[int], share: float):
    weights = limited(dict(enumerate(counts)), share)
    allowed = max(share, 1 / len(counts))
    for client, weight in weights.items():
        assert 1 <= weight <= counts[client]
        few = sum(weights.values()) < 100  # so that a whole number may have to be a little more
        assert few or weight <= allowed * sum(weights.values()) * (1 + 1e-9) + 1


@given(counts=COUNTS, share=SHARES)
def test_whoever_is_not_cut_keeps_its_count_and_the_largest_are_cut_alike(
    counts: list[int], share: float
):
    weights = limited(dict(enumerate(counts)), share)
    cut = {weights[client] for client, count in enumerate(counts) if weights[client] < count}
    assert len(cut) <= 1
    assert all(max(weights.values()) == cap for cap in cut)


@given(counts=COUNTS)
def test_without_a_limit_counts_stay(counts: list[int]):
    images = dict(enumerate(counts))
    assert limited(images, None) == limited(images, 1.0) == images


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_a_lie_gains_no_more_than_the_share(share: float):
    """However large it is; nine honest clients have 40 images each."""
    honest = dict.fromkeys(range(9), 40)
    for claimed in (10**3, 10**6, 10**9):
        client, found = largest_share(limited({**honest, 9: claimed}, share))
        assert client == 9 or share == 0.1
        assert Fraction(found).limit_denominator(1000) <= Fraction(share).limit_denominator(1000)


@given(images=st.integers(1, 500), epochs=st.integers(1, 3), batch=st.integers(1, 64))
def test_steps_are_those_that_training_takes(images: int, epochs: int, batch: int):
    import torch

    config = TrainingConfig(epochs=epochs, batch_size=batch)
    taken = list(batches_of(images, epochs, batch, torch.Generator(), torch.device("cpu")))
    assert len(taken) == steps_of(images, config) == Counts.of(images, config).steps


@pytest.mark.parametrize("secure", [True, False])
def test_a_deployed_node_draws_its_order_anew_only_for_secure_sums(secure: bool, tmp_path: Path):
    settings = node_settings(node(tmp_path, secure=secure), strategies.load_for)
    assert settings.fresh_order is secure


def test_a_deployed_node_imports_only_what_its_operator_named(tmp_path: Path):
    context = node(tmp_path, name="no_such_package.mine:Mine")
    with pytest.raises(UserError, match="a file names this code"):
        node_settings(context, strategies.load_for)
    context.node_config["trust-strategy"] = "another.strategy:Other, no_such_package.mine:Mine"
    with pytest.raises(UserError, match="cannot be imported: ModuleNotFoundError"):
        node_settings(context, strategies.load_for)


def node(folder: Path, *, secure: bool = False, name: str = "fedavg") -> Context:
    """What a SuperNode's operator gave it, with a shard."""
    given_settings: dict[str, Any] = {
        "encryption.steps": [],
        "encryption.at_rest": "none",
        "privacy.secure_aggregation": secure,
        "strategy.name": name,
        "engine.device": "cpu",
    }
    config = load(None, given_settings)
    write_shards(folder, config, bytes(32))
    (folder / "config.yaml").write_text(to_yaml(config))
    told: dict[str, Any] = {
        "partition-id": 0,
        "shards": str(folder),
        "config": str(folder / "config.yaml"),
    }
    return Context(1, 1, told, RecordDict(), {})

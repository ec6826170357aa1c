"""How many clients a worker trains in one batch: bounded by images, and on a CPU by patches."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.config import Config, EngineConfig, FineTuningConfig, TrainingConfig
from fl_vitlora.population.sampling import FROZEN_BACKBONE, WHOLE_MODEL, trained_together

METHODS = {"lora": WHOLE_MODEL, "head": FROZEN_BACKBONE, "losa": FROZEN_BACKBONE}


def config_of(clients: int, method: str, batch_size: int = 8) -> Config:
    return Config(
        clients=clients,
        finetuning=FineTuningConfig(method=method),
        training=TrainingConfig(batch_size=batch_size),
    )


@given(
    st.sampled_from(list(METHODS)), st.integers(1, 5000), st.integers(1, 200), st.integers(1, 1500)
)
def test_a_step_of_several_clients_is_never_larger_than_the_bounds(
    method: str, clients: int, batch_size: int, patches: int
):
    bounds, config = METHODS[method], config_of(clients, method, batch_size=batch_size)
    together = trained_together(config, patches)
    assert 1 <= together <= clients
    if together > 1:
        assert together * batch_size <= bounds.images
        assert together * batch_size * patches <= bounds.patches


@given(st.integers(1, 5000), st.integers(1, 200), st.integers(1, 1500))
def test_on_a_gpu_patches_do_not_count_and_methods_do_not_differ(
    clients: int, batch_size: int, patches: int
):
    lora, head = (config_of(clients, name, batch_size=batch_size) for name in ("lora", "head"))
    assert trained_together(lora, patches) <= trained_together(lora) == trained_together(head)


@given(st.integers(1, 5000), st.integers(1, 200), st.integers(1, 1500))
def test_a_frozen_backbone_lets_at_least_as_many_clients_share_a_batch(
    clients: int, batch_size: int, patches: int
):
    lora, losa = (config_of(clients, name, batch_size=batch_size) for name in ("lora", "losa"))
    assert trained_together(lora, patches) <= trained_together(losa, patches)


def test_kept_features_do_not_change_who_shares_a_batch():
    """Otherwise a run that keeps features would round in another way than one that does not."""
    kept = config_of(20, "losa")
    computed = replace(kept, engine=EngineConfig(feature_cache_mb=0, workers=7))
    assert trained_together(computed, patches=16) == trained_together(kept, patches=16) == 7


def test_the_main_job_is_the_same_with_and_without_the_bound_of_patches():
    """Its model has 16 patches; another number would change the rounding of every result."""
    for clients in (6, 20, 500):
        config = Config(clients=clients)
        assert trained_together(config, patches=16) == trained_together(config)


def test_what_the_user_sets_is_not_changed():
    config = replace(Config(clients=20), engine=EngineConfig(cohort=5))
    assert trained_together(config, patches=196) == 5

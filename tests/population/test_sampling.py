"""How many clients a worker trains in one batch: bounded by images, and on a CPU by patches."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.config import Config, EngineConfig, TrainingConfig
from fl_vitlora.population.sampling import IMAGES_A_STEP, PATCHES_A_STEP, trained_together


@given(st.integers(1, 5000), st.integers(1, 200), st.integers(0, 1500))
def test_a_step_of_several_clients_is_never_larger_than_the_bounds(
    clients: int, batch_size: int, patches: int
):
    config = Config(clients=clients, training=TrainingConfig(batch_size=batch_size))
    together = trained_together(config, patches)
    assert 1 <= together <= clients
    if together > 1:
        assert together * batch_size <= IMAGES_A_STEP
        assert together * batch_size * patches <= PATCHES_A_STEP
    assert together <= trained_together(config)  # a GPU, where patches do not count


def test_the_main_job_is_the_same_with_and_without_the_bound_of_patches():
    """Its model has 16 patches; another number would change the rounding of every result."""
    for clients in (6, 20, 500):
        config = Config(clients=clients)
        assert trained_together(config, patches=16) == trained_together(config)


def test_what_the_user_sets_is_not_changed():
    config = replace(Config(clients=20), engine=EngineConfig(cohort=5))
    assert trained_together(config, patches=196) == 5

"""Sizes of clients: they add up, none is too small, and α decides how much they differ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_vitlora.data.quantity import draw_sizes


@given(
    clients=st.integers(1, 200),
    least=st.integers(1, 9),
    more=st.integers(0, 5000),
    alpha=st.floats(1e-3, 1e4),
    seed=st.integers(0, 2**63 - 1),
)
def test_sizes_add_up_and_none_is_too_small(
    clients: int, least: int, more: int, alpha: float, seed: int
) -> None:
    """This holds even if a draw alone would leave most clients without an image."""
    images = clients * least + more
    sizes = draw_sizes(images, clients, alpha=alpha, least=least, seed=seed)
    assert sizes.shape == (clients,)
    assert sizes.sum() == images
    assert sizes.min() >= least


def test_sizes_are_the_drawn_shares_to_one_image() -> None:
    shares = np.random.default_rng(5).dirichlet(np.full(7, 0.5))
    sizes = draw_sizes(1000 + 7 * 3, 7, alpha=0.5, least=3, seed=5)
    assert (np.abs(sizes - 3 - 1000 * shares) < 1).all()


def test_the_spread_of_sizes_is_that_of_a_dirichlet_distribution() -> None:
    """A share has the variance (K - 1) / (K² (K α + 1))."""
    clients, images = 10, 10**6
    for alpha in (0.1, 0.5, 5.0):
        drawn = [
            draw_sizes(images, clients, alpha=alpha, least=1, seed=seed) / images
            for seed in range(500)
        ]
        expected = (clients - 1) / (clients**2 * (clients * alpha + 1))
        assert np.var(np.stack(drawn)) == pytest.approx(expected, rel=0.15)


def test_a_seed_decides_the_sizes() -> None:
    first, same, other = (draw_sizes(500, 9, alpha=0.5, least=2, seed=seed) for seed in (0, 0, 1))
    assert first.tolist() == same.tolist() != other.tolist()


def test_a_client_alone_has_all_images() -> None:
    assert draw_sizes(50, 1, alpha=0.5, least=2, seed=0).tolist() == [50]

"""Sensors: fixed for a client, stronger with the skew, and computed as the equation says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from torch import Tensor

from fl_vitlora.data.images import Images
from fl_vitlora.data.sensors import Sensor, blurred, seen_by, sensor_of, through_sensors

NEUTRAL = Sensor(gains=(1.0, 1.0, 1.0), contrast=1.0, blur=0.0, noise=0.0)


def pictures(count: int, height: int = 32, width: int = 24) -> Tensor:
    draw = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=draw)


def in_memory(pixels: Tensor) -> Images:
    return Images(
        labels=np.zeros(len(pixels), dtype=np.int64),
        class_names=("a", "b"),
        read=lambda positions, height, width: pixels[torch.from_numpy(positions)],
    )


@given(client=st.integers(0, 10**4), seed=st.integers(0, 2**31))
def test_without_a_skew_every_sensor_returns_the_image_itself(client: int, seed: int) -> None:
    assert sensor_of(client, skew=0.0, seed=seed) == NEUTRAL
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert torch.equal(seen_by(NEUTRAL, images, [seed]), images)


@given(client=st.integers(0, 10**4), seed=st.integers(0, 2**31), skew=st.floats(0, 1))
def test_a_sensor_is_within_its_bounds_and_a_larger_skew_makes_it_stronger(
    client: int, seed: int, skew: float
) -> None:
    full, part = (sensor_of(client, skew=s, seed=seed) for s in (1.0, skew))
    for value, most in zip((*part.gains, part.contrast), (*full.gains, full.contrast), strict=True):
        assert 0.5 <= most <= 2
        assert math.log2(value) == pytest.approx(skew * math.log2(most), abs=1e-9)
    assert 0 <= full.blur <= 1 / 32
    assert 0 <= full.noise <= 0.1
    assert part.blur == pytest.approx(skew * full.blur)
    assert part.noise == pytest.approx(skew * full.noise)


def test_clients_and_seeds_have_sensors_of_their_own() -> None:
    drawn = {sensor_of(client, skew=0.5, seed=seed) for client in range(9) for seed in range(9)}
    assert len(drawn) == 81
    assert sensor_of(4, skew=0.5, seed=2) == sensor_of(4, skew=0.5, seed=2)


@settings(deadline=None)
@given(
    gains=st.tuples(*[st.floats(0.5, 2)] * 3), contrast=st.floats(0.5, 2), grey=st.integers(0, 255)
)
def test_a_grey_image_gets_the_colour_of_the_equation(
    gains: tuple[float, float, float], contrast: float, grey: int
) -> None:
    """A blur does not change an image of one colour."""
    sensor = Sensor(gains=gains, contrast=contrast, blur=1 / 32, noise=0.0)
    image = torch.full((1, 3, 32, 32), grey, dtype=torch.uint8)
    seen = seen_by(sensor, image, [0]).double()
    for channel, gain in enumerate(gains):
        expected = 255 * (0.5 + contrast * (gain * grey / 255 - 0.5))
        assert (seen[0, channel] - min(max(expected, 0), 255)).abs().max() <= 0.501


@pytest.mark.parametrize("deviation", [0.2, 1.0, 2.3])
def test_the_blur_is_the_gaussian_filter_of_scipy(deviation: float) -> None:
    image, reach = pictures(1)[0].double().numpy(), math.ceil(3 * deviation)
    expected = gaussian_filter(
        image, (0, deviation, deviation), mode="mirror", radius=(0, reach, reach)
    )
    assert np.allclose(blurred(image, deviation), expected, atol=1e-9)


@pytest.mark.parametrize("skew", [1e-320, 1e-200, 1e-9])
def test_a_tiny_skew_changes_nothing(skew: float) -> None:
    images = pictures(2)
    assert torch.equal(seen_by(sensor_of(1, skew=skew, seed=0), images, [0, 1]), images)


def test_noise_has_the_deviation_of_the_sensor() -> None:
    images = torch.full((8, 3, 64, 64), 128, dtype=torch.uint8)
    sensor = replace(NEUTRAL, noise=0.08)
    noise = (seen_by(sensor, images, range(8)).double() - 128) / 255
    assert noise.std().item() == pytest.approx(0.08, rel=0.03)
    assert noise.mean().item() == pytest.approx(0, abs=0.002)
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0, 0], noise[0, 1])


def test_an_image_does_not_depend_on_the_others() -> None:
    images, seeds = pictures(7), list(range(7))
    sensor = sensor_of(1, skew=1.0, seed=0)
    together = seen_by(sensor, images, seeds)
    for row in range(7):
        alone = seen_by(sensor, images[row : row + 1], seeds[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_no_images_are_no_images() -> None:
    sensor = sensor_of(1, skew=1.0, seed=0)
    assert seen_by(sensor, pictures(3)[:0], []).shape == (0, 3, 32, 24)


def test_images_are_read_through_the_sensor_of_their_client() -> None:
    pixels, clients = pictures(6), np.array([0, 1, -1, 1, 0, -1])
    images = through_sensors(in_memory(pixels), clients, part="train", skew=0.7, seed=3)
    seen = images.read(np.arange(6), 32, 24)
    for row, client in enumerate(clients):
        assert torch.equal(seen[row], pixels[row]) == (client < 0)
    order = np.array([4, 2, 1, 3])
    assert torch.equal(images.read(order, 32, 24), seen[torch.from_numpy(order)])
    assert torch.equal(in_memory(pixels).read(np.arange(6), 32, 24), pixels)  # not changed
    test = through_sensors(in_memory(pixels), clients, part="test", skew=0.7, seed=3)
    assert not torch.equal(test.read(np.array([0]), 32, 24)[0], seen[0])  # noise of its own

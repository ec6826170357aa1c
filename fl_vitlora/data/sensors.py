"""Sensors of clients: each client has its own simulated camera (feature skew).

A sensor blurs an image, multiplies each colour channel by a gain, changes the contrast, and adds
noise. The sensor of a client is drawn once with the seed of the run and never changes. The strength
s of all sensors is the setting `data.feature_skew`, in [0, 1]. With s = 0, the sensors do not
change the images.

Letters in shapes: n images, C channels, H × W pixels, K clients.

Source: The corruptions and their strengths come from Hendrycks and Dietterich, "Benchmarking Neural
Network Robustness to Common Corruptions and Perturbations", arXiv 1903.12261, CIFAR-10-C. With
s = 1 the largest blur and the largest noise are those of severity 5. Unlike in the paper, the
strength is drawn for each client instead of each image, and each channel has a gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl_vitlora.data.augmentation import mirrored
from fl_vitlora.data.images import Images, Indices
from fl_vitlora.rng import derive_seed

CHANNELS = 3
MOST_BLUR = 1 / 32  # the standard deviation of the kernel, as a share of the image's shorter side
MOST_NOISE = 0.1  # the standard deviation, as a share of the range from black to white
REACH = 3  # the kernel ends at this number of standard deviations

Float = TypeVar("Float", np.float32, np.float64)


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """The sensor of one client.

    Attributes:
        gains: The factor g of each colour channel.
        contrast: The factor k by which the distance from middle grey is multiplied.
        blur: The standard deviation of the Gaussian blur, as a share of the shorter side.
        noise: The standard deviation τ of the noise, as a share of the range from black to white.
    """

    gains: tuple[float, ...]
    contrast: float
    blur: float
    noise: float


def sensor_of(client: int, *, skew: float, seed: int) -> Sensor:
    """Draws the sensor of a client.

    The values u are drawn uniformly from [-1, 1], and the values v uniformly from [0, 1]. Each
    property of the sensor has its own u or v:

        g_c = 2^(s·u_c),  k = 2^(s·u),  blur = s·v / 32,  τ = s·v / 10

    The draws do not depend on s, so a larger s makes the same sensor stronger.

    Args:
        client: The number of the client, from 0.
        skew: The strength s in [0, 1].
        seed: The run's seed.

    Example:
        >>> sensor_of(3, skew=0.0, seed=0)
        Sensor(gains=(1.0, 1.0, 1.0), contrast=1.0, blur=0.0, noise=0.0)
    """
    draw = np.random.default_rng(derive_seed(seed, "sensor", client))
    factors = np.exp2(skew * draw.uniform(-1, 1, CHANNELS + 1)).tolist()
    blur, noise = (skew * draw.uniform(0, 1, 2)).tolist()
    return Sensor(
        gains=tuple(factors[:CHANNELS]),
        contrast=factors[CHANNELS],
        blur=blur * MOST_BLUR,
        noise=noise * MOST_NOISE,
    )


def seen_by(sensor: Sensor, images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Returns images as a sensor records them.

    For an image x in [0, 1], with the Gaussian kernel G and independent normal noise ε for each
    colour value:

        y_c = ½ + k · (g_c · (G * x)_c - ½) + τ · ε_c,  clipped to [0, 1]

    Each image is computed separately, so the result for one image does not depend on other images.

    Args:
        sensor: The sensor of a client.
        images: The images, uint8 (n, C, H, W).
        seeds: The seed of the noise of each image.

    Returns:
        The images, uint8 (n, C, H, W).
    """
    result = torch.empty_like(images)
    for row, seed in enumerate(seeds):
        result[row] = torch.from_numpy(_seen(sensor, images[row].numpy(), seed))
    return result


def through_sensors(
    images: Images, clients: Indices, *, part: str, skew: float, seed: int
) -> Images:
    """Returns images whose pixels are read as the sensors of their clients record them.

    Args:
        images: The plain images.
        clients: The number of the client that has each image, int64 (n,); -1 for an image that
            belongs to no client. An image with -1 does not change.
        part: The use of the images, such as "train". Training images and test images get different
            noise.
        skew: The strength s of the sensors in [0, 1].
        seed: The run's seed.
    """

    def read(positions: Indices, height: int, width: int) -> Tensor:
        pixels = images.read(positions, height, width).clone()
        owners = clients[positions]
        for client in np.unique(owners[owners >= 0]).tolist():
            chosen = np.flatnonzero(owners == client)
            seeds = [
                derive_seed(seed, "sensor noise", part, position)
                for position in positions[chosen].tolist()
            ]
            sensor, rows = sensor_of(client, skew=skew, seed=seed), torch.from_numpy(chosen)
            pixels[rows] = seen_by(sensor, pixels[rows], seeds)
        return pixels

    return replace(images, read=read)


def blurred(image: NDArray[Float], deviation: float) -> NDArray[Float]:
    """Returns an image after a Gaussian blur; the image is mirrored beyond its edges.

    The kernel is the product of a kernel for rows and a kernel for columns. The terms are added in
    a fixed order, so every processor rounds the sums in the same way.

    Args:
        image: The image, floating point (C, H, W).
        deviation: The standard deviation of the kernel in pixels; with 0 the image is not blurred.
            Three times this number must be smaller than H and W.
    """
    if not deviation:
        return image
    radius = math.ceil(REACH * deviation)
    places = np.arange(-radius, radius + 1)
    with np.errstate(over="ignore"):  # a very narrow kernel is 0 outside of its middle
        kernel = np.exp(-0.5 * (places / deviation) ** 2)
    weights = (kernel / kernel.sum()).astype(image.dtype)
    term = np.empty_like(image)
    for axis in (1, 2):
        side = image.shape[axis]
        padded = image.take(mirrored(np.arange(-radius, side + radius), side), axis)
        image = np.zeros_like(image)
        for place, weight in enumerate(weights):
            window = (
                padded[:, place : place + side] if axis == 1 else padded[..., place : place + side]
            )
            image += np.multiply(window, weight, out=term)
    return image


def _seen(sensor: Sensor, image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Returns one image, (C, H, W), as a sensor records the image; see `seen_by`."""
    light = blurred(image / np.float32(255), sensor.blur * min(image.shape[1:]))
    gains = np.array(sensor.gains, dtype=np.float32).reshape(-1, 1, 1)
    light = np.float32(0.5) + np.float32(sensor.contrast) * (gains * light - np.float32(0.5))
    if sensor.noise:
        noise = np.random.default_rng(seed).standard_normal(light.shape, dtype=np.float32)
        light += np.float32(sensor.noise) * noise
    return np.rint(255 * light).clip(0, 255).astype(np.uint8)

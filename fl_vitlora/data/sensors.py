"""Sensors of clients: each client has a camera of its own (feature skew).

A sensor blurs an image, multiplies each colour channel by a gain, changes the contrast, and adds
noise. The sensor of a client is drawn once from the seed and never changes. Its strength is the
setting `data.feature_skew`, s in [0, 1]: with 0, every sensor returns the image as it is.

n images of C channels and H × W pixels, K clients.

Source: the corruptions and their strengths are those of Hendrycks and Dietterich, "Benchmarking
Neural Network Robustness to Common Corruptions and Perturbations", arXiv 1903.12261, CIFAR-10-C. At
s = 1 the largest blur and noise are those of severity 5. Differences: the strength is drawn for
each client and not for each image, and each channel has a gain.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fl_vitlora.data.images import Images, Indices
from fl_vitlora.rng import derive_seed

CHANNELS = 3
MOST_BLUR = 1 / 32  # standard deviation of the kernel, as a share of the shorter side of the image
MOST_NOISE = 0.1  # standard deviation, as a share of the range from black to white
REACH = 3  # the kernel ends after so many standard deviations
ENTRIES_AT_ONCE = 2**22  # colour values in memory together, as numbers of 32 bits


@dataclass(frozen=True, kw_only=True)
class Sensor:
    """The sensor of one client.

    Attributes:
        gains: The factor g of each colour channel.
        contrast: The factor k on the distance from middle grey.
        blur: The standard deviation of the Gaussian blur, as a share of the shorter side.
        noise: The standard deviation τ of the noise, as a share of the range from black to white.
    """

    gains: tuple[float, ...]
    contrast: float
    blur: float
    noise: float


def sensor_of(client: int, *, skew: float, seed: int) -> Sensor:
    """Draws the sensor of a client.

    With u uniform in [-1, 1] and v uniform in [0, 1], drawn for each value:

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
    """Returns images as a sensor sees them.

    For an image x in [0, 1], with the Gaussian kernel G and independent normal noise ε for each
    colour value:

        y_c = ½ + k · (g_c · (G * x)_c - ½) + τ · ε_c,  clipped to [0, 1]

    Each image is computed by itself, so the result does not depend on the other images.

    Args:
        sensor: The sensor.
        images: The images, uint8 (n, C, H, W).
        seeds: The seed of the noise of each image.

    Returns:
        The images, uint8 (n, C, H, W).
    """
    at_once = max(1, ENTRIES_AT_ONCE // max(1, images[:1].numel()))
    result = torch.empty_like(images)
    for start in range(0, len(images), at_once):
        piece = slice(start, start + at_once)
        result[piece] = _seen(sensor, images[piece], seeds[piece])
    return result


def through_sensors(
    images: Images, clients: Indices, *, part: str, skew: float, seed: int
) -> Images:
    """Returns images whose pixels are read as the sensors of their clients see them.

    Args:
        images: The plain images.
        clients: The number of the client that has each image, int64 (n,); -1 for an image that no
            client has. Such an image stays as it is.
        part: A name that tells the noise of training and of test images apart.
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


def blurred(images: Tensor, deviation: float) -> Tensor:
    """Returns images after a Gaussian blur; the images are mirrored beyond their edges.

    The kernel is a product of two, one for rows and one for columns. The sums have a fixed order,
    so every processor rounds them in the same way.

    Args:
        images: The images, floating point (n, C, H, W).
        deviation: The standard deviation of the kernel in pixels; with 0 nothing is blurred. Three
            times this number must be smaller than H and W.
    """
    if not deviation:
        return images
    radius = math.ceil(REACH * deviation)
    weights = [math.exp(-0.5 * (place / deviation) ** 2) for place in range(-radius, radius + 1)]
    for dimension, pads in ((2, (0, 0, radius, radius)), (3, (radius, radius, 0, 0))):
        side, padded = images.shape[dimension], F.pad(images, pads, mode="reflect")
        images = torch.zeros_like(images)
        for place, weight in enumerate(weights):
            images += padded.narrow(dimension, place, side) * (weight / sum(weights))
    return images


def _seen(sensor: Sensor, images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Returns a few images as a sensor sees them; see `seen_by`."""
    height, width = images.shape[2:]
    light = blurred(images.float() / 255, sensor.blur * min(height, width))
    light = 0.5 + sensor.contrast * (torch.tensor(sensor.gains).view(-1, 1, 1) * light - 0.5)
    if sensor.noise:
        for row, seed in enumerate(seeds):
            draw = np.random.default_rng(seed)
            noise = draw.standard_normal(tuple(light.shape[1:]), dtype=np.float32)
            light[row] += sensor.noise * torch.from_numpy(noise)
    return (255 * light).round().clamp(0, 255).to(torch.uint8)

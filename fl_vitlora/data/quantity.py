"""Draws the number of images of each client from a Dirichlet distribution (quantity skew).

The partitioners of flwr-datasets divide a data set into parts of given sizes, but no partitioner
draws the sizes.

Letters in shapes: K clients, n images.
"""

from __future__ import annotations

import numpy as np

from fl_vitlora.data.images import Indices


def draw_sizes(images: int, clients: int, *, alpha: float, least: int, seed: int) -> Indices:
    """Draws the number of images of each client.

    Every client first gets m = `least` images. The other n - K·m images are divided by shares q:

        q ~ Dir(α, ..., α) with K entries,    sizes = m + round(q · (n - K·m))

    The shares are rounded down, and the clients with the largest remainders get one image more, so
    that the sizes add up to n.

    Args:
        images: The number n of images, at least K·m.
        clients: The number K of clients.
        alpha: The concentration α, positive. With a smaller value, the sizes differ more.
        least: The smallest number m of images of a client.
        seed: The seed of the draw.

    Returns:
        The number of images of each client, int64 (K,). The sum is n.

    Example:
        >>> draw_sizes(100, 4, alpha=0.5, least=2, seed=0)
        array([24,  2, 52, 22])

    Source: Li, Diao, Chen and He, "Federated Learning on Non-IID Data Silos", arXiv 2102.02079,
    section IV-C. In the paper, shares are drawn again until each client has enough images; with
    many clients this may never happen. In this function every client first gets the smallest
    number.
    """
    shares = np.random.default_rng(seed).dirichlet(np.full(clients, alpha))
    wanted = shares * (images - clients * least)
    sizes = np.floor(wanted).astype(np.int64)
    left = images - clients * least - int(sizes.sum())
    sizes[np.argsort(sizes - wanted, kind="stable")[:left]] += 1
    return sizes + least

"""Who holds which images: at random, or by label in one of flwr-datasets' partitions.

K clients, n images.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from fl_vitlora.config import DataConfig
from fl_vitlora.data.sources import Indices
from fl_vitlora.errors import UserError
from fl_vitlora.rng import derive_seed


def partition(labels: Indices, clients: int, config: DataConfig, seed: int) -> list[Indices]:
    """Divides images among clients.

    Args:
        labels: int64 (n,).
        clients: K.
        config: Kind of partition and its parameters.
        seed: The run's seed.

    Returns:
        K arrays of positions, disjoint, the largest first: a round then begins with its longest
        work, which keeps workers evenly busy.

    Raises:
        UserError: When the images do not suffice.
    """
    if clients * config.min_samples > len(labels):
        raise UserError(
            f"{clients} clients cannot each hold {config.min_samples} of {len(labels)} training "
            f"images; at most {len(labels) // config.min_samples} can (--clients)"
        )
    order = np.random.default_rng(derive_seed(seed, "partition order")).permutation(len(labels))
    parts = (
        np.array_split(order, clients)
        if config.partition == "iid"
        else _by_labels(labels, order, clients, config, seed)
    )
    smallest = min(map(len, parts))
    if smallest < config.min_samples:
        raise UserError(
            f"the {config.partition} partition leaves a client {smallest} images, fewer than "
            f"data.min_samples = {config.min_samples}; use fewer clients"
        )
    return sorted(parts, key=len, reverse=True)


def natural_partition(
    owners: Indices, clients: int, config: DataConfig
) -> tuple[list[Indices], list[int]]:
    """Leaves every image with the client whose folder it lies in.

    Args:
        owners: int64 (n,), the client that holds each image.
        clients: K.
        config: `min_samples`.

    Returns:
        K arrays of positions, the largest first as in `partition`; and the owner of each.

    Raises:
        UserError: When there are not K owners, or one of them has too few images.
    """
    found = np.unique(owners).tolist()
    if len(found) != clients:
        raise UserError(
            f"data.partition natural: the data set has training images of {len(found)} clients: "
            f"--clients {len(found)}"
        )
    parts = {owner: np.flatnonzero(owners == owner) for owner in found}
    order = sorted(found, key=lambda owner: len(parts[owner]), reverse=True)
    smallest = len(parts[order[-1]])
    if smallest < config.min_samples:
        raise UserError(
            f"data.partition natural: a client has {smallest} training images, fewer than "
            f"data.min_samples = {config.min_samples}"
        )
    return [parts[owner] for owner in order], order


def divide_by_owner(owners: Indices | None, order: list[int]) -> list[Indices]:
    """Gives every client its own test images.

    Args:
        owners: int64 (n,), the client that holds each test image.
        order: The clients, as `natural_partition` tells.

    Raises:
        UserError: When a client has none.
    """
    parts = [np.flatnonzero(owners == owner) for owner in order]
    if not all(map(len, parts)):
        raise UserError("evaluation.by clients: a client's folder has no test images of its own")
    return parts


def label_counts(labels: Indices, parts: list[Indices], classes: int) -> Indices:
    """Counts the labels of each client, int64 (K, classes)."""
    return np.stack([np.bincount(labels[part], minlength=classes) for part in parts])


def _by_labels(
    labels: Indices, order: Indices, clients: int, config: DataConfig, seed: int
) -> list[Indices]:
    """Divides images, in the order given, as flwr-datasets does by their labels."""
    import datasets

    partitioner = _partitioner(clients, len(set(labels.tolist())), config, seed)
    partitioner.dataset = datasets.Dataset.from_dict({"label": labels[order], "position": order})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Dirichlet draws that were too small and are repeated
            partitioner.load_partition(0)  # the first one divides for all
    except (ValueError, ZeroDivisionError) as error:  # the latter: shards of no images
        hint = " or a larger data.alpha" if config.partition == "dirichlet" else ""
        raise UserError(
            f"no {config.partition} partition gives each of {clients} clients at least "
            f"{config.min_samples} images; use fewer clients{hint} ({error})"
        ) from None
    # Asked for one by one, each part is a data set with a fingerprint of its own: 1 to 5 ms.
    places = partitioner._partition_id_to_indices
    positions = np.asarray(partitioner.dataset["position"][:], dtype=np.int64)  # sorted, maybe
    return [positions[np.asarray(places[client], dtype=np.int64)] for client in range(clients)]


def _partitioner(clients: int, classes: int, config: DataConfig, seed: int) -> Any:
    from flwr_datasets import partitioner as kinds

    derived = derive_seed(seed, "partition") % 2**32
    if config.partition == "shard":
        return kinds.ShardPartitioner(
            clients, "label", num_shards_per_partition=config.shards_per_client, seed=derived
        )
    if config.partition == "pathological":
        if config.classes_per_client > classes:
            raise UserError(
                f"data.classes_per_client {config.classes_per_client}: there are {classes} classes"
            )
        if clients * config.classes_per_client < classes:
            raise UserError(
                f"data.classes_per_client {config.classes_per_client}: {clients} clients would "
                f"hold {clients * config.classes_per_client} of {classes} classes, the others "
                "nobody"
            )
        return kinds.PathologicalPartitioner(
            clients,
            "label",
            config.classes_per_client,
            class_assignment_mode="first-deterministic",
            seed=derived,
        )
    return kinds.DirichletPartitioner(
        clients, "label", config.alpha, min_partition_size=config.min_samples, seed=derived
    )

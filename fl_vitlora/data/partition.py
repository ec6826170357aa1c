"""Divides the training images among the clients.

The result is called a partition. There are three ways to divide images: at random into parts of
equal or random sizes; by label with one of the partitioners of flwr-datasets (Dirichlet,
pathological, shard); or by owner. In the last way, the natural partition, each client has the
images of its own folder, or the images with its own value in a column.

Letters in shapes: K clients, n images.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from fl_vitlora.config import DataConfig
from fl_vitlora.data.classes import count
from fl_vitlora.data.clients import list_some
from fl_vitlora.data.images import Indices, Name
from fl_vitlora.data.quantity import draw_sizes
from fl_vitlora.errors import UserError, shown
from fl_vitlora.rng import derive_seed


def partition(labels: Indices, clients: int, config: DataConfig, seed: int) -> list[Indices]:
    """Divides the training images among the clients.

    Args:
        labels: The labels of the images, int64 (n,).
        clients: The number K of clients.
        config: The settings of the data: the setting `partition` and its parameters.
        seed: The run's seed, which decides how the images are divided.

    Returns:
        A list of K disjoint arrays of positions, the largest array first. Therefore a round starts
        with the clients whose training takes longest, which keeps all workers busy.

    Raises:
        UserError: When a client would have fewer than `min_samples` images.
    """
    if clients * config.min_samples > len(labels):
        raise UserError(
            f"{clients} clients cannot each have {config.min_samples} of {len(labels)} training "
            f"images; set --clients to at most {len(labels) // config.min_samples}"
        )
    order = np.random.default_rng(derive_seed(seed, "partition order")).permutation(len(labels))
    match config.partition:
        case "iid":
            parts = np.array_split(order, clients)
        case "quantity":
            parts = _by_quantity(order, clients, config, seed)
        case _:
            parts = _by_labels(labels, order, clients, config, seed)
    smallest = min(map(len, parts))
    if smallest < config.min_samples:
        raise UserError(
            f"the {config.partition} partition gives a client only {smallest} images, fewer than "
            f"data.min_samples = {config.min_samples}; use fewer clients"
        )
    return sorted(parts, key=len, reverse=True)


def natural_partition(
    owners: Indices, clients: int, config: DataConfig, names: Sequence[Name]
) -> tuple[list[Indices], list[int]]:
    """Gives each client its own training images.

    Args:
        owners: The number of the owner of each image, int64 (n,). The owner is a folder, or a value
            of the column `client_column`.
        clients: The number K of clients.
        config: The settings of the data. Only `min_samples` is used.
        names: The name of each owner, in the order of the numbers.

    Returns:
        A pair: a list of K arrays of positions, the largest array first, and a list with the number
        of each array's owner.

    Raises:
        UserError: When the number of owners is not K, or when an owner has fewer than `min_samples`
            images.
    """
    found = np.unique(owners).tolist()
    if len(found) != clients:
        raise UserError(
            f"data.partition natural: the data set has training images of {len(found)} clients "
            f"({list_some([names[owner] for owner in found])}); set --clients {len(found)}"
        )
    parts = {owner: np.flatnonzero(owners == owner) for owner in found}
    order = sorted(found, key=lambda owner: len(parts[owner]), reverse=True)
    smallest = len(parts[order[-1]])
    if smallest < config.min_samples:
        raise UserError(
            f"data.partition natural: the client {shown(names[order[-1]])} has only {smallest} "
            f"training images, fewer than data.min_samples = {config.min_samples}; lower "
            "data.min_samples, or remove the images of this client"
        )
    return [parts[owner] for owner in order], order


def divide_by_owner(
    owners: Indices | None, order: Sequence[int], names: Sequence[Name], part: str = "test"
) -> list[Indices]:
    """Gives each client its own test or validation images.

    Args:
        owners: The number of the owner of each image, int64 (n,); None if the data set states no
            owners for these images.
        order: The list of owners that `natural_partition` returns. Entry i is the owner of the
            images of client i.
        names: The name of each owner that has training images, in the order of the numbers.
        part: The use of the images: "test" or "validation".

    Returns:
        A list of arrays: the positions of each client's images, in the order of `order`.

    Raises:
        UserError: When a client has no images, or when an image belongs to no client.
    """
    if owners is None:
        raise UserError(
            f"evaluation.by clients: expected the client of each {part} image, but the {part} "
            "split has no column data.client_column; use --set evaluation.by=central"
        )
    parts = [np.flatnonzero(owners == owner) for owner in order]
    without = [names[owner] for owner, own in zip(order, parts, strict=True) if not len(own)]
    if without:
        raise UserError(
            f"evaluation.by clients: expected {part} images of every client, found none of "
            f"{list_some(without)}"
        )
    if left := len(owners) - sum(map(len, parts)):
        raise UserError(
            f"evaluation.by clients: found {count(left, f'{part} image')} of clients without "
            "training images; remove these images, or use --set evaluation.by=central"
        )
    return parts


def label_counts(labels: Indices, parts: list[Indices], classes: int) -> Indices:
    """Counts how many images of each class every client has.

    Args:
        labels: The labels of all images, int64 (n,).
        parts: A list with an array for each client: the positions of the client's images.
        classes: The number of classes of the data set.

    Returns:
        The numbers of images, int64 (K, classes), with one row for each client and one column for
        each class.
    """
    return np.stack([np.bincount(labels[part], minlength=classes) for part in parts])


def _by_quantity(order: Indices, clients: int, config: DataConfig, seed: int) -> list[Indices]:
    """Cuts images in random order into parts whose sizes are drawn at random."""
    sizes = draw_sizes(
        len(order),
        clients,
        alpha=config.alpha,
        least=config.min_samples,
        seed=derive_seed(seed, "partition"),
    )
    return np.split(order, np.cumsum(sizes)[:-1])


def _by_labels(
    labels: Indices, order: Indices, clients: int, config: DataConfig, seed: int
) -> list[Indices]:
    """Divides images by label with a partitioner of flwr-datasets.

    The partitioner gets the images in the random order `order`, because some partitioners assign
    the images in the order in which they get them.
    """
    import datasets

    partitioner = _partitioner(clients, len(set(labels.tolist())), config, seed)
    partitioner.dataset = datasets.Dataset.from_dict({"label": labels[order], "position": order})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # flwr-datasets warns when it repeats a Dirichlet draw
            partitioner.load_partition(0)  # loading the first partition divides all images
    except (ValueError, ZeroDivisionError) as error:  # ZeroDivisionError: shards without images
        hint = " or a larger data.alpha" if config.partition == "dirichlet" else ""
        raise UserError(
            f"found no {config.partition} partition that gives each of {clients} clients at least "
            f"{config.min_samples} images; use fewer clients{hint} ({error})"
        ) from None
    # `load_partition` would compute a fingerprint for every client, which takes 1 to 5 ms each.
    places = partitioner._partition_id_to_indices
    positions = np.asarray(partitioner.dataset["position"][:], dtype=np.int64)  # may be sorted
    return [positions[np.asarray(places[client], dtype=np.int64)] for client in range(clients)]


def _partitioner(clients: int, classes: int, config: DataConfig, seed: int) -> Any:
    """Makes the partitioner of flwr-datasets that the setting `data.partition` names.

    Raises:
        UserError: When `classes_per_client` does not fit the numbers of classes and clients.
    """
    from flwr_datasets import partitioner as kinds

    derived = derive_seed(seed, "partition") % 2**32
    if config.partition == "shard":
        return kinds.ShardPartitioner(
            clients, "label", num_shards_per_partition=config.shards_per_client, seed=derived
        )
    if config.partition == "pathological":
        if config.classes_per_client > classes:
            raise UserError(
                f"data.classes_per_client {config.classes_per_client}: expected at most the number "
                f"of classes, {classes}"
            )
        if clients * config.classes_per_client < classes:
            raise UserError(
                f"data.classes_per_client {config.classes_per_client}: {clients} clients can have "
                f"at most {clients * config.classes_per_client} of the {classes} classes, so some "
                "classes would have no client; raise data.classes_per_client or the number of "
                "clients"
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

"""Partitions: disjoint, large enough, the largest first, the same for a seed, uneven as asked."""

from __future__ import annotations

import datasets
import numpy as np
import pytest
from flwr_datasets import partitioner as kinds

from fl_vitlora.config import DataConfig
from fl_vitlora.data.partition import label_counts, partition
from fl_vitlora.data.quantity import draw_sizes
from fl_vitlora.data.sources import Indices
from fl_vitlora.errors import UserError
from fl_vitlora.rng import derive_seed

KINDS = {
    "dirichlet": DataConfig(partition="dirichlet"),
    "iid": DataConfig(partition="iid"),
    "quantity": DataConfig(partition="quantity"),
    "pathological": DataConfig(partition="pathological"),
    "shard": DataConfig(partition="shard"),
}
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5, dtype=np.int64), 60))
CLIENTS = 7

every_kind = pytest.mark.parametrize("kind", KINDS)


def unevenness(parts: list[Indices]) -> float:
    """Mean distance of the clients' label shares from those of all together; 0 is even."""
    counts = label_counts(LABELS, parts, 5)
    shares = counts / counts.sum(axis=1, keepdims=True)
    return float(np.abs(shares - 0.2).sum(axis=1).mean())


@every_kind
def test_no_image_has_two_holders(kind: str):
    parts = partition(LABELS, CLIENTS, KINDS[kind], 0)
    held = np.concatenate(parts)
    assert len(parts) == CLIENTS
    assert len(set(held.tolist())) == len(held)
    assert all(0 <= position < len(LABELS) for position in held)


@every_kind
def test_every_image_has_a_holder(kind: str):
    held = sum(map(len, partition(LABELS, CLIENTS, KINDS[kind], 0)))
    dropped = len(LABELS) - held
    # a shard partition cuts shards of one size, and drops what is left over
    assert dropped < 2 * CLIENTS if kind == "shard" else dropped == 0


@every_kind
def test_the_largest_comes_first_and_none_is_too_small(kind: str):
    config = DataConfig(partition=KINDS[kind].partition, min_samples=5)
    sizes = [len(part) for part in partition(LABELS, CLIENTS, config, 0)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] >= 5


@every_kind
def test_a_seed_decides_who_holds_what(kind: str):
    first, same, other = (partition(LABELS, CLIENTS, KINDS[kind], seed) for seed in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@every_kind
def test_one_client_holds_everything(kind: str):
    config = DataConfig(partition=KINDS[kind].partition, classes_per_client=5)
    (part,) = partition(LABELS, 1, config, 0)
    assert sorted(part.tolist()) == list(range(len(LABELS)))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # how datasets sort
@every_kind
def test_the_parts_are_those_of_the_library(kind: str):
    """Asked for one by one, from a partitioner of our seed, over the images in our order."""
    config = KINDS[kind]
    order = np.random.default_rng(derive_seed(3, "partition order")).permutation(len(LABELS))
    seed = derive_seed(3, "partition") % 2**32
    partitioner = {
        "dirichlet": lambda: kinds.DirichletPartitioner(
            CLIENTS, "label", config.alpha, min_partition_size=config.min_samples, seed=seed
        ),
        "iid": lambda: kinds.IidPartitioner(CLIENTS),
        "quantity": lambda: kinds.SizePartitioner(
            draw_sizes(
                len(LABELS),
                CLIENTS,
                alpha=config.alpha,
                least=config.min_samples,
                seed=derive_seed(3, "partition"),
            ).tolist()
        ),
        "pathological": lambda: kinds.PathologicalPartitioner(
            CLIENTS,
            "label",
            config.classes_per_client,
            class_assignment_mode="first-deterministic",
            seed=seed,
        ),
        "shard": lambda: kinds.ShardPartitioner(
            CLIENTS, "label", num_shards_per_partition=config.shards_per_client, seed=seed
        ),
    }[kind]()
    partitioner.dataset = datasets.Dataset.from_dict({"label": LABELS[order], "position": order})
    theirs = [partitioner.load_partition(client)["position"][:] for client in range(CLIENTS)]
    ours = [part.tolist() for part in partition(LABELS, CLIENTS, config, 3)]
    assert ours == sorted(theirs, key=len, reverse=True)


def test_a_small_alpha_is_uneven_and_a_large_one_even():
    distances = [
        unevenness(partition(LABELS, CLIENTS, DataConfig(alpha=alpha), 0))
        for alpha in (0.05, 1.0, 1000.0)
    ]
    assert distances[0] > 1.5 * distances[1] > 3 * distances[2]


def test_an_iid_partition_is_even():
    assert unevenness(partition(LABELS, CLIENTS, KINDS["iid"], 0)) < 0.5


def test_a_quantity_partition_is_uneven_in_sizes_and_even_in_labels():
    parts = partition(LABELS, CLIENTS, DataConfig(partition="quantity", min_samples=20), 0)
    sizes = [len(part) for part in parts]
    assert sizes[0] > 4 * sizes[-1]
    label_skew = partition(LABELS, CLIENTS, DataConfig(alpha=0.5), 0)
    assert unevenness(parts) < 0.5 * unevenness(label_skew)


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_a_pathological_client_holds_so_many_classes(classes: int):
    config = DataConfig(partition="pathological", classes_per_client=classes)
    counts = label_counts(LABELS, partition(LABELS, CLIENTS, config, 0), 5)
    assert ((counts > 0).sum(axis=1) == classes).all()


def test_shards_hold_few_classes():
    counts = label_counts(LABELS, partition(LABELS, CLIENTS, KINDS["shard"], 0), 5)
    assert ((counts > 0).sum(axis=1) <= 4).all()  # two shards that each span at most two labels


def test_labels_are_counted_as_by_hand():
    labels = np.array([0, 2, 2, 1])
    parts = [np.array([0, 1, 2]), np.array([3])]
    assert label_counts(labels, parts, 4).tolist() == [[1, 0, 2, 0], [0, 1, 0, 0]]


@pytest.mark.parametrize(
    ("clients", "config", "expectation"),
    [
        (151, DataConfig(), "set --clients to at most 150"),
        (301, DataConfig(min_samples=1), "set --clients to at most 300"),
        (3, DataConfig(min_samples=101), "set --clients to at most 2"),
        (100, DataConfig(alpha=1e-3, min_samples=3), "fewer clients or a larger data.alpha"),
        (
            3,
            DataConfig(partition="pathological", classes_per_client=6),
            "expected at most the number of classes, 5",
        ),
        (100, DataConfig(partition="iid", min_samples=3), None),
        (80, DataConfig(partition="shard", shards_per_client=9), "fewer clients"),
    ],
)
def test_what_cannot_be_divided_is_refused(
    clients: int, config: DataConfig, expectation: str | None
):
    if expectation is None:
        assert len(partition(LABELS, clients, config, 0)) == clients
        return
    with pytest.raises(UserError, match=expectation):
        partition(LABELS, clients, config, 0)

"""The server's records of the clients, which are saved in checkpoints.

The server does not send tensors that a client already has. A client remembers three things: the
tensors that were frozen in its last round (`ClientPlan.frozen`); the number of rounds whose merged
low-rank pairs were added to the client's frozen weights; and the client's version of each stream. A
stream is a series of compressed changes (`communication.stream`). A client also knows all initial
tensors, because it builds the same model as the server. If a client does not answer, the server
does not know whether the client has read the message. Therefore the server then assumes that the
client remembers nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.state import State
from fl_vitlora.storage.trees import Tree
from fl_vitlora.strategy import ClientPlan

NOBODY = -1  # the client number of a node before its greeting
Versions = Mapping[str, tuple[int, int]]  # a stream's versions before and after a message, by name


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The server's record of the tensors that one client remembers.

    Attributes:
        round: The last round in which the client took part; 0 if the client took part in no round.
        tensors: The tensors that were frozen in the round `round`.
        merges: The number of rounds whose merged low-rank pairs the client has received.
        taken: The round of the client's last update that the server used; 0 if the server has used
            no update.
        missed: True if the server has asked the client after the round `taken`, and the client sent
            no usable update.
    """

    round: int = 0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    merges: int = 0
    taken: int = 0
    missed: bool = False


@dataclass(frozen=True, kw_only=True)
class ClientRecord:
    """The data that the server keeps about one client.

    Attributes:
        node: The number of the client's Flower node; None before the greeting (the first message,
            in which the server asks each node for its client number).
        images: The number of training images that the client stated in its greeting; None before
            the greeting.
        test_images: The number of test images that the client stated at its first evaluation; None
            before that evaluation.
        validation_images: The number of validation images that the client stated at its first
            evaluation; None before that evaluation.
        memory: The tensors and the number of merged rounds that the client remembers.
        followed: A mapping from each stream of compressed changes to the version that the client
            has.
        offered: A mapping from each stream to the version that the client will have if the client
            answers the last message; None if no answer is expected.
    """

    node: int | None = None
    images: int | None = None
    test_images: int | None = None
    validation_images: int | None = None
    memory: Memory = field(default_factory=Memory)
    followed: Versions = field(default_factory=dict)
    offered: Versions | None = None


class Comparisons:
    """Compares tensors, and compares each pair of tensors only once.

    Tensors that many clients remember are the same Python objects. An instance identifies a tensor
    by its address. So the instance must be dropped before any tensor that it has compared.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], bool] = {}

    def __call__(self, one: Tensor, other: Tensor) -> bool:
        """Returns True if two tensors have the same shape and values."""
        pair = id(one), id(other)
        if pair not in self._known:
            self._known[pair] = torch.equal(one, other)
        return self._known[pair]


class ClientRecords:
    """The data that the server keeps about all clients.

    Args:
        initial: The exchanged tensors before the first round.
    """

    def __init__(self, initial: State) -> None:
        self._initial = initial
        self._records: dict[int, ClientRecord] = {}
        self._clients: dict[int, int] = {}  # a mapping from nodes to their clients

    def of(self, client: int) -> ClientRecord:
        """Returns the record of a client; an empty record if the client is not known yet."""
        return self._records.get(client, ClientRecord())

    def greeted(self, client: int, node: int, images: int) -> None:
        """Records the node of a client, and the client's number of training images."""
        self._change(client, node=node, images=images)
        self._clients[node] = client

    def client_at(self, node: int) -> int:
        """Returns the client number that a node has stated; `NOBODY` before the greeting."""
        return self._clients.get(node, NOBODY)

    def node_of(self, client: int) -> int:
        """Returns the number of a client's node.

        Raises:
            KeyError: If the client has not answered the greeting (the server's first message).
        """
        node = self.of(client).node
        if node is None:
            raise KeyError(f"client {client} has not answered the greeting, so its node is unknown")
        return node

    def images_of(self, client: int) -> int:
        """Returns the number of training images that a client has stated; 1 before the greeting."""
        images = self.of(client).images
        return 1 if images is None else images

    def greeted_clients(self) -> tuple[int, ...]:
        """Returns all client numbers that nodes have stated so far, in ascending order."""
        return tuple(sorted(self._clients.values()))

    def tested(self, client: int, images: int) -> int:
        """Records the number of test images that a client states.

        Returns:
            The number of test images that the client stated at its first evaluation.
        """
        first = self.of(client).test_images
        self._change(client, test_images=images if first is None else first)
        return images if first is None else first

    def validated(self, client: int, images: int) -> int:
        """Records the number of validation images of a client; see `tested`."""
        first = self.of(client).validation_images
        self._change(client, validation_images=images if first is None else first)
        return images if first is None else first

    def cached(
        self,
        client: int,
        model: State,
        plan: ClientPlan,
        measured: tuple[str, ...] = (),
        *,
        equal: Callable[[Tensor, Tensor], bool] = torch.equal,
    ) -> frozenset[str]:
        """Returns the names of the tensors that the client already has, so they need not be sent.

        Args:
            client: The number of the client.
            model: The tensors that the client needs for the round.
            plan: The strategy's plan of the round, which names the frozen tensors.
            measured: Endings of the names of tensors that clients measure.
            equal: The function that compares two tensors.
        """
        untrained = (*plan.frozen, *plan.restarted, *measured)
        remembered = self.of(client).memory.tensors

        def is_known(name: str, tensor: Tensor) -> bool:
            if name in remembered:
                return equal(remembered[name], tensor)
            return name.endswith(untrained) and equal(self._initial[name], tensor)

        return frozenset(name for name, tensor in model.items() if is_known(name, tensor))

    def offer(self, client: int, versions: Versions) -> None:
        """Records the stream versions that a client will have if the client answers a message."""
        self._change(client, offered={**self.of(client).followed, **versions})

    def heard(self, client: int) -> None:
        """Records an answer: the client now has the stream versions of the last message."""
        record = self.of(client)
        followed = record.followed if record.offered is None else record.offered
        self._change(client, followed=followed, offered=None)

    def lost(self, client: int) -> None:
        """Records that the server does not know the versions of the streams that a client has."""
        self._change(client, followed={}, offered=None)

    def answered(
        self, client: int, server_round: int, model: GlobalModel, plan: ClientPlan
    ) -> None:
        """Records that the server used a client's update.

        The client now remembers the tensors that were frozen in the round, and has all merged
        low-rank pairs.
        """
        memory = Memory(
            round=server_round,
            tensors={n: t for n, t in model.tensors.items() if n.endswith(plan.frozen)},
            merges=model.rounds,
            taken=server_round,
        )
        self._change(client, memory=memory)

    def measured(self, client: int, model: GlobalModel) -> None:
        """Records that a client has all merged pairs of a model, because it evaluated the model."""
        self._change(client, memory=replace(self.of(client).memory, merges=model.rounds))

    def missed(self, client: int) -> None:
        """Records that the server no longer knows which tensors a client remembers.

        The record keeps only the round of the client's last update that the server used.
        """
        self._change(client, memory=Memory(taken=self.of(client).memory.taken, missed=True))

    def snapshot(self) -> Tree:
        """Returns the records of the clients' memory, for a checkpoint.

        Node numbers and numbers of images are not included, because every client states these
        numbers again when the run continues.
        """
        return {
            client: {"memory": dict(vars(record.memory)), "followed": dict(record.followed)}
            for client, record in self._records.items()
        }

    def restore(self, tree: Tree) -> None:
        """Restores the records that `snapshot` returned."""
        for client, known in tree.items():
            followed = {name: (base, new) for name, (base, new) in known["followed"].items()}
            self._change(client, memory=Memory(**known["memory"]), followed=followed, offered=None)

    def _change(self, client: int, **fields: object) -> None:
        self._records[client] = replace(self.of(client), **fields)  # type: ignore[arg-type]


def from_registries(memories: Tree, followed: Tree) -> Tree:
    """Returns the tree of `ClientRecords.snapshot` from the two trees of older checkpoints.

    Args:
        memories: A mapping from each client to the fields of its `Memory`.
        followed: A mapping from each client to the versions of the streams that the client has.
    """
    return {
        client: {
            "memory": memories.get(client, vars(Memory())),
            "followed": followed.get(client, {}),
        }
        for client in sorted({*memories, *followed})
    }

"""The owners' secrets, with which a guess is scored. No attack gets them.

Letters in shapes: n images, C channels, H × W pixels, M candidates,
m other images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import TypeVar

import torch
from torch import Tensor

from fl_vitlora.encryption.cipher import CipherKey
from fl_vitlora.state import State
from fl_vitlora.strategy import SEVERAL

T = TypeVar("T")


def _no_labels() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True, kw_only=True)
class Owned:
    """The data that only one client has.

    Attributes:
        plain: The plain training images, uint8 (n, C, H, W).
        ciphertext: The images in `plain`, encrypted as the client's worker has them.
        others: Plain images of the same kind on which no client trains, uint8 (m, C, H, W).
        others_ciphertext: The images in `others`, encrypted with the key of the client.
        others_labels: The labels of `others`, int64 (m,); empty if they are not known.
    """

    plain: Tensor = field(repr=False)
    ciphertext: Tensor = field(repr=False)
    others: Tensor = field(repr=False)
    others_ciphertext: Tensor = field(repr=False)
    others_labels: Tensor = field(default_factory=_no_labels, repr=False)


def _nobody() -> Tensor:
    return torch.empty(0, dtype=torch.bool)


@dataclass(frozen=True, kw_only=True)
class Truth:
    """The secrets of a run.

    Attributes:
        keys: The key of each client, as keys of the three steps block scrambling, pixel shuffling
            and negative-positive transformation, whatever the steps of the run are
            (`key_search.three_steps`). The mapping is empty if a client has no such key.
        labels: The labels of the training images of each client, int64 (n,).
        owned: The data that only one client has, for each client.
        members: A function without arguments that returns a tensor, bool (M,). The tensor is True
            for the candidates of `UserView` and `InformedServerView` on which a client has trained.
        updates: The update that each client sends in round 1, if the server sends the model with
            which an honest server begins. The updates have no masks.
    """

    keys: Mapping[int, CipherKey] = field(default_factory=dict, repr=False)
    labels: Mapping[int, Tensor] = field(default_factory=dict, repr=False)
    owned: Mapping[int, Owned] = field(default_factory=dict, repr=False)
    members: Callable[[], Tensor] = field(default=_nobody, repr=False)
    updates: Mapping[int, State] = field(default_factory=dict, repr=False)

    def owned_by(self, client: int) -> Owned:
        """Returns the data of a client, or of all clients together for the number `SEVERAL`."""
        if client != SEVERAL:
            return self.owned[client]
        everybody = [self.owned[one] for one in sorted(self.owned)]
        return Owned(
            **{
                item.name: torch.cat([getattr(owned, item.name) for owned in everybody])
                for item in fields(Owned)
            }
        )


class Opened(Mapping[int, T]):
    """A mapping whose values are made when they are asked for, and are not kept.

    Args:
        clients: The numbers of the clients.
        make: A function that makes the value of a client.
    """

    def __init__(self, clients: range, make: Callable[[int], T]) -> None:
        self._clients = clients
        self._make = make

    def __getitem__(self, client: int) -> T:
        if client not in self._clients:
            raise KeyError(client)
        return self._make(client)

    def __iter__(self) -> Iterator[int]:
        return iter(self._clients)

    def __len__(self) -> int:
        return len(self._clients)

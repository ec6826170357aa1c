"""Who measures a global model, and on which encrypted test images.

Centrally, on the one test shard, by a party that needs no key if all parties have the same one; or
by the clients, each on test images of its own under its own key. What they say is the same:
accuracy and mean loss over all test images, for each view of them (`data.owner.views_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from fl_vitlora.adaptation.coordinates import Coordinates
from fl_vitlora.data.owner import NO_KEY, RIGHT_KEY, WRONG_KEY, views_of
from fl_vitlora.data.shards import Shard
from fl_vitlora.encryption.holder import TEST, KeyHolder
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.finetuning import targets
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import put_reader
from fl_vitlora.training import local

Measured = dict[str, tuple[float, float]]  # accuracy in [0, 1] and mean cross-entropy, by view
ALL_VIEWS = (RIGHT_KEY, WRONG_KEY, NO_KEY)


class Evaluator(Protocol):
    """Measures a global model."""

    @property
    def views(self) -> tuple[str, ...]:
        """Names the views of the test images that it can show; the right key's always."""
        ...

    def measure(self, server_round: int, model: GlobalModel, views: Sequence[str]) -> Measured:
        """Measures a model, in the server's coordinates, on some views."""
        ...


@dataclass(frozen=True, kw_only=True)
class CentralEvaluator:
    """One party with all test images.

    Attributes:
        backbone: The workspace.
        shard: The encrypted test images.
        coordinates: Of the party, from the server's.
        holder: Of its key; none where it has no key and can only take the images as they are.
        precision: Of activations.
    """

    backbone: Backbone
    shard: Shard
    coordinates: Coordinates
    holder: KeyHolder | None
    precision: torch.dtype

    @property
    def views(self) -> tuple[str, ...]:
        """Names the views; without a key, or plain, there is one."""
        keyed = self.holder is not None and self.holder.cipher.steps
        return ALL_VIEWS if keyed else (RIGHT_KEY,)

    def measure(self, server_round: int, model: GlobalModel, views: Sequence[str]) -> Measured:
        """Measures on this machine."""
        del server_round
        put_reader(self.backbone.model, self.coordinates.base)
        targets.put_increments(self.backbone.model, model.increments)
        state = self.coordinates.to_client(model.tensors)
        seen = {RIGHT_KEY: self.shard}
        if self.holder is not None and list(views) != [RIGHT_KEY]:
            seen = views_of(self.shard, self.holder, TEST)
        return {
            view: local.evaluate(self.backbone, state, seen[view], self.precision) for view in views
        }


class Answer(NamedTuple):
    """What one client measured.

    Attributes:
        client: Number of the client.
        images: Number of its test images.
        measured: Accuracy and loss on them, by view.
    """

    client: int
    images: int
    measured: Measured


class Asks(Protocol):
    """What asks every client to measure a model on its own test images."""

    def measure(
        self, server_round: int, model: GlobalModel, views: Sequence[str]
    ) -> Sequence[Answer]:
        """Returns the answers of all clients."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClientsEvaluator:
    """All clients, each with test images of its own.

    Attributes:
        transport: What asks them.
        views: The views of the test images that they can show.
        show: Is shown the round, the model and the answers, before they are averaged.
    """

    transport: Asks
    views: tuple[str, ...]
    show: Callable[[int, GlobalModel, Sequence[Answer]], None] = lambda number, model, answers: None

    def measure(self, server_round: int, model: GlobalModel, views: Sequence[str]) -> Measured:
        """Asks the clients, and averages over all their test images."""
        answers = self.transport.measure(server_round, model, views)
        self.show(server_round, model, answers)
        images = sum(answer.images for answer in answers)

        def mean(view: str, which: int) -> float:
            return sum(a.images * a.measured[view][which] for a in answers) / images

        return {view: (mean(view, 0), mean(view, 1)) for view in views}

"""Evaluation of a global model on encrypted test images, centrally or by the clients.

There are two ways. Either a central party evaluates the model on one test shard; if all parties
have the same key, the central party needs no key. Or each client evaluates the model on its own
test images, encrypted with its own key. Both ways return the accuracy and the mean loss over all
test images, for each view. A view is a version of the test images: encrypted, encrypted with a
wrong key, or decrypted (`data.owner.views_of`).
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
from fl_vitlora.training.prediction import PLAIN, Predictor

Measured = dict[str, tuple[float, float]]  # accuracy in [0, 1] and mean cross-entropy, by view
ALL_VIEWS = (RIGHT_KEY, WRONG_KEY, NO_KEY)


class Evaluator(Protocol):
    """Measures the accuracy and the loss of a global model."""

    @property
    def views(self) -> tuple[str, ...]:
        """Returns the names of the possible views (versions) of the test images.

        One of them is `RIGHT_KEY`: the images are encrypted with the right key.
        """
        ...

    def measure(self, server_round: int, model: GlobalModel, views: Sequence[str]) -> Measured:
        """Evaluates a model, in the server's form, on some views (versions) of the test images."""
        ...


@dataclass(frozen=True, kw_only=True)
class CentralEvaluator:
    """Evaluates the model at one party, on all test images.

    Attributes:
        backbone: The model with which the party computes.
        shard: The encrypted test images.
        coordinates: The maps between the server's tensors and the party's tensors, which differ if
            the party has its own key.
        holder: The object that encrypts with the party's key; None if the party has no key.
        precision: The floating-point format of activations.
        predictor: Computes the model's predictions for a batch of images.
    """

    backbone: Backbone
    shard: Shard
    coordinates: Coordinates
    holder: KeyHolder | None
    precision: torch.dtype
    predictor: Predictor = PLAIN

    @property
    def views(self) -> tuple[str, ...]:
        """Returns the names of the views (versions) of the test images; only one without a key."""
        keyed = self.holder is not None and self.holder.cipher.steps
        return ALL_VIEWS if keyed else (RIGHT_KEY,)

    def measure(self, server_round: int, model: GlobalModel, views: Sequence[str]) -> Measured:
        """Evaluates a model on this machine, on some views (versions) of the test images."""
        del server_round
        put_reader(self.backbone.model, self.coordinates.base)
        targets.put_increments(self.backbone.model, model.increments)
        state = self.coordinates.to_client(model.tensors)
        seen = {RIGHT_KEY: self.shard}
        if self.holder is not None and list(views) != [RIGHT_KEY]:
            seen = views_of(self.shard, self.holder, TEST)
        return {
            view: local.evaluate(self.backbone, state, seen[view], self.precision, self.predictor)
            for view in views
        }


class Answer(NamedTuple):
    """The result of the evaluation at one client.

    Attributes:
        client: The number of the client.
        images: The number of the client's test images.
        measured: A dictionary: for each view (version) of these images, the accuracy and the loss.
    """

    client: int
    images: int
    measured: Measured


class Asks(Protocol):
    """Asks every client to evaluate a model on its own test images."""

    def measure(
        self, server_round: int, model: GlobalModel, views: Sequence[str]
    ) -> Sequence[Answer]:
        """Asks all clients to evaluate the model, and returns their results."""
        ...


@dataclass(frozen=True, kw_only=True)
class ClientsEvaluator:
    """Evaluates the model at the clients, each on its own test images.

    Attributes:
        transport: The object that sends the model to the clients and receives their results.
        views: The names of the possible views (versions) of the test images.
        show: A function that is called with the round, the model and the answers of the clients.
    """

    transport: Asks
    views: tuple[str, ...]
    show: Callable[[int, GlobalModel, Sequence[Answer]], None] = lambda number, model, answers: None

    def measure(self, server_round: int, model: GlobalModel, views: Sequence[str]) -> Measured:
        """Asks the clients, and averages their results over the test images of all clients."""
        answers = self.transport.measure(server_round, model, views)
        self.show(server_round, model, answers)
        images = sum(answer.images for answer in answers)

        def mean(view: str, which: int) -> float:
            return sum(a.images * a.measured[view][which] for a in answers) / images

        return {view: (mean(view, 0), mean(view, 1)) for view in views}

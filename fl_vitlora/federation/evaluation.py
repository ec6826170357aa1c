"""Evaluates a global model on encrypted images, at a central party or at the clients.

There are two kinds of evaluation. In central evaluation, one party evaluates the model on common
images; if all parties share a key, the central party needs no key. In the other kind, each client
evaluates the model on its own images, which are encrypted with its own key. Each kind of evaluation
returns the accuracy and the mean loss over all images, for each view (`data.views`). The views are
the test images encrypted, encrypted with a wrong key, or decrypted, and the encrypted validation
images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch

from fl_vitlora.adaptation.coordinates import Coordinates
from fl_vitlora.data.owner import NO_KEY, RIGHT_KEY, WRONG_KEY
from fl_vitlora.data.shards import Shard
from fl_vitlora.data.views import VALIDATION, sampled, seen_in
from fl_vitlora.encryption.holder import TEST, KeyHolder
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.finetuning import targets
from fl_vitlora.models.backbone import Backbone
from fl_vitlora.models.reading import put_reader
from fl_vitlora.training import local
from fl_vitlora.training.decisions import Decisions
from fl_vitlora.training.prediction import PLAIN, Predictor

Reported = dict[str, tuple[float, float]]  # for each view: accuracy in [0, 1], mean cross-entropy
ALL_VIEWS = (RIGHT_KEY, WRONG_KEY, NO_KEY)

Result_co = TypeVar("Result_co", covariant=True)


class Score(NamedTuple):
    """The result of an evaluation on one view.

    Attributes:
        accuracy: The share of images that are classified correctly, in [0, 1].
        loss: The mean cross-entropy over the images.
        images: The number of images; None if the checkpoint of an older version of the program does
            not contain this number.
    """

    accuracy: float
    loss: float
    images: int | None = None


Measured = dict[str, Score]  # a mapping from views to results


class Measures(Protocol[Result_co]):
    """An object that measures the accuracy and the loss of a global model.

    An evaluator returns one result for each view. The transport returns the answers of the clients.
    """

    def measure(
        self,
        server_round: int,
        model: GlobalModel,
        views: Sequence[str],
        most: int | None = None,
    ) -> Result_co:
        """Evaluates a model.

        Args:
            server_round: The round after which the model is evaluated.
            model: The model with the server's tensors.
            views: The names of the views (`data.views`).
            most: The number of images of each view that all clients together evaluate; None for all
                images. The images are the same in every round.
        """
        ...


class Evaluator(Measures[Measured], Protocol):
    """An object that evaluates a global model at a central party or at the clients.

    The method `measure` accepts names in `views`, and `VALIDATION`.
    """

    @property
    def views(self) -> tuple[str, ...]:
        """Returns the names of the possible views (versions) of the test images.

        One of these views is `RIGHT_KEY`, in which the images are encrypted with the right key.
        """
        ...


def share_of(most: int | None, clients: int) -> int | None:
    """Returns the number of images that each client evaluates; None for all images of the client.

    Args:
        most: The number of images that all clients together evaluate; None for all images.
        clients: The number of clients.

    Example:
        >>> share_of(100, 3), share_of(None, 3)
        (34, None)
    """
    return None if most is None else math.ceil(most / clients)


@dataclass(frozen=True, kw_only=True)
class CentralEvaluator:
    """An evaluator at one central party, which evaluates the model on common images.

    Attributes:
        backbone: The model with which the party computes.
        shard: The encrypted test images.
        validation: The encrypted validation images; None if there are no validation images.
        show: A function that is called with the model's decisions for the test images, whenever
            the model is evaluated on the test images under the right key.
        coordinates: The maps between the server's tensors and the party's tensors, which differ if
            the party has its own key.
        holder: The key holder of the party; None if the party has no key.
        precision: The floating-point format of activations.
        predictor: The object that computes the model's predictions for a batch of images.
    """

    backbone: Backbone
    shard: Shard
    coordinates: Coordinates
    holder: KeyHolder | None
    precision: torch.dtype
    predictor: Predictor = PLAIN
    validation: Shard | None = None
    show: Callable[[Decisions], None] = lambda decisions: None

    @property
    def views(self) -> tuple[str, ...]:
        """Returns the names of the views (versions) of the test images.

        Without a key there is only one view of the test images: the encrypted images.
        """
        keyed = self.holder is not None and self.holder.cipher.steps
        return ALL_VIEWS if keyed else (RIGHT_KEY,)

    def measure(
        self,
        server_round: int,
        model: GlobalModel,
        views: Sequence[str],
        most: int | None = None,
    ) -> Measured:
        """Evaluates a model on this machine; see `Evaluator.measure`."""
        del server_round
        put_reader(self.backbone.model, self.coordinates.base)
        targets.put_increments(self.backbone.model, model.increments)
        state = self.coordinates.to_client(model.tensors)
        seen = seen_in(views, self.shard, self.validation, self.holder, TEST)
        measured: Measured = {}
        for view in views:
            shard = sampled(seen[view], most, view)
            decided: list[Decisions] = []
            told = local.evaluate(
                self.backbone, state, shard, self.precision, self.predictor, show=decided.append
            )
            measured[view] = Score(*told, images=len(shard))
            if view == RIGHT_KEY:
                self.show(Decisions.joined(decided))
        return measured


class Answer(NamedTuple):
    """The result of the evaluation at one client.

    Attributes:
        client: The number of the client.
        images: The number of the client's test images.
        measured: A mapping from each view to the accuracy and the loss.
        validation_images: The number of the client's validation images; 0 if the client was not
            asked for this number.
    """

    client: int
    images: int
    measured: Reported
    validation_images: int = 0

    def weight(self, view: str) -> int:
        """Returns the number of the client's test images, or of its validation images."""
        return self.validation_images if view == VALIDATION else self.images


def as_chosen_by(answers: Sequence[Answer]) -> Sequence[Answer]:
    """Returns the answers that a strategy gets.

    A strategy may choose a model by these answers. Therefore the answers have only the results on
    validation images, if the clients have validation images.
    """
    return [
        Answer(a.client, a.validation_images, {RIGHT_KEY: a.measured[VALIDATION]})
        if VALIDATION in a.measured
        else a
        for a in answers
    ]


@dataclass(frozen=True, kw_only=True)
class ClientsEvaluator:
    """An evaluator that lets each client evaluate the model on its own images.

    Attributes:
        transport: The object that sends the model to the clients and receives their results.
        views: The names of the possible views (versions) of the test images.
        show: A function that is called with the round, the model and the answers of the clients.
    """

    transport: Measures[Sequence[Answer]]
    views: tuple[str, ...]
    show: Callable[[int, GlobalModel, Sequence[Answer]], None] = lambda number, model, answers: None

    def measure(
        self,
        server_round: int,
        model: GlobalModel,
        views: Sequence[str],
        most: int | None = None,
    ) -> Measured:
        """Asks the clients, and returns the weighted mean of their results.

        The weight of a client is the number of all its images, even if the client has evaluated
        only some of its images.
        """
        answers = self.transport.measure(server_round, model, views, most)
        self.show(server_round, model, answers)
        return {view: _mean(answers, view, most) for view in views}


def _mean(answers: Sequence[Answer], view: str, most: int | None) -> Score:
    """Returns the mean of the clients' results for one view."""
    weights: Mapping[int, int] = {answer.client: answer.weight(view) for answer in answers}
    images, share = sum(weights.values()), share_of(most, len(answers))

    def mean(which: int) -> float:
        return sum(weights[a.client] * a.measured[view][which] for a in answers) / images

    evaluated = images if share is None else sum(min(n, share) for n in weights.values())
    return Score(mean(0), mean(1), evaluated)

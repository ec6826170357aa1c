"""Measures the accuracy and the loss of a run's models, at the server or at the clients.

If the run has validation images, each evaluated round is measured on the validation images, because
the run uses the results to choose a model. In a run with validation images, a central party
measures only the last model and the best model on the test images, at the end of the run. Clients
instead measure every evaluated model on validation images and test images, in one message. The
reason is that clients may have personal tensors, and at the end of the run they no longer have the
personal tensors of the best round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fl_vitlora.adaptation import coordinates, policies
from fl_vitlora.config import Config
from fl_vitlora.config.units import UNITS
from fl_vitlora.data.holding_out import has_validation
from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.data.shards import TEST_SHARD, VALIDATION_SHARD, open_own_shard
from fl_vitlora.data.views import VALIDATION
from fl_vitlora.encryption.holder import TEST, KeyHolder
from fl_vitlora.encryption.storage_keys import StorageKeys
from fl_vitlora.experiment.record import Record
from fl_vitlora.experiment.round_line import best_of
from fl_vitlora.experiment.server_model import Server
from fl_vitlora.federation.aggregator import Aggregator
from fl_vitlora.federation.evaluation import (
    ALL_VIEWS,
    Answer,
    CentralEvaluator,
    ClientsEvaluator,
    Evaluator,
    Score,
    as_chosen_by,
)
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.learning import class_shares
from fl_vitlora.finetuning.classifier import outputs_of
from fl_vitlora.flower.server.transport import Transport
from fl_vitlora.models.reading import put_reader
from fl_vitlora.state import State
from fl_vitlora.training.decisions import Decisions
from fl_vitlora.training.inputs import with_features
from fl_vitlora.training.precision import best_precision
from fl_vitlora.training.prediction import Plain, predictor_of


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """An object that evaluates the models of a run and records the results.

    Attributes:
        evaluator: The object that computes the accuracy and the loss of one model.
        config: The configuration of the experiment.
        record: The record of the run, to which the results are written.
    """

    evaluator: Evaluator
    config: Config
    record: Record

    @property
    def beside(self) -> bool:
        """Returns True if a model can be evaluated while the next round runs."""
        return isinstance(self.evaluator, CentralEvaluator)

    @property
    def needs_last_messages(self) -> bool:
        """Returns True if the server may need to ask the clients once more at the end of the run.

        The server asks again in two cases: if the model of the last round was evaluated only on
        some images, or if this model was not evaluated because the run ended early.
        """
        how = self.config.evaluation
        return not self.beside and (how.every > 1 or how.images is not None)

    def evaluate(self, server_round: int, model: GlobalModel) -> tuple[float, float] | None:
        """Measures the model after a round, and returns its accuracy and loss.

        After the last planned round, the model is also measured on test images that are encrypted
        with a wrong key, and on plain test images. If rounds are measured only on some of the
        images, the last round is measured on the same images, so that the rounds can be compared;
        the method `finish` then measures the last model on all images.

        Returns:
            The accuracy and the loss with which the run chooses a model; None if the round is not
            evaluated.
        """
        measured, how = self.record.measured, self.config.evaluation
        last = server_round == self.config.rounds
        measured.clear()
        self.record.evaluated.clear()
        self.record.details.clear()
        if not last and server_round % how.every:
            return None
        views = self._all_views if last and how.images is None else self._views_of_rounds
        measured.update(self.evaluator.measure(server_round, model, views, how.images))
        score = measured[self.record.view]
        return score.accuracy, score.loss

    @property
    def _all_views(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.record.view, *self.evaluator.views)))

    @property
    def _views_of_rounds(self) -> tuple[str, ...]:
        views = (self.record.view,) if self.beside else (self.record.view, RIGHT_KEY)
        return tuple(dict.fromkeys(views))

    def gives_up(self, server_round: int) -> bool:
        """Returns True if the best round was at least `evaluation.patience` rounds ago."""
        patience, best = self.config.evaluation.patience, best_of(self.record.lines)
        return (
            patience is not None and best is not None and server_round - best["round"] >= patience
        )

    def finish(self, model: GlobalModel, read_best: Callable[[int], State | None]) -> None:
        """Makes the measurements that are still missing in the result of the run.

        If a run ended early, some views of its last model were not measured. If clients measure the
        accuracy, the server asks them again only if the accuracy itself is missing
        (`needs_last_messages`), because further messages could exceed the byte budget that ended
        the run. In a run with validation images, the test accuracy of the best model is also
        missing.

        Args:
            model: The model of the last round.
            read_best: A function that takes the number of the best round, and returns the tensors
                of the best model in the form of `GlobalModel.stored`; None if the tensors are
                unknown.
        """
        known, done = self.record.measured, self.record.lines[-1]["round"]
        if self.config.evaluation.images is not None:
            known.clear()
        missing = tuple(view for view in self._all_views if view not in known)
        lacks_accuracy = RIGHT_KEY in missing and self.needs_last_messages
        if missing and (self.beside or lacks_accuracy):
            known.update(self.evaluator.measure(done, model, missing))
        details = replace(self.record.details)  # the details of the last model
        self.record.best_on_test = self._best_on_test(read_best)
        self.record.details.take(details)

    def _best_on_test(self, read_best: Callable[[int], State | None]) -> Score | None:
        """Returns the result of the best model on the test images; None without this result."""
        line = best_of(self.record.lines)
        if self.record.view != VALIDATION or line is None:
            return None
        if line is self.record.lines[-1]:
            return self.record.measured.get(RIGHT_KEY)
        if not self.beside:
            return Score(line["test_accuracy"], line["test_loss"], line["test_images"])
        if (best := read_best(line["round"])) is None:
            return None
        model = GlobalModel.of_stored(best)
        return self.evaluator.measure(line["round"], model, (RIGHT_KEY,))[RIGHT_KEY]


def measured_by_clients(
    transport: Transport, aggregator: Aggregator, record: Record, *, keyed: bool
) -> ClientsEvaluator:
    """Returns an evaluator that asks every client to evaluate a model on its own images.

    Args:
        transport: The object that sends models to clients and receives their answers.
        aggregator: The object that calls the strategy. The strategy gets the answers and may
            compute metrics.
        record: The record of the run, which stores the metrics of the strategy.
        keyed: True if clients have a key, so that they can also evaluate images under a wrong key.
    """

    def show(server_round: int, model: GlobalModel, answers: Sequence[Answer]) -> None:
        told = as_chosen_by(answers)
        record.evaluated.clear()
        record.evaluated.update(aggregator.evaluated(server_round, model, told))
        record.details.note_answers(answers)

    return ClientsEvaluator(
        transport=transport, views=ALL_VIEWS if keyed else (RIGHT_KEY,), show=show
    )


def measured_by_server(
    config: Config,
    server: Server,
    *,
    holder: KeyHolder | None,
    shards: Path,
    class_names: Sequence[str],
    storage: StorageKeys | None,
    show: Callable[[Decisions], None] = lambda decisions: None,
) -> CentralEvaluator:
    """Returns an evaluator that evaluates a model on the encrypted common images.

    Args:
        config: The configuration of the experiment.
        server: The server's model.
        holder: The key holder of the common images; None if the evaluator has no key.
        shards: The folder with the test shard, and with the validation shard if there is one.
        class_names: The names of the classes, in the order of the head's outputs.
        storage: The keys that open the files of the shards; None if the shards are not sealed.
        show: A function that is called with the model's decisions for the test images.
    """
    device = next(server.backbone.model.parameters()).device
    precision = best_precision(device, config.engine.precision)
    own = coordinates.of_party(
        config,
        origin=server.origin,
        start=server.start,
        initial=server.initial,
        holder=holder,
        party=TEST,
    )
    put_reader(server.backbone.model, own.base)
    names = TEST_SHARD, *([VALIDATION_SHARD] if has_validation(config.data) else [])
    opened = [open_own_shard(shards / name, tuple(class_names), storage) for name in names]
    predictor = predictor_of(config.evaluation.predictor)
    if type(predictor) is Plain:  # all other predictors, subclasses too, need the images
        most = config.engine.feature_cache_mb * UNITS["MB"]
        opened[-1] = with_features(server.backbone.model, opened[-1], most, precision)
    return CentralEvaluator(
        backbone=server.backbone,
        shard=opened[0],
        validation=opened[1] if len(opened) > 1 else None,
        coordinates=own,
        holder=holder,
        precision=precision,
        predictor=predictor,
        show=show,
    )


def class_shares_of(evaluator: Evaluator, server: Server) -> list[float]:
    """Returns the share of each class in the images on which each round is evaluated.

    If clients measure the accuracy, the server does not know the shares, and this function returns
    equal shares.
    """
    labels = None
    if isinstance(evaluator, CentralEvaluator):
        labels = (evaluator.validation or evaluator.shard).labels
    return class_shares(labels, outputs_of(server.backbone.model))


def clients_hold_keys(config: Config, holder: KeyHolder | None) -> bool:
    """Returns True if clients measure the accuracy and have a key.

    Clients with a key can also measure the accuracy on images under a wrong key and on plain
    images.
    """
    return (
        policies.clients_evaluate(config) and holder is not None and bool(config.encryption.steps)
    )

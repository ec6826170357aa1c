"""Measures accuracy and loss of a run's models, on the test images of server or clients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fl_vitlora.adaptation import coordinates, policies
from fl_vitlora.config import Config
from fl_vitlora.config.units import UNITS
from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.data.shards import TEST_SHARD, open_own_shard
from fl_vitlora.encryption.holder import TEST, KeyHolder
from fl_vitlora.encryption.storage_keys import StorageKeys
from fl_vitlora.experiment.record import Record
from fl_vitlora.experiment.server_model import Server
from fl_vitlora.federation.aggregator import Aggregator
from fl_vitlora.federation.evaluation import (
    ALL_VIEWS,
    Answer,
    CentralEvaluator,
    ClientsEvaluator,
    Evaluator,
)
from fl_vitlora.federation.global_model import GlobalModel
from fl_vitlora.federation.learning import class_shares
from fl_vitlora.finetuning.classifier import outputs_of
from fl_vitlora.flower.server.transport import Transport
from fl_vitlora.models.reading import put_reader
from fl_vitlora.training import local
from fl_vitlora.training.inputs import with_features
from fl_vitlora.training.prediction import Plain, predictor_of


@dataclass(frozen=True, kw_only=True)
class Measuring:
    """Evaluates the models of a run and records the results.

    Attributes:
        evaluator: Computes accuracy and loss of one model.
        rounds: The number of planned rounds.
        record: The record of the run, to which the results are written.
    """

    evaluator: Evaluator
    rounds: int
    record: Record

    @property
    def beside(self) -> bool:
        """Returns True if a model can be evaluated while the next round runs."""
        return isinstance(self.evaluator, CentralEvaluator)

    def evaluate(self, server_round: int, model: GlobalModel) -> tuple[float, float]:
        """Measures the model after a round, and returns its accuracy and loss.

        After the last planned round, the model is also measured on test images that are encrypted
        with a wrong key, and on plain test images.
        """
        views = self.evaluator.views if server_round == self.rounds else (RIGHT_KEY,)
        self.record.measured.update(self.evaluator.measure(server_round, model, views))
        return self.record.measured[RIGHT_KEY]

    def evaluate_other_views(self, model: GlobalModel) -> None:
        """Measures the last model on images under a wrong key and on plain images.

        This is needed only for a run that ended early: otherwise its last round has done so. If
        clients measure the accuracy, nothing is measured here, because further messages would
        exceed the byte budget that ended the run.
        """
        known = self.record.measured
        missing = tuple(view for view in self.evaluator.views if view not in known)
        if missing and self.beside:
            known.update(self.evaluator.measure(len(self.record.lines), model, missing))


def measured_by_clients(
    transport: Transport, aggregator: Aggregator, record: Record, *, keyed: bool
) -> ClientsEvaluator:
    """Returns an evaluator that asks every client to evaluate a model on its own test images.

    Args:
        transport: Sends the questions to clients and receives their answers.
        aggregator: The object that calls the strategy. The strategy gets the answers and may
            compute metrics.
        record: The record of the run, which stores these metrics.
        keyed: True if clients have a key, so that they can also evaluate with a wrong key.
    """

    def show(server_round: int, model: GlobalModel, answers: Sequence[Answer]) -> None:
        record.evaluated.clear()
        record.evaluated.update(aggregator.evaluated(server_round, model, answers))

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
) -> CentralEvaluator:
    """Returns an evaluator that evaluates a model on the encrypted test shard.

    Args:
        config: The configuration of the experiment.
        server: The server's model.
        holder: The object that has the key of the images, if it evaluates together with the server.
            None if the server has no access to a key.
        shards: The folder with the test shard.
        class_names: The names of the classes, in the order of the head's outputs.
        storage: The keys that open the file of the shard; None if the file is not encrypted.
    """
    device = next(server.backbone.model.parameters()).device
    precision = local.best_precision(device, config.engine.mixed_precision)
    own = coordinates.of_party(
        config,
        origin=server.origin,
        start=server.start,
        initial=server.initial,
        holder=holder,
        party=TEST,
    )
    put_reader(server.backbone.model, own.base)
    shard = open_own_shard(shards / TEST_SHARD, tuple(class_names), storage)
    predictor = predictor_of(config.evaluation.predictor)
    if isinstance(predictor, Plain):  # any other predictor needs the images
        most = config.engine.feature_cache_mb * UNITS["MB"]
        shard = with_features(server.backbone.model, shard, most, precision)
    return CentralEvaluator(
        backbone=server.backbone,
        shard=shard,
        coordinates=own,
        holder=holder,
        precision=precision,
        predictor=predictor,
    )


def class_shares_of(evaluator: Evaluator, server: Server) -> list[float]:
    """Returns the share of each class in the test images.

    If clients measure the accuracy, the server does not know the shares, and equal shares are
    returned.
    """
    labels = evaluator.shard.labels if isinstance(evaluator, CentralEvaluator) else None
    return class_shares(labels, outputs_of(server.backbone.model))


def clients_hold_keys(config: Config, holder: KeyHolder | None) -> bool:
    """Returns True if clients measure the accuracy, and have a key.

    They can then also measure it on images under a wrong key and on plain images.
    """
    return (
        policies.clients_evaluate(config) and holder is not None and bool(config.encryption.steps)
    )

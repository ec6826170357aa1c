"""The contender pfl-research by Apple, with one process per worker by `torchrun`.

The model is evaluated centrally after each round. The program runs in its own environment, which
`compare.py` makes.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.callback.central_evaluation import CentralEvaluationCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from work import asked, build, now, report

from fl_vitlora.config import TrainingConfig
from fl_vitlora.models.backbone import normalize

ACCURACY = "accuracy"


class Classifier(nn.Module):
    """The model with the two methods that pfl requires."""

    def __init__(self, model: nn.Module, training: TrainingConfig) -> None:
        super().__init__()
        self.model = model
        self.smoothing = training.label_smoothing

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of a step."""
        self.model.train()
        logits = self.model(normalize(images))
        return nn.functional.cross_entropy(logits, labels, label_smoothing=self.smoothing)

    @torch.inference_mode()
    def metrics(self, images: Tensor, labels: Tensor) -> dict[str, Weighted]:
        """Returns the number of right predictions, as an average over images."""
        self.model.eval()
        right = (self.model(normalize(images)).argmax(dim=-1) == labels).sum()
        return {ACCURACY: Weighted(int(right), len(labels))}


class Clock(TrainingProcessCallback[Any]):  # type: ignore[misc]
    """A callback that records the time at the end of each round, and the last accuracy."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.measured = 0.0

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Records the time and the accuracy of one round."""
        del model, central_iteration
        self.times.append(now())
        for name, value in aggregate_metrics:
            if ACCURACY in str(name):
                self.measured = value.overall_value
        return False, Metrics()


def main() -> None:
    """Trains the clients, and prints the result in the first process."""
    torch.set_num_threads(1)
    task = asked()
    config, shards, test = task.config, task.shards(), task.test_shard()
    users = FederatedDataset(
        lambda user: Dataset([shards[user].images, shards[user].labels], user_id=str(user)),
        get_user_sampler("minimize_reuse", range(len(shards))),
        {user: len(shard) for user, shard in enumerate(shards)},
    )
    training = config.training
    model = build(config)
    active = [parameter for parameter in model.parameters() if parameter.requires_grad]
    wrapped = PyTorchModel(
        Classifier(model, training),
        lambda parameters, lr: torch.optim.AdamW(
            parameters, lr=lr, weight_decay=training.weight_decay, fused=True
        ),
        torch.optim.SGD(active, lr=1.0),
    )
    clock, begin = Clock(), now()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=task.rounds,
            evaluation_frequency=task.rounds + 1,  # clients never evaluate the model themselves
            train_cohort_size=len(shards),
            val_cohort_size=0,
        ),
        SimulatedBackend(
            training_data=users, val_data=users, postprocessors=[WeightByDatapoints()]
        ),
        wrapped,
        NNTrainHyperParams(
            local_num_epochs=training.epochs,
            local_learning_rate=training.learning_rate,
            local_batch_size=training.batch_size,
            local_max_grad_norm=training.clip_norm,
        ),
        NNEvalHyperParams(local_batch_size=len(test)),
        callbacks=[CentralEvaluationCallback(Dataset([test.images, test.labels])), clock],
    )
    if os.environ["RANK"] == "0":
        times = [begin, *clock.times]
        rounds = [end - start for start, end in itertools.pairwise(times)]
        report(rounds, begin, clock.measured)


if __name__ == "__main__":
    main()

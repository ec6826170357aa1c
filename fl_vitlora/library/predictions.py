"""The predictions of a model for images without labels.

Letters in shapes: n images, K classes, C channels, H × W pixels.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fl_vitlora.errors import UserError
from fl_vitlora.models.backbone import normalize
from fl_vitlora.storage.files import WriteError, write_atomically
from fl_vitlora.training.prediction import Predictor, answering

BATCH = 64  # images


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """The predictions for n images.

    Attributes:
        names: The name of each image.
        class_names: The names of the K classes.
        probabilities: The probability of each class for each image, float32 (n, K); each row has
            the sum 1. The probabilities are the softmax of the logits, and are not calibrated.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    probabilities: Tensor

    def __len__(self) -> int:
        return len(self.names)

    @property
    def labels(self) -> Tensor:
        """Returns the number of the most probable class of each image, int64 (n,)."""
        return self.probabilities.argmax(dim=-1)

    @property
    def classes(self) -> tuple[str, ...]:
        """Returns the name of the most probable class of each image."""
        return tuple(self.class_names[label] for label in self.labels.tolist())

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yields a dictionary for each image: its name, its class, and all probabilities."""
        for name, found, row in zip(
            self.names, self.classes, self.probabilities.tolist(), strict=True
        ):
            shares = dict(zip(self.class_names, row, strict=True))
            yield {
                "image": name,
                "class": found,
                "probability": shares[found],
                "probabilities": shares,
            }

    def write(self, path: str | Path) -> None:
        """Writes the predictions to a file, as a table (.csv) or as a list (.json).

        A table has the columns `image`, `class` and `probability`, and a column for each class,
        whose name is the name of the class with ``p:`` before it.

        Raises:
            UserError: If the name of the file has another ending, or the file cannot be written.
        """
        path = Path(path)
        expect_ending(path)
        text = self._table()
        if path.suffix == ".json":
            text = json.dumps(list(self.rows()), indent=2, ensure_ascii=False) + "\n"
        try:
            write_atomically(path, text)
        except (WriteError, OSError) as error:
            raise UserError(f"{path} cannot be written: {error}") from None

    def _table(self) -> str:
        buffer = io.StringIO()
        table = csv.writer(buffer, lineterminator="\n")
        table.writerow(["image", "class", "probability", *(f"p:{n}" for n in self.class_names)])
        for row in self.rows():
            shares = [f"{share:.6f}" for share in row["probabilities"].values()]
            table.writerow([row["image"], row["class"], f"{row['probability']:.6f}", *shares])
        return buffer.getvalue()


def expect_ending(path: Path) -> None:
    """Checks that predictions can be written to a file with this name.

    Raises:
        UserError: If the name ends neither in .csv nor in .json.
    """
    if path.suffix not in (".csv", ".json"):
        raise UserError(f"{path}: expected a name that ends in .csv or .json")


def predict(
    model: nn.Module,
    images: Tensor,
    predictor: Predictor,
    *,
    names: tuple[str, ...],
    class_names: tuple[str, ...],
) -> Predictions:
    """Computes the predictions of a model.

    Args:
        model: The model, in evaluation mode.
        images: The images that the model reads, uint8 (n, C, H, W).
        predictor: The function that computes the logits of a batch with the model.
        names: The name of each image.
        class_names: The names of the classes, in the order of the head's outputs.
    """
    device = next(model.parameters()).device
    with answering(model, predictor, torch.float32):
        logits = [
            predictor(model, normalize(batch.to(device))).detach().cpu()
            for batch in torch.split(images, BATCH)
        ]
    return Predictions(
        names=names,
        class_names=class_names,
        probabilities=torch.cat(logits).softmax(dim=-1),
    )

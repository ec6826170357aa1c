"""A finished run for Python programs: its results, its model, and the model's predictions."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl_vitlora.checkpoints.logbook import ROUNDS
from fl_vitlora.config import Config, resolve, to_mapping
from fl_vitlora.config.confirmation import check_predictor
from fl_vitlora.config.export_names import READS, Form, Reads
from fl_vitlora.data.loose_images import find_images
from fl_vitlora.errors import UserError, unknown
from fl_vitlora.experiment.trained_model import TrainedModel, open_model
from fl_vitlora.library.exporting import export
from fl_vitlora.library.predictions import Predictions, predict
from fl_vitlora.reporting.report.writing import write_report
from fl_vitlora.reporting.run_folder import find_run, located
from fl_vitlora.training.prediction import predictor_of

if TYPE_CHECKING:
    from fl_vitlora.flower.strategies.aggregators import AnyStrategy

Pictures = Tensor | NDArray[np.uint8] | str | Path | Sequence[str | Path]
MAY_NAME = ("encryption.key_file", "model.weights")  # files that may have moved since the run


@dataclass(frozen=True, kw_only=True, eq=False)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: The run folder.
        config: The settings of the run. Paths lead to the files that the run used.
        result: The content of `result.json`.
        trust: The names of code outside of this project and Flower that the run may import.
        strategy: The strategy of the run. If `strategy` is None, the strategy is made from the
            settings when it is needed.
    """

    folder: Path
    config: Config
    result: dict[str, Any] = field(repr=False)
    trust: frozenset[str] = frozenset()
    strategy: AnyStrategy | None = field(default=None, repr=False)

    @property
    def accuracy(self) -> float | None:
        """Returns the accuracy on the test images, in [0, 1]; None if it was not measured."""
        found: float | None = self.result["accuracy"]
        return found

    @cached_property
    def history(self) -> tuple[dict[str, Any], ...]:
        """Returns the lines of `rounds.jsonl`, one dictionary for each round.

        ``pandas.DataFrame(run.history)`` makes a table of the lines.
        """
        lines = (self.folder / ROUNDS).read_text(encoding="utf-8").splitlines()
        return tuple(json.loads(line) for line in lines)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Returns the names of the classes, in the order of the head's outputs."""
        return tuple(self.result["class_names"])

    def model(
        self, reads: Reads = "plain", *, client: int | None = None, best: bool = False
    ) -> nn.Module:
        """Returns the trained model, with the layers that the fine-tuning method added.

        The model for plain images and the model for ciphertext give the same outputs for the same
        image. Only the model for ciphertext can be used without the owners' key. With some settings
        this model needs the key too, because every client has its own key.

        Args:
            reads: "plain" for a model that reads plain images, "ciphertext" for a model that reads
                images that are encrypted like the images of the run.
            client: The number of the client whose key is used, if every client has its own key.
            best: True for the model of the round with the best accuracy (on validation images if
                the run has any, else on test images) instead of the model of the last round.

        Returns:
            A new model in evaluation mode, on the CPU. The inputs of the model are pixels in
            [-1, 1], float (n, C, H, W): (q / 255 - 0.5) / 0.5 for a byte q, which is timm's
            transform with mean and standard deviation 0.5. The outputs are logits, (n, K) for K
            classes.

        Raises:
            UserError: If there is no such model, or if the key is needed but missing.
        """
        if reads not in READS:
            raise unknown("value of reads", reads, READS)
        trained = self._best if best else self._last
        return trained.for_plain(client) if reads == "plain" else trained.for_ciphertext(client)

    def encrypt(self, images: Tensor | NDArray[np.uint8], client: int | None = None) -> Tensor:
        """Encrypts images like the images of the run. This method needs the owners' key.

        Args:
            images: Plain images of the model's size, uint8 (n, C, H, W).
            client: The number of the client whose key is used, if every client has its own key.

        Returns:
            The ciphertext, uint8 (n, C, H, W).
        """
        return self._last.encrypt(_expect_pixels(images, self._last), client)

    def predict(
        self,
        images: Pictures,
        *,
        encrypted: bool = False,
        client: int | None = None,
        best: bool = False,
    ) -> Predictions:
        """Classifies images.

        An owner of the key passes plain images. This method encrypts the plain images, and the
        model reads the ciphertext; only a model that needs no key reads the plain images. A service
        without the key passes ciphertext, and gets the same predictions.

        Args:
            images: The images, uint8 (n, C, H, W) of the model's size, or the path of an image or
                of a folder, or several such paths. Files of plain images are fitted to the model's
                size, as in the run; files of ciphertext must have the model's size.
            encrypted: True if the images are ciphertext.
            client: The number of the client whose key is used, if every client has its own key.
            best: True for the model of the round with the best accuracy, as in `model`.

        Raises:
            UserError: If an image cannot be read, or if the key is needed but missing.
        """
        trained = self._best if best else self._last
        pixels, names = self._read(images, trained, encrypted=encrypted)
        if not encrypted and not trained.reads_plain:
            pixels, encrypted = trained.encrypt(pixels, client), True
        return predict(
            trained.for_ciphertext(client) if encrypted else trained.for_plain(client),
            pixels,
            predictor_of(self.config.evaluation.predictor),
            names=names,
            class_names=trained.class_names,
        )

    def export(
        self,
        folder: str | Path,
        form: Form = "timm",
        *,
        reads: Reads = "plain",
        client: int | None = None,
        best: bool = False,
        push_to_hub: str | None = None,
    ) -> Path:
        """Writes the trained model for other programs, and checks that they load it correctly.

        Args:
            folder: The folder to write, which must be new or empty.
            form: "timm" for a folder with the whole model, which
                ``timm.create_model("local-dir:FOLDER", pretrained=True)`` opens; "peft" for a
                folder with the changes only, which ``peft.PeftModel.from_pretrained(base, FOLDER)``
                opens; "onnx" for the whole model as `model.onnx`, which onnxruntime opens.
            reads: The images that the model reads, as in `model`.
            client: The number of the client whose key is used, if every client has its own key.
            best: True for the model of the round with the best accuracy, as in `model`.
            push_to_hub: The name of a private repository on the Hugging Face hub, to which the
                folder is uploaded; it must be new or empty. None to upload nothing.

        Returns:
            The folder. The file README.md in it has the lines of Python that load the model.

        Raises:
            UserError: If this form cannot hold the model, the key is needed but missing, or the
                upload is refused.
        """
        trained = self._best if best else self._last
        place = Path(folder)
        export(trained, place, form=form, reads=reads, client=client, push_to_hub=push_to_hub)
        return place

    def report(self, out: str | Path | None = None) -> Path:
        """Writes a report of the run: one HTML file with charts and tables, for any browser.

        Args:
            out: The file to write; None for `report.html` in the run folder.

        Returns:
            The file. It contains everything that it shows, and loads nothing from the network.

        Raises:
            UserError: If the packages for reports are missing, or the file cannot be written.
        """
        return write_report(self.folder, None if out is None else Path(out))

    @cached_property
    def _last(self) -> TrainedModel:
        return self._open(best=False)

    @cached_property
    def _best(self) -> TrainedModel:
        return self._open(best=True)

    def _open(self, *, best: bool) -> TrainedModel:
        import strategies

        check_predictor(self.config.evaluation.predictor, self.trust)
        strategy = self.strategy
        if strategy is None:
            strategy = strategies.load_for(self.config, self.trust)
        return open_model(self.folder, self.config, strategy, best=best)

    def _read(
        self, images: Pictures, trained: TrainedModel, *, encrypted: bool
    ) -> tuple[Tensor, tuple[str, ...]]:
        """Returns the pixels, uint8 (n, C, H, W), and the name of each image."""
        if isinstance(images, Tensor | np.ndarray):
            pixels = _expect_pixels(images, trained)
            return pixels, tuple(str(number) for number in range(len(pixels)))
        places = [images] if isinstance(images, str | Path) else images
        found = find_images([Path(place) for place in places])
        _, height, width = trained.backbone.image_shape
        if encrypted:
            found.expect_ciphertext(height, width)
        return found.read(self.config.data, height, width), found.names


def _expect_pixels(images: Tensor | NDArray[np.uint8], trained: TrainedModel) -> Tensor:
    """Returns images as a tensor.

    Raises:
        UserError: If the images do not have the type and the shape of the model's input.
    """
    pixels, shape = torch.as_tensor(images), trained.backbone.image_shape
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or tuple(pixels.shape[1:]) != shape:
        raise UserError(
            f"images: expected bytes (uint8) of the shape (n, {', '.join(map(str, shape))}), "
            f"got {str(pixels.dtype).removeprefix('torch.')} {tuple(pixels.shape)}"
        )
    return pixels


def load_run(
    folder: str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    trust: Collection[str] = (),
) -> FinishedRun:
    """Opens a finished run.

    Args:
        folder: The run folder.
        settings: New places of files that have moved since the run: `encryption.key_file` and
            `model.weights`.
        trust: The names, ``package.module:Class``, of code that the run may import although the
            code belongs neither to this project nor to Flower. Any other such code is refused.

    Raises:
        UserError: If the folder has no finished run, or if `settings` has any other setting.
    """
    folder, given = Path(folder), dict(settings or {})
    if others := sorted(given.keys() - set(MAY_NAME)):
        raise UserError(
            f"{folder}: the run has its own settings; remove {others[0]} (you may set: "
            f"{', '.join(MAY_NAME)})"
        )
    begun, result = find_run(folder)
    if result is None:
        raise UserError(f"{folder}: this run is not finished; finish it first: --resume {folder}")
    config = resolve(to_mapping(located(begun, begun, folder)), given)
    return FinishedRun(folder=folder, config=config, result=result, trust=frozenset(trust))

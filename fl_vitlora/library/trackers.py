"""Callbacks that write a run into the files of a tracker: TensorBoard, MLflow, Weights & Biases.

Each tracker gets the settings of a run, and all numbers of each line of `rounds.jsonl` at the step
of its round, under the same names. The files are written on this machine, and nothing is sent to
anyone unless the caller asks for it.

    fv.run({"rounds": 5}, callbacks=[fv.TensorBoard("runs/tensorboard")])
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fl_vitlora.config import Config, to_mapping, to_yaml
from fl_vitlora.errors import UserError
from fl_vitlora.library.callbacks import Callback, Line

if TYPE_CHECKING:
    from fl_vitlora.library.finished import FinishedRun

STEP = "round"
ARTEFACTS = ("config.yaml", "result.json", "rounds.jsonl")


class TensorBoard(Callback):
    """Writes event files that ``tensorboard --logdir FOLDER`` shows.

    Args:
        folder: The folder of the event files. Each run gets a folder in it, with the name of its
            run folder.
    """

    def __init__(self, folder: str | Path) -> None:
        _expect("tensorboard", "tensorboard")
        self._folder = Path(folder)
        self._writer: Any = None

    def on_run_begin(self, config: Config) -> None:
        """Starts the event file of a run, with the settings as a text."""
        from torch.utils.tensorboard import SummaryWriter

        self._close()
        self._writer = SummaryWriter(str(self._folder / name_of(config)))
        self._writer.add_text("config", f"```yaml\n{to_yaml(config)}```", 0)

    def on_round_end(self, line: Line) -> None:
        """Writes the numbers of a round."""
        for name, value in numbers_of(line):
            self._writer.add_scalar(name, value, line[STEP])
        self._writer.flush()

    def on_run_end(self, run: FinishedRun) -> None:
        """Writes the final accuracy, and closes the file."""
        if run.accuracy is not None:
            self._writer.add_scalar("final/accuracy", run.accuracy, len(run.history))
        self._close()

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class MLflow(Callback):
    """Writes runs of MLflow, with the settings as parameters and the results as artefacts.

    Args:
        place: A folder, which gets the database `mlflow.db` and a folder for artefacts, or the
            address of a server of MLflow.
        experiment: The name of the experiment in MLflow.
    """

    def __init__(self, place: str | Path, experiment: str = "fl_vitlora") -> None:
        _expect("mlflow", "mlflow")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at the import
        from mlflow import MlflowClient

        address, artefacts = str(place), None
        if "://" not in address:
            folder = Path(place).absolute()
            folder.mkdir(parents=True, exist_ok=True)
            address, artefacts = f"sqlite:///{folder / 'mlflow.db'}", (folder / "files").as_uri()
        self._client, self._run = MlflowClient(tracking_uri=address), ""
        known = self._client.get_experiment_by_name(experiment)
        self._experiment: str = (
            known.experiment_id
            if known
            else self._client.create_experiment(experiment, artifact_location=artefacts)
        )

    def on_run_begin(self, config: Config) -> None:
        """Starts a run of MLflow, with the settings as parameters."""
        begun = self._client.create_run(self._experiment, run_name=name_of(config))
        self._run = begun.info.run_id
        for path, value in settings_of(config):
            self._client.log_param(self._run, path, value)

    def on_round_end(self, line: Line) -> None:
        """Writes the numbers of a round."""
        for name, value in numbers_of(line):
            self._client.log_metric(self._run, name, value, step=line[STEP])

    def on_run_end(self, run: FinishedRun) -> None:
        """Stores the results as artefacts, and ends the run of MLflow."""
        for name in ARTEFACTS:
            self._client.log_artifact(self._run, str(run.folder / name))
        self._client.set_terminated(self._run)


class WandB(Callback):
    """Writes runs of Weights & Biases, by default into files on this machine only.

    Args:
        folder: The folder of the files.
        project: The name of the project.
        online: True to send the runs to the server of Weights & Biases. Otherwise ``wandb sync``
            sends them later.
    """

    def __init__(
        self, folder: str | Path, project: str = "fl_vitlora", *, online: bool = False
    ) -> None:
        _expect("wandb", "wandb")
        self._folder, self._project = Path(folder), project
        self._mode = "online" if online else "offline"
        self._run: Any = None

    def on_run_begin(self, config: Config) -> None:
        """Starts a run of Weights & Biases, with the settings."""
        if self._mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read at the import
        import wandb

        self._folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=self._project,
            name=name_of(config),
            dir=str(self._folder),
            mode=self._mode,
            config=to_mapping(config),
            reinit="finish_previous",
            settings=wandb.Settings(silent=True),
        )

    def on_round_end(self, line: Line) -> None:
        """Writes the numbers of a round."""
        self._run.log(dict(numbers_of(line)), step=line[STEP])

    def on_run_end(self, run: FinishedRun) -> None:
        """Stores the results, and ends the run of Weights & Biases."""
        for name in ARTEFACTS:
            self._run.save(str(run.folder / name), base_path=str(run.folder), policy="now")
        self._run.finish()


def numbers_of(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yields all numbers of a line of `rounds.jsonl`, with their names.

    A number in a group has the name GROUP/NAME. Of a list, only the length is given, such as the
    number of participants.

    Example:
        >>> dict(numbers_of({"round": 1, "loss": 0.5, "by": {"head": 3}, "participants": [4, 7]}))
        {'loss': 0.5, 'by/head': 3.0, 'participants': 2.0}
    """
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from numbers_of(value, f"{prefix}{name}/")
        elif isinstance(value, list):
            yield f"{prefix}{name}", float(len(value))
        elif isinstance(value, int | float) and name != STEP:
            yield f"{prefix}{name}", float(value)


def settings_of(config: Config) -> Iterator[tuple[str, str]]:
    """Yields the dotted path and the value of each setting, as texts."""

    def leaves(tree: Mapping[str, Any], above: str) -> Iterator[tuple[str, str]]:
        for name, value in tree.items():
            if isinstance(value, Mapping) and value:
                yield from leaves(value, f"{above}{name}.")
            else:
                yield f"{above}{name}", str(value)

    yield from leaves(to_mapping(config), "")


def name_of(config: Config) -> str:
    """Returns the name of a run, which is that of its run folder."""
    return Path(str(config.out)).name


def _expect(package: str, extra: str) -> None:
    """Checks that a package is installed.

    Raises:
        UserError: If the package is missing; the message names the extra that installs it.
    """
    if importlib.util.find_spec(package) is None:
        raise UserError(
            f"this callback needs the library {package}; install it: "
            f"pip install 'fl_vitlora[{extra}]'"
        )

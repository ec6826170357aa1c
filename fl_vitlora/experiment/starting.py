"""Starts an experiment from the trained model of a finished run.

The model of the finished run is merged into a plain model of timm and written to a file, to which
the setting `model.weights` then leads. So the server and the workers load this file as they load
other weights. Which images this model reads depends on the keys of both runs:

* If the images of the new run are encrypted with the same key, and the new run does not adapt its
  model, the model for ciphertext is taken: it reads the new images as the old run did.
* Otherwise the model for plain images is taken, as a pre-trained model would be. The model for
  plain images can be adapted to any key. To remove the effect of the old key from the model, the
  program may need the old key ring.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from fl_vitlora.adaptation import policies
from fl_vitlora.config import Config, EncryptionConfig
from fl_vitlora.encryption.keys import key_id, open_ring
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.held_keys import holds_key, reveals_part_of_key
from fl_vitlora.experiment.merging import merged
from fl_vitlora.experiment.trained_model import TrainedModel, open_model
from fl_vitlora.flower.strategies.aggregators import LoadStrategy
from fl_vitlora.models.backbone import PRETRAINED
from fl_vitlora.models.own_model import GIVEN_MODELS
from fl_vitlora.models.start import NAMED, PLAIN, Start, start_of
from fl_vitlora.reporting.run_folder import MODEL, find_run, located
from fl_vitlora.storage.checksummed import digest_of, read_sealed
from fl_vitlora.storage.files import WriteError

SAME = ("steps", "scope", "block_size", "fixed_blocks", "fixed_entries")  # decide the ciphertext


def with_start(config: Config, load_strategy: LoadStrategy, place: Path | None = None) -> Config:
    """Returns a configuration in which `model.weights` leads to the model of a finished run.

    Args:
        config: The configuration of the new experiment. If `config` names no run to start from, or
            if its weights are already such a file, `config` is returned without a change.
        load_strategy: A function that makes the strategy of the finished run.
        place: The folder that contains the run folders. The file is written into a subfolder of
            `place`. By default `place` is the folder above the run folder of `config`.

    Raises:
        UserError: If the run is not finished, if its model cannot be merged into a plain one, or if
            a key is needed and missing.
    """
    if config.model.init_from is None:
        return config
    if config.model.weights != PRETRAINED:
        start_of(config.model)  # raises an error if the weights are not of the named run
        return config
    run = Path(config.model.init_from)
    try:
        begun = find_run(run)[0]
        old = _with_a_ring(located(begun, begun, run), config)
        trained = open_model(run, old, load_strategy(old))
        start = _start(trained, config)
        above = Path(config.out or "runs/run").parent if place is None else place
        path = start.write(above.absolute() / GIVEN_MODELS)
    except (UserError, WriteError) as error:
        reason = str(error).removeprefix(f"{run}: ")
        raise UserError(f"model.init_from {run}: {reason}") from None
    return dataclasses.replace(config, model=dataclasses.replace(config.model, weights=str(path)))


def note_other_start(
    name: str, config: Config, reads: dict[str, str], note: Callable[[str], None]
) -> None:
    """Warns the user if the runs of one cell of a comparison start from different models.

    With the old seed and the old key a run starts from the model for ciphertext, and with any other
    seed from the model for plain images. A mean over such runs mixes two experiments.

    Args:
        name: The name of the cell.
        config: The configuration of a run, whose `model.weights` leads to its start if it has one.
        reads: For each cell with an earlier run, the images that the start of this run reads; the
            function adds the first run of a cell.
        note: A function that is called with the warning.
    """
    try:
        start = start_of(config.model)
    except UserError:  # the error is reported when the run starts
        return
    if start is None:
        return
    first = reads.setdefault(name, start.reads)
    if first != start.reads:
        note(
            f"warning: {name}: the run with seed {config.seed} starts from a model for "
            f"{start.reads}, an earlier run of this cell from a model for {first}, so their mean "
            "mixes two experiments; take one seed, or set encryption.adapt=true"
        )


def _start(trained: TrainedModel, config: Config) -> Start:
    """Returns the start of a new experiment."""
    encrypted = has_same_key(trained, config)
    steps = trained.config.encryption.steps
    told, reads = PLAIN, "ciphertext" if encrypted else "plain"
    if encrypted and steps:
        told = f"ciphertext under the key {trained.key_id}"
    model = merged(trained, reads).float()
    state, metadata = read_sealed(trained.folder / MODEL)
    return Start(
        run=str(trained.folder),
        digest=digest_of(state, metadata)[:NAMED],
        model=trained.config.model.name,
        reads=told,
        holds_key=holds_key(trained.config, reads),
        reveals_part_of_key=reveals_part_of_key(trained.config, reads),
        class_names=trained.class_names,
        tensors={name: tensor.contiguous() for name, tensor in model.state_dict().items()},
    )


def has_same_key(trained: TrainedModel, config: Config) -> bool:
    """Returns True if a new run encrypts images like a finished run, and does not adapt its model.

    Args:
        trained: The model of the finished run.
        config: The configuration of the new run.
    """
    old, new = trained.config, config
    if policies.adapts(new) or any(_of(old.encryption, n) != _of(new.encryption, n) for n in SAME):
        return False
    if not new.encryption.steps or new.encryption.scope == "image":
        return True
    ring = Path(new.encryption.key_file)
    common = policies.common_key(new) and old.seed == new.seed and ring.is_file()
    return common and key_id(open_ring(ring).current) == trained.key_id


def _of(encryption: EncryptionConfig, name: str) -> object:
    return getattr(encryption, name)


def _with_a_ring(old: Config, new: Config) -> Config:
    """Returns the configuration of the old run; the new run's key ring replaces a lost key ring.

    The new key ring is useful only if it also has the secret of the old run.
    """
    if not policies.lacks_key_ring(old) or not Path(new.encryption.key_file).is_file():
        return old
    encryption = dataclasses.replace(old.encryption, key_file=new.encryption.key_file)
    return dataclasses.replace(old, encryption=encryption)

"""Prepares a run on shards that owners made elsewhere: no image is read, and none is encrypted."""

from __future__ import annotations

from pathlib import Path

from fl_vitlora.checkpoints.logbook import Logbook
from fl_vitlora.data.given_shards import find_given
from fl_vitlora.experiment import elsewhere
from fl_vitlora.experiment.preparation import plot_counts, storage_keys
from fl_vitlora.experiment.run_shards import one_or_all
from fl_vitlora.experiment.stage import Experiment, Stage, finish_folder, prepare_server
from fl_vitlora.reporting.run_folder import DATA, RunFolder


def prepare_given(experiment: Experiment, device: str, *, again: bool) -> Stage:
    """Prepares the model, and puts the shards into the run folder.

    Args:
        experiment: The experiment, whose settings are those of the shards.
        device: The device of the server's model.
        again: True if the folder belongs to a run that was interrupted before its first
            checkpoint.

    Raises:
        UserError: If the shards or the model cannot be used. After this error, a new run leaves no
            folder behind.
    """
    config, watch, shards = experiment.config, experiment.watch, experiment.shards
    watch.announce("preparing the model")
    if shards is None:  # the run is resumed
        shards = find_given(Path(config.data.shards or ""), storage_keys(config))
        elsewhere.check_same(config, shards)
    summary, key = elsewhere.tell(shards), one_or_all(shards.keys)
    watch.note(summary)
    holder, server, told = prepare_server(experiment, device, shards.class_names, key)
    elsewhere.check_shape(shards, server.backbone)
    folder = (
        RunFolder.reopen(Path(config.out or "")) if again else RunFolder.create(experiment.written)
    )
    folder.write(DATA, f"{summary}\n")
    elsewhere.put_into(shards, folder.shards)
    plot_counts(shards.counts(), shards.class_names, folder)
    finish_folder(config, folder, shards.class_names, holder, server)
    sealed = {one.seal for one in shards.shards.values() if one.seal is not None}
    return Stage(
        folder=folder,
        logbook=Logbook.begin(folder.path),
        class_names=shards.class_names,
        storage=storage_keys(config).only(sealed) if sealed else None,
        holder=holder,
        server=server,
        encryption=told,
        content=shards.digest,
    )

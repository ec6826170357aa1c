"""The same client and server apps on Flower's SuperLink and SuperNodes.

Every node finds its configuration in what its operator gave to Flower:

* a SuperNode: ``--node-config 'partition-id=3 shards="/data/shards" config="/data/config.yaml"'``
* the server: ``flwr run deploy NAME --run-config 'config="..." shards="..." out="..."'``, where the
  folder of shards need hold no more than the encrypted test images.

A strategy that is neither this project's nor Flower's is named there as well, ``trust-strategy``:
the configuration may come from others, and alone it brings no code.

Both are told ``storage-key="FILE"`` where shards are sealed at rest and they have no key ring, and
may be told ``classes="FILE"``, the names of the classes in the order of the run. Only owners ever
hold the key of images; see `deploy/README.md` for a walk-through.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.common.logger import log
from flwr.serverapp import Grid, ServerApp

from fl_vitlora import config as configuration
from fl_vitlora.adaptation import policies
from fl_vitlora.checkpoints.logbook import Logbook
from fl_vitlora.config import Config
from fl_vitlora.config.confirmation import check_method, check_predictor
from fl_vitlora.config.settings import read_path
from fl_vitlora.data.class_names import read_names
from fl_vitlora.data.shards import (
    NO_KEYS,
    TEST_SHARD,
    class_names_of,
    client_shard,
    shard_metadata,
)
from fl_vitlora.encryption.storage_keys import StorageKeys
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.preparation import prepare_model, storage_keys
from fl_vitlora.experiment.recorded_updates import recorders, what_is_recorded
from fl_vitlora.experiment.runner import client_settings
from fl_vitlora.experiment.server_model import make_server
from fl_vitlora.experiment.server_run import Run
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.finetuning import methods
from fl_vitlora.flower.client.app import make_client_app
from fl_vitlora.flower.client.workspace import ClientSettings, client_of
from fl_vitlora.flower.simulation.workers import choose_workers
from fl_vitlora.flower.strategies.aggregators import AnyStrategy, check_experiment, client_half
from fl_vitlora.flower.strategies.confidentiality import check_privacy
from fl_vitlora.flower.wire.wiring import check_codecs
from fl_vitlora.models.reading import READER_FILE, open_reader
from fl_vitlora.reporting.run_folder import RunFolder

TRUSTED = "trust-strategy"
STORAGE, CLASSES = "storage-key", "classes"  # in what operators give to nodes


class LoadStrategy(Protocol):
    """Makes the strategy of an experiment."""

    def __call__(self, config: configuration.Config, confirmed: Collection[str]) -> AnyStrategy:
        """Refuses code that is not known and not among the names that were confirmed."""
        ...


def make_node_app(load_strategy: LoadStrategy) -> ClientApp:
    """Makes the app of a SuperNode.

    Args:
        load_strategy: Makes the strategy that the node's own configuration names; what of it
            clients run comes from here, never over the wire.
    """
    return make_client_app(lambda context: node_settings(context, load_strategy))


def node_settings(context: Context, load_strategy: LoadStrategy) -> ClientSettings:
    """Reads a SuperNode's own configuration.

    Raises:
        UserError: When its operator left something out.
    """
    config = configuration.load(_given(context.node_config, "config"))
    check_method(config.finetuning.method, _confirmed(context.node_config))
    check_predictor(config.evaluation.predictor, _confirmed(context.node_config))
    shards = Path(read_path(_given(context.node_config, "shards"), "shards"))
    keys = _storage(config, context.node_config)
    device = choose_workers(config.engine.device, 1, most=1).device
    turns = policies.clients_turn(config)
    strategy = client_half(load_strategy(config, _confirmed(context.node_config)))
    check_codecs(config, strategy)
    if context.node_config.get(CLASSES):
        names = _given_classes(context.node_config)
    else:
        own = shards / client_shard(client_of(context))
        names = class_names_of(shard_metadata(own, keys or NO_KEYS), own)
    settings = client_settings(
        config, shards, names, device, strategy, with_key=turns, storage=keys
    )
    return replace(settings, fresh_order=config.privacy.secure_aggregation)


def make_server_app(load_strategy: LoadStrategy) -> ServerApp:
    """Makes the server's app.

    Args:
        load_strategy: Makes the strategy of an experiment.

    Returns:
        The app; it ends with a run folder at the place named `out`.
    """
    app = ServerApp()

    @app.main()
    def _main(grid: Grid, context: Context) -> None:
        started = time.perf_counter()
        config = configuration.load(
            _given(context.run_config, "config"), {"out": _given(context.run_config, "out")}
        )
        check_method(config.finetuning.method, _confirmed(context.run_config))
        check_predictor(config.evaluation.predictor, _confirmed(context.run_config))
        policies.check(config)
        strategy = load_strategy(config, _confirmed(context.run_config))
        asked, config = config, policies.for_strategy(config, client_half(strategy))
        check_experiment(strategy, config)
        check_privacy(config, strategy)
        check_codecs(config, client_half(strategy))
        shards = Path(read_path(_given(context.run_config, "shards"), "shards"))
        storage = _storage(config, context.run_config)
        class_names = _classes(context, shards, storage)
        device = choose_workers(config.engine.device, 1, most=1).device
        adapter = client_half(strategy).adapter
        built = prepare_model(config, len(class_names), device, adapter)
        told = what_is_recorded(config, methods.export_state(built.model))
        for note in (*built.notes, *([told] if told else [])):
            log(logging.INFO, note)
        given = policies.server_needs_reader(config)
        start = open_reader(shards / READER_FILE) if given else None
        server = make_server(built, lambda origin: start or origin)
        folder = RunFolder.create(asked)
        folder.write_classes(class_names)
        run = Run(
            config=config,
            strategy=strategy,
            server=server,
            class_names=class_names,
            shards=shards,
            storage=storage,
            folder=folder,
            watch=Watch(),
            logbook=Logbook.begin(folder.path),
            observers=recorders(config, folder.path),
            secret_seed=secrets.randbits(63),  # clients know the config, and the seed in it
        )
        outcome = run.serve(grid)
        run.write(outcome, run.result(), started)

    return app


def _storage(config: Config, values: Mapping[str, Any]) -> StorageKeys | None:
    """Finds the keys that open this node's shards: of the file that it was given, else of its ring.

    Returns:
        The keys; None where shards are in the clear.
    """
    if config.encryption.at_rest == "none":
        return None
    return storage_keys(config, Path(str(values[STORAGE])) if values.get(STORAGE) else None)


def _classes(context: Context, shards: Path, keys: StorageKeys | None) -> tuple[str, ...]:
    """Reads the names of the classes off the test shard; where clients evaluate, they are given.

    Raises:
        UserError: When there is neither.
    """
    if (shards / TEST_SHARD).exists():
        path = shards / TEST_SHARD
        return class_names_of(shard_metadata(path, keys or NO_KEYS), path)
    if not context.run_config.get(CLASSES):
        raise UserError(
            f"{shards} has no {TEST_SHARD}, as where clients evaluate; then say what the classes "
            "are: --run-config 'classes=\"FILE\" ...', the owner's classes.json"
        )
    return _given_classes(context.run_config)


def _given_classes(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Reads names of classes that an operator gave: a list in JSON, or a file with one.

    Raises:
        UserError: When it is neither; a number of classes names none.
    """
    given = str(values[CLASSES])
    if given.lstrip().startswith("[") or given.isdecimal():
        return read_names(given, CLASSES)
    try:
        return read_names(Path(given).read_text(encoding="utf-8"), f"{CLASSES} {given}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{CLASSES} {given} cannot be read: {error}") from None


def _confirmed(values: Mapping[str, Any]) -> list[str]:
    """Reads which strategy the operator of this node trusts, if it is one from elsewhere."""
    return [str(values[TRUSTED])] if TRUSTED in values else []


def _given(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        raise UserError(f"this node's configuration lacks {name!r}; it has {sorted(values)}")
    return str(values[name])

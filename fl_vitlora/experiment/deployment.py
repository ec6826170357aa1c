"""Makes the apps of clients and server that run on Flower's SuperNodes and SuperLink.

The apps are the same as in a simulation. The operator of each node gives Flower the configuration
of this node:

* a SuperNode: ``--node-config 'partition-id=3 shards="/data/shards" config="/data/config.yaml"'``
* the server: ``flwr run deploy NAME --run-config 'config="..." shards="..." out="..."'``, where
  the folder of shards needs only the encrypted test images.

If a strategy is not part of this project or of Flower, the operator must also name the strategy
with ``trust-strategy="..."``. The configuration file may come from other people, so the file alone
must not make a node run other people's code.

Operators can give three more files. The file of ``storage-key="FILE"``, for nodes and the server,
has the key that opens sealed shards; this file is needed if there is no key ring. The file of
``classes="FILE"``, for nodes and the server, lists the names of the classes in the order of the
run. The file of ``identity="FILE"``, for nodes, has the identity key of the node's client, which
signs the participants of secure sums (`privacy.client_keys`). Only the owners of the images have
the key of the images. The page `deploy/README.md` shows a whole deployment.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
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
from fl_vitlora.encryption.identities import SETTING, Identities, open_identities
from fl_vitlora.encryption.storage_keys import StorageKeys
from fl_vitlora.errors import UserError
from fl_vitlora.experiment import example_images, validation
from fl_vitlora.experiment.client_settings import client_settings
from fl_vitlora.experiment.head_start import with_head_start
from fl_vitlora.experiment.preparation import prepare_model, storage_keys
from fl_vitlora.experiment.recorded_updates import recorders, what_is_recorded
from fl_vitlora.experiment.server_model import Server, make_server
from fl_vitlora.experiment.server_run import Run
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.finetuning import methods
from fl_vitlora.flower.client.app import make_client_app
from fl_vitlora.flower.client.workspace import ClientSettings, SettingsOf, client_of
from fl_vitlora.flower.simulation.workers import choose_workers
from fl_vitlora.flower.strategies.aggregators import AnyStrategy, client_half
from fl_vitlora.models.reading import READER_FILE, open_reader
from fl_vitlora.reporting.run_folder import RunFolder

TRUSTED = "trust-strategy"
# names of entries in the configuration of an operator
STORAGE, CLASSES, IDENTITY = "storage-key", "classes", "identity"


class LoadStrategy(Protocol):
    """A function that makes the strategy of an experiment."""

    def __call__(self, config: configuration.Config, confirmed: Collection[str]) -> AnyStrategy:
        """Returns the strategy that the configuration names.

        Args:
            config: The configuration of the experiment.
            confirmed: The names of other people's code that the operator trusts.

        Raises:
            UserError: If the strategy belongs neither to this project nor to Flower, and its name
                is not in `confirmed`.
        """
        ...


def make_node_app(load_strategy: LoadStrategy) -> ClientApp:
    """Makes the app of a SuperNode.

    Args:
        load_strategy: A function that makes the strategy that the node's own configuration names,
            so that the strategy's code never comes from the network.
    """
    return make_client_app(OncePerRun(lambda context: node_settings(context, load_strategy)))


class OncePerRun:
    """Reads the settings of a node only once in a run, if one process handles the whole run.

    The app asks for the settings up to three times for each message. A change of the operator's
    files is seen in the next run, or in the next process: some versions of Flower start a process
    for each message.

    Args:
        read: A function that reads the settings of a node. If `read` raises an error, the settings
            are read again for the next message.
    """

    def __init__(self, read: SettingsOf) -> None:
        self._read = read
        self._kept: dict[object, ClientSettings] = {}

    def __call__(self, context: Context) -> ClientSettings:
        """Returns the settings of the run to which a message belongs.

        Args:
            context: Flower's context of the node.
        """
        key = context.run_id, tuple(sorted(context.node_config.items()))
        if key not in self._kept:
            self._kept = {key: self._read(context)}  # no message of an earlier run follows
        return self._kept[key]


def node_settings(context: Context, load_strategy: LoadStrategy) -> ClientSettings:
    """Reads and checks the configuration that the operator gave to a SuperNode.

    Args:
        context: Flower's context of the node.
        load_strategy: A function that makes the strategy of an experiment.

    Raises:
        UserError: If a required entry is missing, or if the configuration is not valid.
    """
    config = configuration.load(_given(context.node_config, "config"))
    check_method(config.finetuning.method, _confirmed(context.node_config))
    check_predictor(config.evaluation.predictor, _confirmed(context.node_config))
    shards = Path(read_path(_given(context.node_config, "shards"), "shards"))
    keys = _storage(config, context.node_config)
    device = choose_workers(config.engine.device, 1, most=1).device
    turns = policies.clients_turn(config)
    strategy = client_half(load_strategy(config, _confirmed(context.node_config)))
    config = validation.check_node(with_head_start(config, strategy), strategy)
    if context.node_config.get(CLASSES):
        names = _given_classes(context.node_config)
    else:
        own = shards / client_shard(client_of(context))
        names = class_names_of(shard_metadata(own, keys or NO_KEYS), own)
    settings = client_settings(
        config, shards, names, device, strategy, with_key=turns, storage=keys
    )
    return replace(
        settings,
        fresh_order=config.privacy.secure_aggregation,
        identities=_identities(config, context),
    )


def make_server_app(load_strategy: LoadStrategy) -> ServerApp:
    """Makes the server's app.

    Args:
        load_strategy: A function that makes the strategy of an experiment.

    Returns:
        The app, which writes a run folder at the path `out` in the operator's configuration.
    """
    app = ServerApp()

    @app.main()
    def _main(grid: Grid, context: Context) -> None:
        started = time.perf_counter()
        run = prepare_server(context.run_config, load_strategy)
        outcome = run.serve(grid)
        run.write(outcome, run.result(), started)

    return app


def prepare_server(given: Mapping[str, Any], load_strategy: LoadStrategy) -> Run:
    """Checks the configuration of the server's operator, and makes the server's side of the run.

    Args:
        given: Flower's run configuration, which the server's operator gave.
        load_strategy: A function that makes the strategy of an experiment.

    Returns:
        The server's side of the run, before the first message. The run folder already exists.

    Raises:
        UserError: If an entry is missing or its value cannot be used. If this error is raised, no
            file has been written.
    """
    written = configuration.load(_given(given, "config"), {"out": _given(given, "out")})
    check_method(written.finetuning.method, _confirmed(given))
    check_predictor(written.evaluation.predictor, _confirmed(given))
    example_images.check(written, deployed=True)
    strategy = load_strategy(written, _confirmed(given))
    drafted = validation.draft_of(written.model)
    written = with_head_start(written, strategy, drafted)
    shards = Path(read_path(_given(given, "shards"), "shards"))
    config = validation.check(
        written,
        strategy,
        drafted=drafted,
        new_folder=True,
        writes_checkpoints=False,
        needs_passphrase=not given.get(STORAGE) and (shards / TEST_SHARD).exists(),
    )
    device = choose_workers(config.engine.device, 1, most=1).device
    storage = _storage(config, given)
    class_names = _classes(given, shards, storage)
    server = _server_model(config, strategy, shards, device, class_names)
    folder = RunFolder.create(written)
    folder.write_classes(class_names)
    return Run(
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
        secret_seed=secrets.randbits(63),  # clients must not know this seed, unlike `config.seed`
    )


def _server_model(
    config: Config, strategy: AnyStrategy, shards: Path, device: str, classes: Sequence[str]
) -> Server:
    """Builds the server's model, and logs the notes that a simulation shows on the terminal."""
    built = prepare_model(config, classes, device, client_half(strategy).adapter)
    recorded = what_is_recorded(config, methods.export_state(built.model))
    for note in (*built.notes, *([recorded] if recorded else [])):
        log(logging.INFO, note)
    reader = open_reader(shards / READER_FILE) if policies.server_needs_reader(config) else None
    return make_server(built, lambda origin: reader or origin)


def _storage(config: Config, values: Mapping[str, Any]) -> StorageKeys | None:
    """Returns the storage keys of this node, from the file `storage-key` or from the key ring.

    Returns:
        The keys that open the shards; None if the shards are not sealed.
    """
    if config.encryption.at_rest == "none":
        return None
    return storage_keys(config, Path(str(values[STORAGE])) if values.get(STORAGE) else None)


def _identities(config: Config, context: Context) -> Identities | None:
    """Reads the node's own identity key, and the public keys that its configuration names.

    Raises:
        UserError: If only one of identity key and public keys is given, or a file cannot be used.
    """
    pins, own = config.privacy.client_keys, context.node_config.get(IDENTITY)
    if not pins and not own:
        return None
    if not pins or not own:
        lacks = f'{IDENTITY}="FILE" in --node-config' if pins else f"{SETTING} in its config.yaml"
        raise UserError(
            "a node that signs the list of participants needs its own identity key and the public "
            f"keys of all clients; this node lacks {lacks}"
        )
    found, client = open_identities(Path(pins), Path(str(own))), client_of(context)
    if client not in found.private_keys:
        raise UserError(
            f"identity {own} has the key of client {min(found.private_keys)}, but this node runs "
            f"client {client}; name the file that --new-identity {client} has written"
        )
    return found


def _classes(given: Mapping[str, Any], shards: Path, keys: StorageKeys | None) -> tuple[str, ...]:
    """Reads the names of the classes from the test shard, or from the operator's configuration.

    There is no test shard if the clients measure the accuracy.

    Raises:
        UserError: If there is no test shard, and the operator gave no names.
    """
    if (shards / TEST_SHARD).exists():
        path = shards / TEST_SHARD
        return class_names_of(shard_metadata(path, keys or NO_KEYS), path)
    if not given.get(CLASSES):
        raise UserError(
            f"{shards} has no {TEST_SHARD}, so the names of the classes are unknown; give a file "
            "with the names, for example the owner's classes.json: --run-config "
            "'classes=\"FILE\" ...'"
        )
    return _given_classes(given)


def _given_classes(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Reads the names of the classes that an operator gave as a JSON list or as a file.

    Raises:
        UserError: If the value is neither a JSON list nor the name of a file with a list.
    """
    given = str(values[CLASSES])
    if given.lstrip().startswith("[") or given.isdecimal():
        return read_names(given, CLASSES)
    try:
        return read_names(Path(given).read_text(encoding="utf-8"), f"{CLASSES} {given}")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{CLASSES} {given} cannot be read: {error}") from None


def _confirmed(values: Mapping[str, Any]) -> list[str]:
    """Returns the names of other people's code that the operator trusts.

    In the operator's text, commas separate the names.

    Example:
        >>> _confirmed({"trust-strategy": "mine:Mean, mine:Part"})
        ['mine:Mean', 'mine:Part']
    """
    names = str(values.get(TRUSTED, "")).split(",")
    return [name.strip() for name in names if name.strip()]


def _given(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        raise UserError(
            f"this node's configuration lacks the entry {name!r}; it has only {sorted(values)}"
        )
    return str(values[name])

"""The same client and server apps on Flower's SuperLink and SuperNodes.

Every node finds its configuration in what its operator gave to Flower:

* a SuperNode: ``--node-config 'partition-id=3 shards="/data/shards" config="/data/config.yaml"'``
* the server: ``flwr run deploy NAME --run-config 'config="..." shards="..." out="..."'``, where the
  folder of shards need hold no more than the encrypted test images.

Only owners ever hold the key; see `deploy/README.md` for a walk-through.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fl_vitlora import config as configuration
from fl_vitlora import policies
from fl_vitlora.checkpoints.logbook import Logbook
from fl_vitlora.data.shards import TEST_SHARD, client_shard, shard_metadata
from fl_vitlora.errors import UserError
from fl_vitlora.experiment import client_settings
from fl_vitlora.flower.aggregators import LoadStrategy, check_experiment, client_half
from fl_vitlora.flower.client_app import make_client_app
from fl_vitlora.flower.confidentiality import check_privacy
from fl_vitlora.flower.simulation import choose_workers
from fl_vitlora.flower.wiring import check_codecs
from fl_vitlora.flower.workspace import ClientSettings, client_of
from fl_vitlora.models.reading import READER_FILE, open_reader
from fl_vitlora.preparation import prepare_model
from fl_vitlora.reporting.run_folder import RunFolder
from fl_vitlora.serving import Run, Watch, make_server
from fl_vitlora.settings import read_path


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
    shards = Path(read_path(_given(context.node_config, "shards"), "shards"))
    classes = int(shard_metadata(shards / client_shard(client_of(context)))["classes"])
    device = choose_workers(config.engine.device, 1, most=1).device
    turns = policies.clients_turn(config)
    strategy = client_half(load_strategy(config))
    check_codecs(config, strategy)
    return client_settings(config, shards, classes, device, strategy, with_key=turns)


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
        policies.check(config)
        strategy = load_strategy(config)
        asked, config = config, policies.for_strategy(config, client_half(strategy))
        check_experiment(strategy, config)
        check_privacy(config, strategy)
        check_codecs(config, client_half(strategy))
        shards = Path(read_path(_given(context.run_config, "shards"), "shards"))
        classes = _classes(context, shards)
        device = choose_workers(config.engine.device, 1, most=1).device
        sandwich = client_half(strategy).adapter == "sandwich"
        built = prepare_model(config, classes, device, sandwich=sandwich)
        given = policies.server_needs_reader(config)
        start = open_reader(shards / READER_FILE) if given else None
        server = make_server(built, lambda origin: start or origin)
        folder = RunFolder.create(asked)
        run = Run(
            config=config,
            strategy=strategy,
            server=server,
            shards=shards,
            folder=folder,
            watch=Watch(),
            logbook=Logbook.begin(folder.path),
            secret_seed=secrets.randbits(63),  # clients know the config, and the seed in it
        )
        outcome = run.serve(grid)
        run.write(outcome, run.result(), started)

    return app


def _classes(context: Context, shards: Path) -> int:
    """Reads the number of classes off the test shard; where clients evaluate, it is given.

    Raises:
        UserError: When there is neither.
    """
    if (shards / TEST_SHARD).exists():
        return int(shard_metadata(shards / TEST_SHARD)["classes"])
    classes = int(_given(context.run_config, "classes"))
    if classes < 1:
        raise UserError(
            f"{shards} has no {TEST_SHARD}, as where clients evaluate; then say how many classes "
            "there are: --run-config 'classes=10 ...'"
        )
    return classes


def _given(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        raise UserError(f"this node's configuration lacks {name!r}; it has {sorted(values)}")
    return str(values[name])

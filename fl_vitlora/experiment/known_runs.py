"""Recognises the runs of a comparison in its folder, by their configurations and their keys.

A run is recognised by the configuration with which it runs, and not by the name of its folder. On
shards that owners made elsewhere, this configuration has the settings of the shards, and the
content of the shards must be that of the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from fl_vitlora.checkpoints.logbook import lacks_checkpoints
from fl_vitlora.config import Config
from fl_vitlora.config.grid import Grid
from fl_vitlora.data.given_shards import GivenShards, find_given, names_in, read_given
from fl_vitlora.data.shard_recipe import KEEPING
from fl_vitlora.encryption.keys import key_id, open_ring
from fl_vitlora.errors import UserError
from fl_vitlora.experiment.elsewhere import fitted
from fl_vitlora.experiment.head_start import with_head_start
from fl_vitlora.experiment.preparation import storage_keys
from fl_vitlora.experiment.run_shards import shards_of
from fl_vitlora.experiment.starting import with_start
from fl_vitlora.experiment.watching import Watch
from fl_vitlora.flower.strategies.aggregators import LoadStrategy
from fl_vitlora.flower.strategies.identity import told
from fl_vitlora.reporting.run_folder import (
    CONFIG,
    RESULT,
    SHARDS,
    begun_in,
    find_run,
    has_current_form,
    read_result,
)


@dataclass(kw_only=True)
class OpenedShards:
    """The shards that owners made elsewhere; each folder of shards is read only once.

    Attributes:
        note: A function that is called with sentences for the user.
        known: The shards that have been read, by the paths of the folder and of the keys.
    """

    note: Callable[[str], None]
    known: dict[tuple[str | None, ...], GivenShards] = field(default_factory=dict)

    def find(self, config: Config) -> GivenShards:
        """Returns the shards of an experiment.

        Raises:
            UserError: If a shard cannot be used.
        """
        place = (config.data.shards, config.data.storage_keys, config.encryption.key_file)
        if place not in self.known:
            self.known[place] = find_given(Path(config.data.shards or ""), storage_keys(config))
        return self.known[place]

    def fit(self, config: Config, typed: Collection[str] | None) -> Config:
        """Returns an experiment with the settings of its shards.

        Args:
            config: The configuration of the experiment.
            typed: The paths of the settings that the user has set; see `elsewhere.fitted`.

        Raises:
            UserError: If a shard cannot be used, or if the user has set another value.
        """
        return fitted(config, typed, self.note, self.find(config))[0]


@dataclass(kw_only=True)
class KnownRuns:
    """The runs in a grid folder.

    Attributes:
        finished: The configuration and the folder of each run that has a result.
        interrupted: The configuration and the folder of each run that has no result.
        opened: The shards that owners made elsewhere, each folder read once.
    """

    finished: list[tuple[Config, Path]]
    interrupted: list[tuple[Config, Path]]
    opened: OpenedShards

    @classmethod
    def of(cls, folder: Path, note: Callable[[str], None], *, may_stop: bool = False) -> Self:
        """Returns the runs in the folder of a comparison.

        Args:
            folder: The grid folder.
            note: A function that is called with sentences for the user.
            may_stop: True if the program that compares may end runs early (callbacks); runs that
                such a program has ended are then finished runs.
        """
        return cls(
            finished=runs_in(folder, finished=True, ended_early=may_stop),
            interrupted=runs_in(folder, finished=False),
            opened=OpenedShards(note=note),
        )

    @property
    def starts(self) -> list[Path]:
        """Returns the working directories of the runs, to which their relative paths refer."""
        return [begun_in(place) for _, place in (*self.finished, *self.interrupted)]

    def finished_run(self, config: Config) -> Path | None:
        """Returns the folder of a finished run with this configuration; None without such a run."""
        same = (place for known, place in self.finished if is_same(known, config))
        return next((place for place in same if self._has_current_key(config, place)), None)

    def interrupted_run(self, config: Config) -> Path | None:
        """Returns the folder of an interrupted run that can be resumed; None without such a run."""
        same = (place for known, place in self.interrupted if is_same(known, config))
        return next(
            (
                place
                for place in same
                if not lacks_checkpoints(place, config.checkpoint_every)
                and self._has_current_key(config, place)
            ),
            None,
        )

    def _has_current_key(self, config: Config, place: Path) -> bool:
        """Returns True if a run has the current key, or the owners' shards as they are now."""
        if config.data.shards is None:
            return has_current_key(config, place)
        with suppress(UserError):
            return has_same_shards(config, self.opened.find(config), place)
        return False


def runs_in(folder: Path, *, finished: bool, ended_early: bool = True) -> list[tuple[Config, Path]]:
    """Finds either the finished or the unfinished runs in a folder.

    Args:
        folder: The grid folder.
        finished: True for the runs that have a result, False for the runs without a result.
        ended_early: True to include runs that the program which started them ended early. No
            setting of such a run says so.

    Returns:
        A list with a pair for each run: the configuration without `out`, and the run folder.
    """
    runs = []
    for path in sorted(folder.glob(f"**/{CONFIG}")):
        # A run is repeated if its configuration belongs to another version of the program, if its
        # result is damaged, or if its saving of bytes was computed with another reference.
        with suppress(UserError):
            config, result = find_run(path.parent)
            if result is not None and result.get("stopped") == "caller" and not ended_early:
                continue
            if (result is not None) == finished and (result is None or has_current_form(result)):
                runs.append((dataclasses.replace(config, out=None), path.parent))
    return runs


def as_it_runs(
    config: Config,
    load_strategy: LoadStrategy,
    folder: Path | None = None,
    typed: Collection[str] | None = None,
    opened: OpenedShards | None = None,
) -> Config:
    """Returns the configuration that the run folder will contain, but with the given `out`.

    Args:
        config: The configuration of the experiment.
        load_strategy: A function that makes the strategy of an experiment.
        folder: The folder of the comparison; see `with_start`.
        typed: The paths of the settings that the user has set; see `elsewhere.fitted`.
        opened: The object that reads shards; needed for experiments with `data.shards`.
    """
    try:
        config = with_start(config, load_strategy, folder)
        if config.data.shards is not None and opened is not None:
            config = opened.fit(config, typed)
        strategy = load_strategy(config)
        return with_head_start(told(config, strategy), strategy)
    except UserError:  # the error is reported when the run starts
        return config


def with_seed_of_shards(grid: Grid) -> Grid:
    """Returns a comparison whose runs are labelled with the seed of their shards.

    If the user has not set a seed, a run uses the seed of the shards that owners made elsewhere.
    Then the default seed would be a wrong label.

    Args:
        grid: The comparison. If the user has set a seed, if a cell has no such shards, or if the
            seeds of the cells' shards differ, `grid` is returned without a change.
    """
    opened, seeds = OpenedShards(note=Watch().note), set[int]()
    if any(cell.config.data.shards is None or "seed" in cell.typed for cell in grid.cells):
        return grid
    try:
        for cell in grid.cells:
            own = opened.find(cell.config).first.settings
            seeds.add(own["seed"] if own["steps"] else cell.config.seed)
    except UserError:  # the error is reported when the run starts
        return grid
    if len(seeds) != 1:
        return grid
    cells = (dataclasses.replace(cell, typed=cell.typed | {"seed"}) for cell in grid.cells)
    typed = grid.typed | {"seed"}
    return dataclasses.replace(grid, seeds=tuple(seeds), cells=tuple(cells), typed=typed)


def is_same(known: Config, config: Config) -> bool:
    """Returns True if two configurations are equal, apart from the key ring and the shard store.

    The function `has_current_key` compares the secrets in the key rings. The settings of the shard
    store (`KEEPING`) do not change the result of a run.
    """
    ring = config.encryption.key_file
    encryption = dataclasses.replace(known.encryption, key_file=ring)
    kept = {name: getattr(config.data, name) for name in KEEPING}
    data = dataclasses.replace(known.data, **kept)
    model = known.model
    if model.init_from is not None and Path(model.weights).name == Path(config.model.weights).name:
        model = dataclasses.replace(model, weights=config.model.weights)  # named by its content
    return dataclasses.replace(known, encryption=encryption, data=data, model=model) == config


def has_current_key(config: Config, run_folder: Path) -> bool:
    """Returns True if a run's images were encrypted with the current secret of the key ring.

    A run with another secret is a different experiment, so the comparison does not use its result.
    """
    if not config.encryption.steps:
        return True
    ring = Path(config.encryption.key_file)
    key: object = ""
    if (run_folder / RESULT).exists():
        key = read_result(run_folder)["encryption"]["key_id"]
    else:
        with suppress(UserError):  # the run has no shards yet
            key = shards_of(run_folder, storage_keys(config)).key
    return ring.exists() and key == key_id(open_ring(ring).current)


def has_same_shards(config: Config, shards: GivenShards, run_folder: Path) -> bool:
    """Returns True if the content of a run's shards is still that of the owners' shards.

    Args:
        config: The configuration of the experiment, with the keys that open the shards.
        shards: The owners' shards.
        run_folder: The run folder, whose shards are hard links to the owners' shards, or copies.
    """
    folder = run_folder / SHARDS
    if set(names_in(folder)) != set(shards.shards):
        return False
    keys = storage_keys(config)
    return all(
        (folder / name).samefile(one.path) or read_given(folder / name, keys).digest == one.digest
        for name, one in shards.shards.items()
    )

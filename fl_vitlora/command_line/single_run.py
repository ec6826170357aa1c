"""Commands that run one experiment, or continue an interrupted run, and print the result."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fl_vitlora import config
from fl_vitlora.command_line.arguments import confirmed_by, read_overrides
from fl_vitlora.command_line.exits import INTERRUPTED, fail, simulation_command
from fl_vitlora.command_line.live_page import watched
from fl_vitlora.command_line.signals import pauses_on_signal
from fl_vitlora.command_line.watching import watch_on
from fl_vitlora.config import confirmation

if TYPE_CHECKING:
    from fl_vitlora.experiment.watching import Watch


def run(
    experiment: config.Config,
    confirmed: frozenset[str],
    started: float,
    *,
    resume: bool = False,
    verbose: bool,
    typed: frozenset[str] | None = None,
    watch_page: bool = False,
) -> None:
    """Runs an experiment and prints its result.

    Args:
        experiment: The settings.
        confirmed: The names of code and Ray clusters that the user typed.
        started: The start of the program, in seconds of `time.perf_counter`.
        resume: True to continue the run in the folder `experiment.out`.
        verbose: True to show the messages of Flower and Ray.
        typed: The paths of the settings that the user has written; None if unknown.
        watch_page: True to show a page that follows the run in a browser.

    Raises:
        RuntimeError: If the run fails; the message says how to continue the run.
        KeyboardInterrupt: If the user interrupts a round; the message says how to continue.
        SystemExit: If the user ended the run after a round; UserError if no run is possible.
    """
    confirmation.check_confirmed(experiment, confirmed)
    import strategies
    from fl_vitlora.experiment.runner import PausedError, silence
    from fl_vitlora.experiment.runner import run as run_experiment
    from fl_vitlora.reporting.result_table import print_result

    if not verbose:
        silence()
    strategy = strategies.load_for(experiment, confirmed)
    if not resume:
        experiment = _new(experiment, confirmed)
    try:
        with _followed(experiment, verbose=verbose, watch_page=watch_page) as watch:
            result, folder = run_experiment(
                experiment, strategy, watch, started, resume=resume, typed=typed
            )
    except PausedError as pause:
        fail(f"ended {pause}; {how_to_go_on(experiment)}", INTERRUPTED)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"; {how_to_go_on(experiment)}") from None
    except RuntimeError as error:
        raise RuntimeError(f"{error}; {how_to_go_on(experiment)}") from error
    print_result(result, str(folder))


@contextmanager
def _followed(experiment: config.Config, *, verbose: bool, watch_page: bool) -> Iterator[Watch]:
    """Shows the progress of a run and handles signals, inside a `with` block."""
    from fl_vitlora.reporting.console import RunDisplay

    page = watched(Path(str(experiment.out)), wanted=watch_page)
    with page, RunDisplay(experiment.rounds) as display:
        watch = watch_on(display, verbose=verbose)
        with pauses_on_signal(watch):
            yield watch


def _new(experiment: config.Config, confirmed: frozenset[str]) -> config.Config:
    """Returns the settings of a new run, which name its folder and the weights of its start."""
    import strategies
    from fl_vitlora.experiment.starting import with_start
    from fl_vitlora.reporting.run_folder import default_path

    out = experiment.out or str(default_path(experiment))
    placed = dataclasses.replace(experiment, out=out)
    return with_start(placed, functools.partial(strategies.load_for, confirmed=confirmed))


def how_to_go_on(experiment: config.Config) -> str:
    """Returns a sentence: the command that continues the run, or that no run was started."""
    from fl_vitlora.reporting.run_folder import CONFIG

    begun = (Path(str(experiment.out)) / CONFIG).exists()
    folder, flags = shlex.quote(str(experiment.out)), confirmation.flags_for(experiment)
    command = f"{simulation_command()} --resume {folder}{flags}"
    return f"{command} continues the run" if begun else "no run was started"


def resume(arguments: argparse.Namespace, started: float) -> None:
    """Continues the run that `--resume` names, or prints the result if the run is finished.

    Args:
        arguments: The parsed command line.
        started: The time at which the program started, in seconds of `time.perf_counter`.

    Raises:
        UserError: If the command line changes a setting that must not change in this run.
    """
    from fl_vitlora.checkpoints.logbook import remove as remove_checkpoints
    from fl_vitlora.experiment.resuming import check_same
    from fl_vitlora.reporting.result_table import print_result
    from fl_vitlora.reporting.run_folder import find_run, located

    folder = arguments.resume
    begun, result = find_run(folder)
    asked = _asked_for(arguments, begun)
    check_same(folder, begun, asked, finished=result is not None)
    if result is not None:
        remove_checkpoints(folder)  # the run may have been killed just before it removed them
        print_result(result, str(folder))
        return
    run(
        located(asked, begun, folder),
        confirmed_by(arguments),
        started,
        resume=True,
        verbose=arguments.verbose,
        watch_page=arguments.watch,
    )


def _asked_for(arguments: argparse.Namespace, begun: config.Config) -> config.Config:
    """Returns the experiment that the command line asks for.

    The settings come from the file that `--config` names, or without `--config` from the run folder
    (`begun`). Flags and `--set` replace single settings.
    """
    overrides = read_overrides(arguments) | {"out": str(arguments.resume)}
    if arguments.config:
        return config.load(arguments.config, overrides)
    return config.resolve(config.to_mapping(begun), overrides)

"""The main function: reads the command line, starts a command, and reports every error."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from fl_vitlora.command_line.arguments import (
    confirmed_by,
    read_comparison,
    read_config,
    read_plan,
    read_typed,
)
from fl_vitlora.command_line.attacking import attack
from fl_vitlora.command_line.comparing import compare
from fl_vitlora.command_line.contract_checks import CHECKS, check_contract
from fl_vitlora.command_line.exits import INTERRUPTED, RUN_FAILED, USER_MISTAKE, fail
from fl_vitlora.command_line.owner_tools import new_identity, rotate_key, storage_keys
from fl_vitlora.command_line.parser import make_parser
from fl_vitlora.command_line.searching import search
from fl_vitlora.command_line.single_run import resume, run
from fl_vitlora.errors import UserError
from fl_vitlora.reporting.output import outlive_readers

NO_PAGE = ("attack", "rotate_key", "storage_keys", "new_identity", "search")  # not with --watch


def main(argv: Sequence[str] | None = None, started: float | None = None) -> None:
    """Runs the program; prints an error as one line and sets the exit code.

    Args:
        argv: The words of the command line after the program's name. By default these are the words
            with which this process was started.
        started: The time at which the program started, in seconds of `time.perf_counter`. By
            default the program counts from the present moment.

    Raises:
        SystemExit: If the program ends with an exit code other than 0.
    """
    started = time.perf_counter() if started is None else started
    outlive_readers()
    arguments = make_parser().parse_args(argv)
    check_flags(vars(arguments))
    try:
        start(arguments, started)
    except UserError as error:
        fail(str(error), USER_MISTAKE)
    except RuntimeError as error:
        if arguments.verbose:
            raise
        fail(f"the run failed: {error} (--verbose shows more)", RUN_FAILED)
    except OSError as error:  # a path from the user is wrong, or the disk fails
        if arguments.verbose or error.filename is None:
            raise
        fail(f"{error.filename}: {error.strerror} (--verbose shows more)", USER_MISTAKE)
    except KeyboardInterrupt as stop:
        print(f"simulate.py: interrupted{stop}", file=sys.stderr, flush=True)
        os._exit(INTERRUPTED)  # a thread of Flower may wait for ever after Ray has ended


def start(arguments: argparse.Namespace, started: float) -> None:
    """Runs the command that a flag names. If no flag names a command, runs the experiment."""
    if any(getattr(arguments, name) is not None for name in CHECKS):
        check_contract(arguments)
        return
    if arguments.resume is not None:
        resume(arguments, started)
        return
    if arguments.attack is not None:
        attack(arguments)
        return
    if arguments.search is not None:
        search(read_plan(arguments), confirmed_by(arguments), verbose=arguments.verbose)
        return
    grid = read_comparison(arguments)
    if arguments.rotate_key:
        rotate_key(grid.shared if grid else read_config(arguments), arguments.rotate_key)
    elif arguments.storage_keys:
        storage_keys(read_config(arguments), arguments.storage_keys)
    elif arguments.new_identity is not None:
        new_identity(read_config(arguments), arguments.new_identity)
    elif grid is not None:
        compare(
            grid, confirmed_by(arguments), verbose=arguments.verbose, watch_page=arguments.watch
        )
    else:
        run(
            read_config(arguments),
            confirmed_by(arguments),
            started,
            verbose=arguments.verbose,
            typed=read_typed(arguments),
            watch_page=arguments.watch,
        )


def check_flags(given: Mapping[str, Any]) -> None:
    """Ends the program with an error message if two flags cannot be used together.

    Args:
        given: For each flag, its name without dashes at the start, and its value.

    Raises:
        SystemExit: If two flags name different commands.
    """
    reasons = {
        **dict.fromkeys(CHECKS, "runs nothing else"),
        "rotate_key": "runs nothing else",
        "storage_keys": "runs nothing else",
        "new_identity": "runs nothing else",
        "attack": "audits one run",
        "resume": "continues one run",
        "search": "reads all settings from its file",
    }
    beside = ("compare", "seeds", "rotate_key", "storage_keys", "attack", "resume", "search")
    for one, reason in reasons.items():
        others = [name for name in beside if given[name] and name != one]
        if given[one] is not None and others:
            flags = [f"--{name.replace('_', '-')}" for name in (one, others[0])]
            fail(f"{flags[0]} {reason}, so remove {flags[1]}", USER_MISTAKE)
    if given["search"] is not None and given["config"] is not None:
        fail("--search reads all settings from its file, so remove --config", USER_MISTAKE)
    alone = next((name for name in (*CHECKS, *NO_PAGE) if given[name]), None)
    if given["watch"] and alone is not None:
        fail(
            f"--watch follows a run or a comparison, so remove --{alone.replace('_', '-')}",
            USER_MISTAKE,
        )
    for name in ("only", "images", "fail_if", "attack_seconds", "attack_pictures"):
        if given[name] is not None and given["attack"] is None:
            flag = f"--{name.replace('_', '-')}"
            fail(
                f"{flag} belongs to --attack RUN; add --attack RUN, or remove {flag}", USER_MISTAKE
            )

"""Leaves out those helper programs of Ray that this project does not use.

In addition to its scheduler and its object store, Ray starts five Python programs. These are the
server of its web page, an agent of the web page, the autoscaler's monitor, a monitor of log
files, and an agent that prepares the environments of workers. Each of the five programs imports
packages for about a second. This takes time from the cores on which this program and its workers do
their own imports, and Ray also waits for the server of the web page. This project needs only the
agent that prepares environments, and the monitor of log files if Ray may print.
"""

from __future__ import annotations

import functools
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WEB_PAGE, CLUSTER, LOGS = "start_api_server", "start_monitor", "start_log_monitor"
PROCESS = "start_ray_process"
AGENT = "--dashboard_agent_command="
IN_ITS_PLACE = [sys.executable, "-I", "-S", str(Path(__file__).with_name("idle_helper.py"))]


@contextmanager
def few_helpers(*, logs: bool) -> Iterator[None]:
    """Makes a Ray that starts inside the block leave out its helper programs.

    Ray has no option to leave them out, so methods of its class `Node` are replaced. A method that
    a version of Ray does not have is not replaced.

    Args:
        logs: True to start the monitor of log files, which copies what workers print to this
            program.
    """
    from ray._private import node, services

    names = (WEB_PAGE, CLUSTER) if logs else (WEB_PAGE, CLUSTER, LOGS)
    kept = [(node.Node, name, vars(node.Node)[name]) for name in names if name in vars(node.Node)]
    for owner, name, _ in kept:
        setattr(owner, name, _start_nothing)
    if hasattr(services, PROCESS):
        kept.append((services, PROCESS, services.start_ray_process))
        services.start_ray_process = without_agent(services.start_ray_process)
    try:
        yield
    finally:
        for owner, name, before in kept:
            setattr(owner, name, before)


def _start_nothing(node: Any, **options: Any) -> None:
    """Does nothing, in place of a method of Ray's class `Node`."""
    del node, options


def without_agent(start: Callable[..., Any]) -> Callable[..., Any]:
    """Makes Ray's node manager start an idle program in place of the web page's agent.

    The node manager gets the command of the agent as one of its arguments. This command must not be
    empty, and the node manager ends if the program that it has started ends.

    Args:
        start: Ray's function that starts a process from a list of arguments.

    Returns:
        The function to use in place of `start`.

    Example:
        >>> words = without_agent(list)(["raylet", "--dashboard_agent_command=python agent.py"])
        >>> words[0], words[1].endswith("idle_helper.py")
        ('raylet', True)
    """
    idle = AGENT + subprocess.list2cmdline(IN_ITS_PLACE)

    @functools.wraps(start)
    def start_ray_process(command: Sequence[str], *args: Any, **named: Any) -> Any:
        words = [idle if word.startswith(AGENT) else word for word in command]
        return start(words, *args, **named)

    return start_ray_process

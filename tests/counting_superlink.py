"""Flower's own SuperLink, which writes down the size of every object that a SuperNode moves.

python -P tests/counting_superlink.py COUNTS.csv [what flower-superlink is given]

Nothing of `fl_vitlora` is imported here: what is counted are the bytes inside the requests and
responses by which SuperNodes pull the objects of their messages and push those of their replies.
"""

from __future__ import annotations

import csv
import sys
import threading
from pathlib import Path

from flwr.proto.message_pb2 import (
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.server.superlink.linkstate import LinkState
from flwr.superlink.cli import flower_superlink
from flwr.superlink.servicer.fleet import fleet_handlers

COLUMNS = ["direction", "node", "object", "bytes"]


class Counts:
    """A table with a line for every object; SuperNodes are served by several threads."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._append(COLUMNS)

    def add(self, direction: str, node: int, name: str, size: int) -> None:
        self._append([direction, str(node), name, str(size)])

    def _append(self, line: list[str]) -> None:
        with self._lock, self._path.open("a", newline="") as file:
            csv.writer(file).writerow(line)


def count(counts: Counts) -> None:
    """Puts the count around the two handlers through which all objects of SuperNodes pass."""
    pull, push = fleet_handlers.pull_object, fleet_handlers.push_object

    def pull_object(request: PullObjectRequest, state: LinkState) -> PullObjectResponse:
        response = pull(request, state)
        if response.object_available:  # if not, the node asks again later
            size = len(response.object_content)
            counts.add("downlink", request.node.node_id, request.object_id, size)
        return response

    def push_object(request: PushObjectRequest, state: LinkState) -> PushObjectResponse:
        size = len(request.object_content)
        counts.add("uplink", request.node.node_id, request.object_id, size)
        return push(request, state)

    fleet_handlers.pull_object, fleet_handlers.push_object = pull_object, push_object


if __name__ == "__main__":
    count(Counts(Path(sys.argv[1])))
    sys.argv = ["flower-superlink", *sys.argv[2:]]
    flower_superlink()

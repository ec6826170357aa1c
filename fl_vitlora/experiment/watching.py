"""The callbacks and events with which a program watches and stops a run that it has started."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fl_vitlora.config import Config
from fl_vitlora.flower.server.posting import Tap

Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Watch:
    """The callbacks and events of the program that starts a run.

    Attributes:
        announce: A function that is called with the name of each phase of the preparation.
        note: A function that is called with each sentence for the user.
        begin: A function that is called before each run of a comparison, with the settings of the
            run. The setting `out` is the path of its run folder.
        show_round: A function that is called with each line of `rounds.jsonl`.
        training: An event that the run sets when its first round begins.
        pause: An event that the program sets to end the run after the current round. The run can be
            resumed later.
        stop: An event that the program sets to finish the run early. The run then ends after a
            round whose model was evaluated, and writes its result.
        may_stop: True if the program may set `stop`. If `may_stop` is True, each model is evaluated
            before the next round begins, so that the program can decide in time.
        tap: A function that is called with every Flower message, for inspection.
        verbose: True if Flower and Ray may write to the console.
    """

    announce: Callable[[str], None] = lambda phase: None
    note: Callable[[str], None] = lambda sentence: None
    begin: Callable[[Config], None] = lambda config: None
    show_round: Callable[[Line], None] = lambda line: None
    training: threading.Event = field(default_factory=threading.Event)
    pause: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    may_stop: bool = False
    tap: Tap | None = None
    verbose: bool = False

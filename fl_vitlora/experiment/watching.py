"""What a program that starts a run is told while the run goes on, and how it stops the run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fl_vitlora.flower.server.posting import Tap

Line = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Watch:
    """The callbacks and switches of whoever started the run.

    Attributes:
        announce: Is called with each phase of the set-up, in a few words.
        note: Is called with a sentence that a user should know and may not expect.
        show_round: Is called with each line of `rounds.jsonl`.
        training: Is set when the first round begins.
        pause: Set it to end the run after the round that is under way.
        tap: Is called with every Flower message, for inspection.
        verbose: True if Flower and Ray may write to the console.
    """

    announce: Callable[[str], None] = lambda phase: None
    note: Callable[[str], None] = lambda sentence: None
    show_round: Callable[[Line], None] = lambda line: None
    training: threading.Event = field(default_factory=threading.Event)
    pause: threading.Event = field(default_factory=threading.Event)
    tap: Tap | None = None
    verbose: bool = False

"""Finds the key of an adapted model from the order of the columns of its patch embedding.

The patch embedding of an adapted model has the columns of the public model in another order.
Training moves the columns only a little, so the match still works after many rounds. If a model is
in the coordinates of plain images, its columns have the public order, and the attack finds nothing.

This is an attack on the key-dependent domain adaptation of arXiv 2309.02556 (`docs/trust.md`, known
breaks).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.key_figures import FIGURES, Guesses, key_figures
from fl_vitlora.attacks.key_search.from_columns import key_from_columns
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import (
    OutsiderView,
    ServerView,
    ShardView,
    ThiefView,
    View,
    WorkerView,
)


@dataclass(frozen=True, kw_only=True)
class KeyColumns(Attack[View, tuple[Guesses, int]]):
    """The attack. A guess is a key for each client, and the side of a block in pixels."""

    adversaries = (ServerView, WorkerView, ThiefView, OutsiderView)
    goal = "The key, from the order of the columns of an adapted patch embedding."
    figures = FIGURES

    def lacks(self, view: View) -> str:
        """Returns why the adversary has no patch embedding to match; empty if it has one."""
        if view.public.no_common_order:
            return view.public.no_common_order
        if not view.public.settings.encryption.adapt:
            return "the model is not adapted to a key"
        if view.reader is None:
            return "this adversary has no patch embedding of the run"
        return ""

    def guess(self, view: View) -> tuple[Guesses, int]:
        """Matches the columns with those of the public patch embedding."""
        assert view.reader is not None
        key = key_from_columns(view.reader, view.public.reader)
        clients = range(view.public.settings.clients)
        attacked = [view.client] if isinstance(view, ShardView) else clients
        return dict.fromkeys(attacked, key), view.public.patch_size

    def score(self, guess: tuple[Guesses, int], truth: Truth) -> Sequence[Figure]:
        """Returns the shares of the key that are guessed correctly."""
        return key_figures(guess[0], truth, guess[1])

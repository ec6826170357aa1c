"""Finds parts of the key in the changes of a patch embedding, which are correlated like pixels.

The gradient of the patch embedding is a sum over patches, so its columns are correlated like the
entries of ciphertext (`key_search.from_changes`). The server uses the updates of single clients if
it sees them, and the sums of the updates otherwise. An outsider uses the difference between the
final model and the public model.

Letters in shapes: D entries of a patch, W width of the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.key_figures import SYMMETRIC, Guesses, key_figures_up_to_symmetry
from fl_vitlora.attacks.key_search.from_changes import key_from_embedding
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import OutsiderView, Public, ServerView
from fl_vitlora.strategy import SEVERAL

MOST_ORDERED = 256  # most entries of a block for which the search finds the order


@dataclass(frozen=True, kw_only=True)
class KeyCorrelations(Attack[ServerView | OutsiderView, tuple[Guesses, int]]):
    """The attack. A guess is a key for each client, and the side of a block in pixels."""

    adversaries = (ServerView, OutsiderView)
    goal = "Inverted entries and their order, from how the columns of updates are correlated."
    figures = SYMMETRIC

    def lacks(self, view: ServerView | OutsiderView) -> str:
        """Returns why no change of a patch embedding can be used; empty if one can be used."""
        public = view.public
        if public.no_common_order:
            return public.no_common_order
        if _ordered(public) > MOST_ORDERED:
            return f"the search takes blocks of at most {MOST_ORDERED} different entries"
        if isinstance(view, ServerView):
            return view.lacks_patch_embedding()
        if public.settings.encryption.adapt:
            return "the model is adapted, so its change is not known before its key is known"
        if view.reader is None or not (view.reader.weight != public.reader.weight).any():
            return "the final model has the public patch embedding"
        return ""

    def guess(self, view: ServerView | OutsiderView) -> tuple[Guesses, int]:
        """Finds signs and order of the entries for each client, or once for all clients."""
        public = view.public
        found = {
            client: key_from_embedding(
                changes, public.patch_size, grey=public.grey, check=view.clock.check
            )
            for client, changes in _changes(view).items()
        }
        if SEVERAL in found:
            found = dict.fromkeys(range(public.settings.clients), found[SEVERAL])
        return found, public.patch_size

    def score(self, guess: tuple[Guesses, int], truth: Truth) -> Sequence[Figure]:
        """Returns the shares of the key that are right, up to one common bit and mirror images."""
        return key_figures_up_to_symmetry(guess[0], truth, guess[1])


def _ordered(public: Public) -> int:
    """Returns the number of entries whose order is searched. Equal entries count as one."""
    entries = public.reader.weight.shape[-1]
    return entries // public.images.shape[1] if public.grey else entries


def _changes(view: ServerView | OutsiderView) -> Mapping[int, Sequence[Tensor]]:
    """Returns changes of the patch embedding, (W, D) each, by client, or for `SEVERAL` clients."""
    if isinstance(view, OutsiderView):
        assert view.reader is not None
        return {SEVERAL: [view.reader.weight - view.public.reader.weight]}
    found: dict[int, list[Tensor]] = {}
    for client, change in view.patch_embedding_changes():
        found.setdefault(SEVERAL if view.public.one_key else client, []).append(change)
    return found

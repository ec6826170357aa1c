"""The contract of an attack: what it may see, what it guesses, and how its guess is scored.

An attack is one file with one frozen dataclass. Its attribute `adversaries` lists the adversaries
that can carry the attack out, by the Python classes of their views (`attacks.views`). The method
`guess` gets a view, and nothing else.
The method `score` gets the guess and the owners' secrets (`attacks.truth`). So the types show that
no secret reaches `guess`. The same view must always give the same guess.

This complete attack guesses which class is the most common one of each client:

    >>> import torch
    >>> from fl_vitlora.strategy import Update
    >>> @dataclass(frozen=True, kw_only=True)
    ... class CommonestClass(Attack[ServerView, dict[int, int]]):
    ...     adversaries = (ServerView,)
    ...     goal = "The most common class of each client."
    ...     figures = ("clients whose class is found",)
    ...     def lacks(self, view):
    ...         return view.lacks_single_updates()
    ...     def guess(self, view):
    ...         updates = view.rounds[0].updates
    ...         return {u.client: int(u.delta["head.bias"].argmax()) for u in updates}
    ...     def score(self, guess, truth):
    ...         right = [truth.labels[c].mode().values == k for c, k in guess.items()]
    ...         share = 100 * sum(map(bool, right)) / len(right)
    ...         return [Figure(name="clients whose class is found", value=share, ceiling=100)]

A long attack must call ``view.clock.check()`` between its steps, so that the time budget can end
the attack.

An attack of your own is named by its module and class: ``--only package.module:Class``. An attack
of this project has a line in the table `fl_vitlora.config.attack_names`. `testing.attack` checks if
an attack keeps this contract (``--check-attack``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from fl_vitlora.attacks.pictures import Pictures
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Truth
from fl_vitlora.attacks.views import ServerView as ServerView  # noqa: PLC0414 - for the example
from fl_vitlora.attacks.views import View

Seen = TypeVar("Seen", bound=View)
Guess = TypeVar("Guess")


@dataclass(frozen=True, kw_only=True)
class Attack(ABC, Generic[Seen, Guess]):
    """An attack.

    Attributes:
        adversaries: The Python classes of the views of all adversaries that can carry out the
            attack.
        goal: A sentence that says what the attack looks for.
        figures: The names of all figures that `score` can return. A user may set bounds on them
            (``--fail-if``).
        each_alone: True if the guess about an image follows from this image alone. An attack with
            `each_alone` may use more encrypted images than `images` says.
        images: The number of encrypted images that the attack may use together. Attacks that use
            no ciphertext ignore it.
    """

    adversaries: ClassVar[tuple[type[View], ...]]
    goal: ClassVar[str]
    figures: ClassVar[tuple[str, ...]] = ()
    each_alone: ClassVar[bool] = False

    images: int = 8

    def lacks(self, view: Seen) -> str:
        """Returns why this adversary cannot carry out the attack on this run.

        Args:
            view: The view of the adversary.

        Returns:
            The reason, as the end of a sentence; empty if nothing is missing.
        """
        del view
        return ""

    @abstractmethod
    def guess(self, view: Seen) -> Guess:
        """Carries out the attack.

        Args:
            view: The view of the adversary, in which `lacks` has found nothing missing.

        Returns:
            The guess: what the adversary believes to have found.
        """

    @abstractmethod
    def score(self, guess: Guess, truth: Truth) -> Sequence[Figure]:
        """Compares a guess with the owners' secrets.

        Args:
            guess: The guess that the method `guess` returned.
            truth: The owners' secrets.

        Returns:
            The figures. The names of the figures are in `figures`, and are the same for all victims
            of a run.
        """

    def pictures(self, guess: Guess, truth: Truth) -> Pictures:
        """Returns the images that the attack recovered, beside the images that they should be.

        Args:
            guess: The guess that the method `guess` returned.
            truth: The owners' secrets.

        Returns:
            A mapping from the name of each column of the picture to the images in this column.
            The mapping is empty if the attack recovers no images.
        """
        del guess, truth
        return {}

"""The rules that every attack must obey, checked on small made-up runs.

    from fl_vitlora.testing.attack import check_attack

    def test_my_attack():
        check_attack(MyAttack)

`fl_vitlora.attacks.contract` defines the contract. `attacked_runs` makes the runs.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from fl_vitlora.attacks.contract import Attack
from fl_vitlora.attacks.results import Figure
from fl_vitlora.attacks.truth import Owned, Truth
from fl_vitlora.attacks.views import ADVERSARIES, ShardView, View
from fl_vitlora.config.attack_bounds import VERDICT
from fl_vitlora.config.named_code import cause_of
from fl_vitlora.encryption.holder import KeyHolder
from fl_vitlora.testing import Finding
from fl_vitlora.testing.attacked_runs import AttackedRun, attacked_runs
from fl_vitlora.testing.leaves import copied, first_difference

IMAGES = 6  # encrypted images that a checked attack may use
SECRETS = (Truth, Owned, KeyHolder)
Kind = type[Attack[Any, Any]]


class AttackError(AssertionError):
    """An error: an attack breaks a rule. The message explains how the attack breaks the rule."""


class NotTriedError(Exception):
    """The reason why a rule could not be tested."""


class Rule(NamedTuple):
    """A rule that an attack must obey.

    Attributes:
        told: The rule in words, as the end of a sentence that begins with "The attack".
        check: A function that raises an `AttackError` if the rule is broken.
        first: True if later rules are not tested when this rule is broken.
    """

    told: str
    check: Callable[[Kind], None]
    first: bool = False


def check_attack(kind: Kind) -> None:
    """Checks the Python class of an attack against `RULES`, the rules of its contract.

    Rules about guesses are tested on the made-up runs on which the attack can be carried out. If
    there is no such run, these rules are not tested.

    Args:
        kind: The Python class of the attack that is checked.

    Raises:
        AttackError: If a rule is broken. The message explains the first broken rule.

    Example:
        >>> from fl_vitlora.attacks.label_counts import LabelCounts
        >>> check_attack(LabelCounts)
    """
    for finding in findings(kind):
        if finding.problem is not None:
            raise AttackError(f"{kind.__name__}: {finding.problem}")


def findings(kind: Kind) -> list[Finding]:
    """Returns a finding for each rule that could be tested, in the order of `RULES`."""
    found = []
    for rule in RULES:
        try:
            rule.check(kind)
        except AttackError as error:
            found.append(Finding(rule.told, str(error)))
            if rule.first:
                break
        except NotTriedError:
            continue
        else:
            found.append(Finding(rule.told, None))
    return found


def _is_frozen(kind: Kind) -> None:
    if lacking := sorted(getattr(kind, "__abstractmethods__", ())):
        raise AttackError(f"the class lacks {', '.join(lacking)}")
    own = vars(kind).get("__dataclass_params__")
    if own is None or not own.frozen:
        raise AttackError("write @dataclass(frozen=True, kw_only=True) above the class")
    try:
        made = kind(images=IMAGES)
    except Exception as error:
        raise AttackError(
            f"the class cannot be made with images={IMAGES}: {cause_of(error)}"
        ) from None
    if made.images != IMAGES:
        raise AttackError(f"made with images={IMAGES}, its `images` is {made.images}")


def _names_adversaries(kind: Kind) -> None:
    named = getattr(kind, "adversaries", None)
    right = isinstance(named, tuple) and named and set(named) <= set(ADVERSARIES)
    if not right or len(set(named or ())) < len(named or ()):
        known = ", ".join(view.__name__ for view in ADVERSARIES)
        raise AttackError(f"`adversaries` must be a tuple of some of {known}, each once")


def _tells_its_goal(kind: Kind) -> None:
    goal = getattr(kind, "goal", None)
    if not isinstance(goal, str) or not re.fullmatch(r"[A-Z][^\n]*[^.\s]\.", goal):
        raise AttackError("`goal` must be one sentence on one line that ends with a full stop")
    if ". " in goal:
        raise AttackError("`goal` must be one sentence, and it has several")


def _declares_figures(kind: Kind) -> None:
    names = kind.figures
    if not isinstance(names, tuple) or not names or not all(isinstance(n, str) for n in names):
        raise AttackError("`figures` must be a tuple with the name of every figure of `score`")
    if len(set(names)) < len(names):
        raise AttackError("`figures` has a name twice")
    for name in names:
        if not name or name != name.strip() or set(name) & set("<>\n") or name == VERDICT:
            raise AttackError(
                f"the figure {name!r} cannot be named by --fail-if: a name must not contain < or "
                f">, begin or end with a space, or be {VERDICT}"
            )


def _is_handed_no_secret(kind: Kind) -> None:
    for name in ("lacks", "guess"):
        method = getattr(kind, name)
        if len(inspect.signature(method).parameters) != 2:
            raise AttackError(f"`{name}` must take self and the view of an adversary, nothing else")
        try:
            hints = list(typing.get_type_hints(method).values())
        except NameError:  # Python cannot look up hints of a class in a function
            hints = []
        if secret := next((hint for hint in hints if hint in SECRETS), None):
            raise AttackError(f"`{name}` must not take a {secret.__name__} as an argument")


def _says_what_is_lacking(kind: Kind) -> None:
    for run, view in _views(kind):
        before = copied(view)
        reason = _called(kind(images=IMAGES).lacks, view, run, "lacks")
        if not isinstance(reason, str):
            raise AttackError(
                f"{run.name}: `lacks` returned {reason!r} to the {view.adversary}, expected a "
                "text, which is empty if nothing is missing"
            )
        if "\n" in reason or reason.endswith("."):
            raise AttackError(
                f"{run.name}: `lacks` must return the end of a sentence without its full stop, "
                f"on one line, but returned {reason!r}"
            )
        if (differing := first_difference(before, copied(view))) is not None:
            raise _changing(view, run, "lacks", differing)


@dataclass(frozen=True)
class Trial:
    """An attack that was carried out on a made-up run.

    Attributes:
        run: The made-up run.
        view: The view of the adversary, that is, what the adversary has.
        guess: The guess of the attack.
        found: Copies of the leaves (smallest parts) of the guess, by place.
        changed: The first place of the view that the method `guess` changed; None if the method
            changed nothing.
    """

    run: AttackedRun
    view: View
    guess: Any
    found: Mapping[str, Any]
    changed: str | None


@functools.lru_cache(maxsize=1)
def _all_trials(kind: Kind) -> tuple[Trial, ...]:
    """Carries out an attack by each adversary on each made-up run on which this is possible."""
    attack, trials = kind(images=IMAGES), []
    for run, view in _views(kind):
        if not _called(attack.lacks, view, run, "lacks"):
            before = copied(view)
            guess = _called(attack.guess, view, run, "guess")
            changed = first_difference(before, copied(view))
            trials.append(Trial(run, view, guess, copied(guess), changed))
    return tuple(trials)


def _trials(kind: Kind) -> tuple[Trial, ...]:
    if trials := _all_trials(kind):
        return trials
    raise NotTriedError


def _one_each(kind: Kind) -> Sequence[Trial]:
    """Returns the first trial of each adversary; to repeat all trials would take too long."""
    return list({type(trial.view): trial for trial in reversed(_trials(kind))}.values())


def _repeats(kind: Kind) -> None:
    for trial in _one_each(kind):
        with _other_random_numbers():
            again = _called(kind(images=IMAGES).guess, trial.view, trial.run, "guess")
        if (differing := first_difference(trial.found, copied(again))) is not None:
            raise AttackError(
                f"{trial.run.name}: from the same view of the {trial.view.adversary}, `guess` "
                f"makes a different guess (guess{differing}); draw random numbers with a fixed "
                "seed of your own, and remember nothing"
            )


def _changes_nothing(kind: Kind) -> None:
    for trial in _trials(kind):
        if trial.changed is not None:
            raise _changing(trial.view, trial.run, "guess", trial.changed)


def _bounds_its_images(kind: Kind) -> None:
    trials = [trial for trial in _one_each(kind) if isinstance(trial.view, ShardView)]
    if not trials or kind.each_alone:
        raise NotTriedError
    for trial in trials:
        assert isinstance(trial.view, ShardView)
        if trial.view.images is None:
            continue
        images = trial.view.images.clone()
        images[IMAGES:] = 0
        fewer = replace(trial.view, images=images)
        again = _called(kind(images=IMAGES).guess, fewer, trial.run, "guess")
        if first_difference(trial.found, copied(again)) is not None:
            raise AttackError(
                f"{trial.run.name}: the guess of the {trial.view.adversary} depends on more than "
                f"the first {IMAGES} encrypted images; use view.images[: self.images]"
            )


def _scores(kind: Kind) -> None:
    attack, names = kind(images=IMAGES), dict[tuple[str, str], list[str]]()
    for trial in _trials(kind):
        run, adversary = trial.run, trial.view.adversary
        figures = _figures(attack, trial)
        if figures != _figures(attack, trial):
            raise AttackError(f"{run.name}, {adversary}: a second `score` returns other figures")
        told = [figure.name for figure in figures]
        others = names.setdefault((run.name, adversary), told)
        if not told or told != others or len(set(told)) < len(told):
            raise AttackError(
                f"{run.name}, {adversary}: `score` must return the same figures for every victim, "
                f"each once; got {told} and {others}"
            )


def _figures(attack: Attack[Any, Any], trial: Trial) -> list[Figure]:
    """Scores the guess of a trial, and checks each figure."""
    where = f"{trial.run.name}, {trial.view.adversary}"
    figures = _called(
        lambda guess: attack.score(guess, trial.run.truth), trial.guess, trial.run, "score"
    )
    if not isinstance(figures, Sequence) or not all(isinstance(f, Figure) for f in figures):
        raise AttackError(f"{where}: `score` must return a sequence of Figure")
    for figure in figures:
        if figure.name not in attack.figures:
            raise AttackError(f"{where}: `figures` does not declare {figure.name!r}")
        numbers = [n for n in (figure.value, figure.floor, figure.ceiling) if n is not None]
        if not all(math.isfinite(number) for number in numbers):
            raise AttackError(f"{where}: expected finite numbers, got {figure}")
    return list(figures)


RULES = (
    Rule("is a frozen dataclass of which an instance can be made", _is_frozen, first=True),
    Rule("names its adversaries, which are views", _names_adversaries, first=True),
    Rule("says its goal in one sentence", _tells_its_goal),
    Rule("declares the names of its figures", _declares_figures),
    Rule("gets nothing but a view before it has guessed", _is_handed_no_secret, first=True),
    Rule("says in a text what an adversary lacks", _says_what_is_lacking, first=True),
    Rule("makes the same guess from the same view", _repeats),
    Rule("does not change the view of an adversary", _changes_nothing),
    Rule("uses no more encrypted images than it may", _bounds_its_images),
    Rule("returns the figures that it declares, the same each time", _scores),
)
"""The rules in the order in which they are tested."""


def _views(kind: Kind) -> Iterator[tuple[AttackedRun, View]]:
    """Yields each made-up run with a copy of the view of each adversary of the attack."""
    for run in attacked_runs():
        for adversary in kind.adversaries:
            for view in run.views.get(adversary, ()):
                yield run, copy.deepcopy(view)


def _called(method: Callable[[Any], Any], argument: Any, run: AttackedRun, name: str) -> Any:
    try:
        return method(argument)
    except Exception as error:
        raise AttackError(f"{run.name}: `{name}` raises {cause_of(error)}") from error


def _changing(view: View, run: AttackedRun, name: str, place: str) -> AttackError:
    return AttackError(
        f"{run.name}: `{name}` changes the view of the {view.adversary} at view{place}"
    )


class _other_random_numbers:  # noqa: N801 - a context manager that reads like a function
    """Gives the global random generators another state in a block; restores the old state later."""

    def __enter__(self) -> None:
        self._torch, self._numpy = torch.get_rng_state(), np.random.get_state()
        torch.manual_seed(int(torch.randint(2**31, ())))
        np.random.seed(int(torch.randint(2**31, ())))

    def __exit__(self, *_: object) -> None:
        torch.set_rng_state(self._torch)
        np.random.set_state(self._numpy)

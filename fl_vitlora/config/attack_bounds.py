"""Reads bounds on the outcomes of attacks, as a user writes them after ``--fail-if``.

The grammar of a bound:

    BOUND      = [ATTACK[/ADVERSARY].]FIGURE COMPARISON VALUE
    ATTACK     = a name as after --only; a bound on the verdict may leave it out
    ADVERSARY  = server, worker, thief and so on; if left out, all adversaries are meant
    FIGURE     = verdict, or a figure as the audit prints it
    COMPARISON = > or >= or < or <=
    VALUE      = a number in the unit of the figure, or one of `VERDICTS`

A bound says what must not happen. Therefore a bound is broken if its comparison is true. For
example, ``second_order/thief.blocks put in their place>50`` is broken if a thief puts more than
half of the blocks in their place.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fl_vitlora.config.attack_names import ATTACKS
from fl_vitlora.errors import UserError, unknown

FLAG, VERDICT = "--fail-if", "verdict"
VERDICTS = ("not applicable", "not", "partly", "recovered")  # each is worse than those before it
COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
FORM = re.compile(r"(?P<left>[^<>]*)(?P<comparison>>=|<=|>|<)(?P<value>[^<>=]*)")


@dataclass(frozen=True, kw_only=True)
class Bound:
    """A bound on a figure or on a verdict.

    Attributes:
        text: The bound as the user wrote it.
        attack: The name of the attack; empty for all attacks.
        adversary: The name of the adversary; empty for all adversaries.
        figure: The name of the figure, or `VERDICT`.
        comparison: A key of `COMPARISONS`.
        limit: The number on the right side of the bound; for a verdict, its position in `VERDICTS`.
    """

    text: str
    attack: str
    adversary: str
    figure: str
    comparison: str
    limit: float

    def concerns(self, attack: str, adversary: str) -> bool:
        """Returns True if the bound is for this attack by this adversary."""
        return self.attack in ("", attack) and self.adversary in ("", adversary)

    def is_broken_by(self, value: float) -> bool:
        """Returns True if the comparison is true for a value, or if the value is not a number."""
        return math.isnan(value) or COMPARISONS[self.comparison](value, self.limit)


def read_bounds(texts: Sequence[str] | None, names: Sequence[str]) -> tuple[Bound, ...]:
    """Reads bounds.

    Args:
        texts: The bounds as the user wrote them; None for no bounds.
        names: The names of the attacks that are carried out, as `read_attacks` returns them.

    Returns:
        The bounds in the order of `texts`. The names of their figures are not checked here, because
        the attacks declare these names (`attacks.bounds` checks them).

    Raises:
        UserError: If a bound does not follow the grammar, or its attack is not carried out.

    Example:
        >>> (bound,) = read_bounds(["span/server.rank of an update < 9"], ["span"])
        >>> bound.attack, bound.adversary, bound.figure, bound.comparison, bound.limit
        ('span', 'server', 'rank of an update', '<', 9.0)
        >>> read_bounds(["verdict>=partly"], ["span"])[0].limit
        2
    """
    return tuple(_bound(text, names) for text in texts or ())


def _bound(text: str, names: Sequence[str]) -> Bound:
    form = FORM.fullmatch(text)
    if form is None:
        raise UserError(
            f"{FLAG} {text!r}: expected ATTACK.FIGURE>NUMBER with one of "
            f"{', '.join(COMPARISONS)}, or verdict>=partly"
        )
    attack, adversary, figure = _split(form["left"].strip(), text, names)
    return Bound(
        text=text,
        attack=attack,
        adversary=adversary,
        figure=figure,
        comparison=form["comparison"],
        limit=_limit(form["value"].strip(), figure, text),
    )


def _split(left: str, text: str, names: Sequence[str]) -> tuple[str, str, str]:
    """Returns the attack, the adversary and the figure that the left side of a bound names."""
    if left == VERDICT:
        return "", "", VERDICT
    begun = [name for name in names if left.startswith((f"{name}.", f"{name}/"))]
    if not begun:
        attack = re.split(r"[./]", left)[0]
        if attack in ATTACKS:
            raise UserError(
                f"{FLAG} {text!r}: --only leaves out {attack}; add this attack to --only"
            )
        raise unknown(f"attack in {FLAG} {text!r}:", attack, [*names, VERDICT])
    attack = max(begun, key=len)
    adversary, _, figure = left.removeprefix(attack).partition(".")
    return attack, adversary.removeprefix("/").strip(), figure.strip()


def _limit(value: str, figure: str, text: str) -> float:
    """Returns the right side of a bound as a number."""
    if figure == VERDICT:
        if value not in VERDICTS:
            raise unknown(f"verdict in {FLAG} {text!r}:", value, VERDICTS)
        return VERDICTS.index(value)
    try:
        limit = float(value)
    except ValueError:
        limit = math.nan
    if not math.isfinite(limit):
        raise UserError(f"{FLAG} {text!r}: expected a number after the comparison, got {value!r}")
    return limit

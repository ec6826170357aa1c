"""The result of an attack: its figures, the figures by chance, and a verdict by a fixed rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import Literal

from torch import Tensor

Verdict = Literal["recovered", "partly", "not", "not applicable", "out of time"]
WHOLE, PART = 0.95, 0.25
RULE = (
    'The gain of a figure is (found - chance) / (best - chance). The verdict is "recovered" if the '
    f'gain of every judged figure is at least {100 * WHOLE:.0f} %, "partly" if the gain of one or '
    f'more judged figures is at least {100 * PART:.0f} %, and otherwise "not". A figure that is '
    "not judged has no best value."
)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A measured number.

    Attributes:
        name: The name of the number, the same in every run.
        value: The figure that the attack reaches.
        unit: The unit of all three numbers, such as "%"; empty if it is a count.
        floor: The figure that guessing at random reaches; None if there is no such figure.
        ceiling: The figure that an adversary with the key reaches; None if there is no such figure.
            A figure with a floor and a ceiling is judged: it counts for the verdict.
    """

    name: str
    value: float
    unit: str = "%"
    floor: float | None = None
    ceiling: float | None = None

    @property
    def gain(self) -> float | None:
        """Returns the share of the way from floor to ceiling; None if the figure is not judged.

        If the floor equals the ceiling, the gain is 0.

        Example:
            >>> Figure(name="right", value=75, floor=50, ceiling=100).gain
            0.5
        """
        if self.floor is None or self.ceiling is None:
            return None
        way = self.ceiling - self.floor
        return (self.value - self.floor) / way if way else 0.0

    def shown(self, number: float | None) -> str:
        """Returns one of the three numbers with its unit, or a dash for None.

        Example:
            >>> rank, share = Figure(name="rank", value=48, unit=""), Figure(name="told", value=50)
            >>> rank.shown(48), share.shown(12.34), share.shown(None)
            ('48', '12.3 %', '-')
        """
        if number is None:
            return "-"
        return f"{number:.1f} {self.unit}" if self.unit else f"{number:.3g}"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The result of one attack by one adversary.

    Attributes:
        attack: The name of the attack.
        adversary: The name of the adversary.
        figures: The figures; empty if the adversary cannot carry out the attack.
        seconds: The time that the attack took, without scoring, in seconds.
        reason: The reason why the adversary cannot carry out the attack, or that its time was up;
            empty if the attack was carried out.
        out_of_time: True if the time budget of the attack ended it.
        victims: The number of adversaries of this kind, each with the shard of a different client.
            The figures are means over these adversaries. The number is 1 if there is one adversary.
        pictures: The images that the attack recovered from the first victim, in columns
            (`attacks.pictures`). The mapping is empty if there are none, or nobody asked for them.
    """

    attack: str
    adversary: str
    figures: Sequence[Figure] = ()
    seconds: float = 0.0
    reason: str = ""
    victims: int = 1
    out_of_time: bool = False
    pictures: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def verdict(self) -> Verdict:
        """Returns the verdict by `RULE`.

        Example:
            >>> half = Figure(name="right", value=75, floor=50, ceiling=100)
            >>> Outcome(attack="guess", adversary="server", figures=[half]).verdict
            'partly'
        """
        if self.out_of_time:
            return "out of time"
        if self.reason:
            return "not applicable"
        gains = [figure.gain for figure in self.figures if figure.gain is not None]
        if gains and min(gains) >= WHOLE:
            return "recovered"
        return "partly" if max(gains, default=0.0) >= PART else "not"


def averaged(scores: Sequence[Sequence[Figure]]) -> list[Figure]:
    """Returns the mean of each figure over several victims.

    Args:
        scores: For each victim, the figures. The names of the figures are the same for all victims.

    Example:
        >>> averaged([[Figure(name="rank", value=2)], [Figure(name="rank", value=4)]])[0].value
        3
    """
    return [
        Figure(
            name=same[0].name,
            value=mean(figure.value for figure in same),
            unit=same[0].unit,
            floor=_mean_of([figure.floor for figure in same]),
            ceiling=_mean_of([figure.ceiling for figure in same]),
        )
        for same in zip(*scores, strict=True)
    ]


def _mean_of(numbers: Sequence[float | None]) -> float | None:
    known = [number for number in numbers if number is not None]
    return mean(known) if len(known) == len(numbers) and known else None

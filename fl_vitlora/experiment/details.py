"""The details of an evaluation, from which the module `classification` makes a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fl_vitlora.data.owner import RIGHT_KEY
from fl_vitlora.federation.evaluation import Answer
from fl_vitlora.training.decisions import Decisions


@dataclass(kw_only=True)
class Details:
    """The details of the evaluation of the last evaluated model on test images.

    There are decisions if a central party has evaluated the model, and answers if the clients have
    evaluated the model.

    Attributes:
        decisions: The model's decisions for the common test images; None if no central party has
            evaluated the model on these images.
        answers: The answers of the clients that have evaluated the model; empty if no client has
            evaluated the model.
    """

    decisions: Decisions | None = None
    answers: Sequence[Answer] = ()

    def clear(self) -> None:
        """Removes the details, because another model will be evaluated."""
        self.decisions, self.answers = None, ()

    def take(self, other: Details) -> None:
        """Copies the details of another object into this object."""
        self.decisions, self.answers = other.decisions, other.answers

    def note_decisions(self, decisions: Decisions) -> None:
        """Stores the decisions of the model for the common test images."""
        self.decisions = decisions

    def note_answers(self, answers: Sequence[Answer]) -> None:
        """Stores the answers of the clients, if all answers have results on test images."""
        if all(RIGHT_KEY in answer.measured for answer in answers):
            self.answers = answers

    def to_tree(self) -> dict[str, Any]:
        """Returns the details as a tree of values for a checkpoint; `of_tree` reads this tree."""
        known = self.decisions
        return {
            "decisions": None
            if known is None
            else {
                "labels": known.labels,
                "chosen": known.chosen,
                "confidence": known.confidence,
            },
            "answers": [[a.client, a.images, *a.measured[RIGHT_KEY]] for a in self.answers],
        }

    @classmethod
    def of_tree(cls, tree: Mapping[str, Any] | None) -> Details:
        """Returns the details of a checkpoint; `tree` is None for checkpoints of older versions."""
        if tree is None:
            return cls()
        known = tree["decisions"]
        return cls(
            decisions=None if known is None else Decisions(**known),
            answers=[
                Answer(client, images, {RIGHT_KEY: (accuracy, loss)})
                for client, images, accuracy, loss in tree["answers"]
            ],
        )

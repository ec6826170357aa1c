"""Whole experiments: prepared, run, recorded, compared, and deployed."""

from fl_vitlora.experiment.runner import run

__all__ = ["run"]

"""Prepares, runs, records, compares and deploys whole experiments."""

from fl_vitlora.experiment.runner import run

__all__ = ["run"]

"""Checkpoints of a run; a resumed run gives exactly the results of an uninterrupted run."""

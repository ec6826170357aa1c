"""Checkpoints of a run, from which a resumed run gives the same bits as an uninterrupted run."""

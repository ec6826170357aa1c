"""Checkpoints of a run: a resumed run gives the same bits as an uninterrupted one."""

"""Attacks on what a run sent and stored: they measure what each adversary can find out."""

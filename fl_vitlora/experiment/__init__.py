"""Whole experiments: prepared, run, recorded, compared, and deployed."""

"""Aggregation strategies, one a file; drop yours in and run it by its file's name."""

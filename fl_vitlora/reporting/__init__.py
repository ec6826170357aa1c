"""Writes the results of a run: the run folder, plots, tables, and the output on the screen."""

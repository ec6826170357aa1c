"""The results of a run: the run folder, plots, tables, and the output on the screen."""

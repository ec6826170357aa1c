"""The results of a run: its folder, plots and tables, and what appears on the screen."""

"""The report of a run or a comparison: one HTML file that needs no network.

`run_files` reads a run folder and `reporting.grid_folder` a grid folder; `charts` and `grid_charts`
make the interactive charts, `run_page` and `grid_page` the texts and tables, and `page` the file.
"""

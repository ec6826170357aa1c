"""A page in the browser that follows a run or a comparison while it runs, from its folder alone.

`run_state` and `grid_state` say from the files of a folder what has happened so far, `view` makes
the texts, tables and charts of the page, and `server` shows them to the browser on this machine.
"""

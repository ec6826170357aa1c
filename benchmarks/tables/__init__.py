"""The tables of figures in the pages: which command makes each table, and which tables are old.

`tables.yaml` lists all tables, and `made.json` has the digests of the configuration and the code
with which each table was made. `python -m benchmarks.tables --help` says how to use both.
"""

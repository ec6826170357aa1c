"""Builds the documentation site: `make docs`.

The pages in `docs/` are written by hand. `hooks` adds what must not go stale: pages about all
settings (`settings_pages`), the commands' help (`command_pages`), the strategies, methods, codecs
and attacks (`shelf_pages`), and the files of the repository to which a page links
(`repository_pages`). `figures` draws the figures in `docs/figures/`.
"""

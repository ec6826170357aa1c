"""Lists the tables of the pages, says which are older than their code, and makes them again.

python -m benchmarks.tables                    all tables: page, command, and whether it is old
python -m benchmarks.tables --check            the old tables alone, with reasons; exit code 1
python -m benchmarks.tables --remake NAME ...  runs the commands, and rewrites the tables
python -m benchmarks.tables --remake all       makes all tables that need nothing else
python -m benchmarks.tables --record NAME ...  after you have copied figures into a table by hand

A table is old if its configuration or a file of the code that decides its figures has another
content than when the table was made, or if somebody has edited the figures. Comments and docstrings
do not count. A table about which nothing is recorded counts as old. Runs of comparisons are kept
under runs/tables/, so that an interrupted command goes on as long as the code stays the same.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path

from benchmarks.tables import rendering
from benchmarks.tables.digests import digest_of
from benchmarks.tables.listing import ROOT, Entry, Listing, layout_of, read_listing
from benchmarks.tables.pages import page_of, replace, table_in
from benchmarks.tables.records import Records
from fl_vitlora.errors import UserError
from fl_vitlora.reporting.grid_folder import read_comparison

ALL = "all"
RUNS = Path("runs/tables")


def main(argv: Sequence[str] | None = None) -> int:
    """Carries out the command, and returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="show only old tables")
    what.add_argument("--remake", nargs="+", metavar="NAME", help="make these tables again")
    what.add_argument("--record", nargs="+", metavar="NAME", help="these tables are new")
    given = parser.parse_args(argv)
    try:
        listing = read_listing()
        records = Records.read(listing, ROOT)
        if given.remake:
            remake(listing, records, given.remake)
            return 0
        if given.record:
            for name in given.record:
                records.record(name, records.digests(name), today())
            return 0
        return show(listing, records, only_old=given.check)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def show(listing: Listing, records: Records, *, only_old: bool) -> int:
    """Prints the tables, and returns 1 if old ones were asked for and there are any."""
    old = 0
    for name, entry in listing.tables.items():
        reasons = records.reasons(name)
        old += bool(reasons)
        if only_old and not reasons:
            continue
        page = page_of(listing.mark(name), records.root).relative_to(records.root)
        day = records.day(name)
        print(f"{name} ({page}): {'old' if reasons else 'as the code makes it'}")
        print(f"    {entry.command}")
        print(f"    made on {day}" if day else f"    {reasons[0]}")
        for reason in reasons if day else ():
            print(f"    {reason}")
        if entry.why_not:
            print(f"    {entry.why_not}")
    print(f"{old} of {len(listing.tables)} tables are old")
    return int(only_old and old > 0)


def remake(listing: Listing, records: Records, names: Sequence[str]) -> None:
    """Runs the commands of tables, and writes the tables. Tables of one command share its run.

    Raises:
        UserError: If a table cannot be made by a program alone, or its command fails.
    """
    if list(names) == [ALL]:
        chosen = {n: entry for n, entry in listing.tables.items() if not entry.why_not}
    else:
        chosen = {name: listing.table(name) for name in names}
    for name, entry in chosen.items():
        if entry.why_not:
            raise UserError(f"table {name}: {entry.why_not} ({entry.command})")
    files = {name: records.digests(name) for name in chosen}  # before anything runs
    outputs: dict[str, str] = {}
    for name, entry in chosen.items():
        mark = listing.mark(name)
        page, folder = page_of(mark, records.root), folder_of(entry, files[name])
        if entry.command not in outputs:
            words = entry.words + (["--out", str(folder)] if entry.layout is not None else [])
            outputs[entry.command] = output_of(words, records.root)
        if not entry.itself:
            head = table_in(page.read_text(encoding="utf-8"), mark)[0]
            if entry.layout is not None:
                layout = layout_of(name, entry)
                rows = rendering.rows_of(read_comparison(records.root / folder), layout, head)
            else:
                rows = rendering.printed_rows(outputs[entry.command], entry.printed or 0, head)
            replace(page, mark, rows)
        records.record(name, files[name], today())
        where = page.relative_to(records.root)
        print(f"{name}: {where} has the new figures; look at them with git diff")


def folder_of(entry: Entry, files: Mapping[str, str]) -> Path:
    """Returns the folder for the runs of a comparison; if the code changes, so does the folder."""
    return RUNS / digest_of(repr((entry.command, sorted(files.items()))).encode())


def output_of(words: Sequence[str], root: Path) -> str:
    """Runs a command, shows what it prints, and returns it.

    Raises:
        UserError: If the command fails.
    """
    python = [sys.executable if word == "python" else word for word in words]
    lines = []
    with subprocess.Popen(python, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        raise UserError(f"the command ended with exit code {process.returncode}: {' '.join(words)}")
    return "".join(lines)


def today() -> date:
    """Returns the day, in universal time."""
    return datetime.now(UTC).date()


if __name__ == "__main__":
    sys.exit(main())

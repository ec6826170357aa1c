"""What each table was made with: the digests of its files and of its text, and the day."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any, Self

from benchmarks.tables.digests import digest_of, digests
from benchmarks.tables.listing import Listing
from benchmarks.tables.pages import page_of, table_in
from fl_vitlora.storage.files import write_atomically

MADE = Path("benchmarks/tables/made.json")
NEVER = "nobody has recorded with which code it was made"
EDITED = "its figures were edited after they were made"


class Records:
    """The file that says with which configuration and code each table was made.

    Args:
        listing: The list of all tables.
        root: The folder of the repository.
        made: The records by the name of the table.
    """

    def __init__(self, listing: Listing, root: Path, made: Mapping[str, Any]) -> None:
        self._listing, self.root, self._made = listing, root, dict(made)
        self._known: dict[str, str] = {}  # digests, because many tables have the same files

    @classmethod
    def read(cls, listing: Listing, root: Path) -> Self:
        """Reads the file; without a file there are no records."""
        path = root / MADE
        return cls(listing, root, json.loads(path.read_text("utf-8")) if path.exists() else {})

    def reasons(self, name: str) -> list[str]:
        """Returns why a table is older than the code that makes it; empty if it is not."""
        record = self._made.get(name)
        if record is None:
            return [NEVER]
        now = self.digests(name)
        then: dict[str, str] = record["files"]
        changed = [path for path in sorted({*now, *then}) if now.get(path) != then.get(path)]
        edited = [EDITED] if record["table"] != self._text_digest(name) else []
        return [f"{path} has changed" for path in changed] + edited

    def day(self, name: str) -> str:
        """Returns the day on which a table was made; empty if it is unknown."""
        return str(self._made.get(name, {}).get("made", ""))

    def digests(self, name: str) -> dict[str, str]:
        """Returns the digests of the files that decide a table, as they are now."""
        files = self._listing.files(name, self.root)
        self._known |= digests((path for path in files if path not in self._known), self.root)
        return {path: self._known[path] for path in files}

    def record(self, name: str, files: Mapping[str, str], day: date) -> None:
        """Records that a table was made, and writes the file.

        Args:
            name: The name of the table.
            files: The digests of its files when the command began.
            day: The day on which the table was made.
        """
        self._made[name] = {
            "made": day.isoformat(),
            "table": self._text_digest(name),
            "files": dict(files),
        }
        ordered = {known: self._made[known] for known in sorted(self._made)}
        write_atomically(self.root / MADE, json.dumps(ordered, indent=1) + "\n")

    def _text_digest(self, name: str) -> str:
        """Returns the digest of the rows of a table; bold figures do not change it."""
        mark = self._listing.mark(name)
        text = page_of(mark, self.root).read_text(encoding="utf-8")
        return digest_of("\n".join(table_in(text, mark)[2:]).replace("*", "").encode())

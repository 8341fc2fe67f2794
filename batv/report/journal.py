"""Reads the journal back: the records of `journal.jsonl` and of the files that it was rotated into.

A line that does not parse is none (see `batv.store.journal`), and is counted.
"""

from __future__ import annotations

import gzip
import json
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from batv.errors import IoError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["JournalReader", "rotated"]

_MAX_LINE: Final = 65_536
"""Octets of a line; a record has a few hundred."""


def rotated(journal: Path) -> list[Path]:
    """Return the journal and what it was rotated into, the oldest first; none where there is no journal."""
    files = [path for path in journal.parent.glob(f"{journal.name}*") if path.is_file()]
    return sorted(files, key=lambda path: path.stat().st_mtime)


@dataclass(slots=True)
class JournalReader:
    """Yields records, and counts what is none.

    Attributes:
        paths: the files, plain or packed with gzip.
        holding: only lines that hold these octets are looked at; the others are neither yielded nor counted.
        damaged: lines that are no records.
    """

    paths: Sequence[Path]
    holding: bytes = b""
    damaged: int = 0

    def __iter__(self) -> Iterator[Mapping[str, object]]:
        """Yield each record; raises IoError where a file cannot be read."""
        for path in self.paths:
            try:
                with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                    while line := file.readline(_MAX_LINE):
                        if self.holding not in line:
                            continue
                        record = _record(line)
                        if record is None:
                            self.damaged += 1
                        else:
                            yield record
            except (OSError, EOFError, zlib.error) as error:
                said = (error.strerror if isinstance(error, OSError) else None) or "it is damaged"
                raise IoError(f"cannot read {path}: {said}", "name another journal") from error


def _record(line: bytes) -> Mapping[str, object] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None

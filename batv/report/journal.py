"""Reads the journal back: the records of `journal.jsonl` and of the files that it was rotated into, or those to come.

A line that does not parse is none (see `batv.store.journal`), and is counted.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from batv.errors import IoError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import BinaryIO, Self

__all__ = ["JournalFollower", "JournalReader", "rotated"]

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


class JournalFollower:
    """Yields the records that are written from its making on, also those in files that are begun meanwhile.

    Args:
        path: the journal; it need not be there yet.

    Raises:
        IoError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._files: dict[tuple[int, int], _Followed] = {}
        self._look()
        for each in self._files.values():
            each.file.seek(0, os.SEEK_END)

    def __enter__(self) -> Self:
        """Follow the journal until the context ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        for each in self._files.values():
            each.file.close()

    def records(self) -> list[Mapping[str, object]]:
        """Return the records that are new since the last time.

        Raises:
            IoError: they cannot be read.
        """
        self._look()
        try:
            # A file that was renamed too: whoever has it open writes to it until it hears of that.
            return [record for each in self._files.values() for record in each.records()]
        except OSError as error:
            raise IoError(f"cannot read {self._path}: {error.strerror}", "mend the file system") from error

    def _look(self) -> None:
        try:
            found = self._path.stat()
            if (found.st_dev, found.st_ino) in self._files:
                return
            file = self._path.open("rb")
        except FileNotFoundError:
            return
        except OSError as error:
            raise IoError(f"cannot read {self._path}: {error.strerror}", "run this as a user who may") from error
        opened = os.fstat(file.fileno())
        self._files[opened.st_dev, opened.st_ino] = _Followed(file)


@dataclass(slots=True)
class _Followed:
    """A file of the journal, and the line that is not whole yet."""

    file: BinaryIO
    begun: bytes = b""

    def records(self) -> Iterator[Mapping[str, object]]:
        *lines, self.begun = (self.begun + self.file.read()).split(b"\n")
        for line in lines:
            record = _record(line)
            if record is not None:
                yield record


def _record(line: bytes) -> Mapping[str, object] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None

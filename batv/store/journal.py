"""The journal: one JSON object a line for every recipient of a judged bounce and of an outbound message.

A discarded message exists nowhere else, so its record is written to the file before the sender hears 250. Lines are
appended with one write each, so that programs may read and rotate the file at any time; after SIGHUP a new file is
begun where the old one was renamed.
"""

from __future__ import annotations

import json
import os
import stat
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from batv.errors import IoError
from batv.observe.event import Direction
from batv.tag import shorten

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from batv.observe.event import TransactionEnded

__all__ = ["JOURNAL_FIELDS", "Journal"]

JOURNAL_FIELDS: Final = (
    "time",
    "transaction",
    "direction",
    "client",
    "reverse_path",
    "forward_path",
    "verdict",
    "disposition",
    "reason",
    "key",
    "message_id",
    "size",
    "reply",
    "session",
)
"""The fields of a record, in the order in which they are written."""


_ROOM_OCTETS: Final = 65_536
"""Less than this left on the disk counts as full: the records of a transaction may take as much."""


class Journal:
    """Appends records to `journal.jsonl` in a folder.

    Args:
        directory: the folder; it must exist.
        fsync: whether the caller is to wait for the disk after each record.

    Raises:
        IoError: the file cannot be opened.
    """

    def __init__(self, directory: Path, *, fsync: bool = False) -> None:
        self.path = directory / "journal.jsonl"
        self.fsync = fsync
        self._file, self._torn = self._open()

    def write(self, event: TransactionEnded) -> bool:
        """Write the records of a transaction, and return whether it has any.

        Mail that is neither outbound nor a bounce has none.

        Raises:
            IoError: the records are not, or not wholly, in the file.
        """
        if event.direction is Direction.INBOUND and not event.null_sender:
            return False
        octets = "".join(_lines(event)).encode("utf-8")
        if not octets:
            return False
        self._follow()
        if self._torn:
            octets = b"\n" + octets
        try:
            written = os.write(self._file, octets)
        except OSError as error:
            raise IoError(f"cannot write {self.path}: {error.strerror}", "make room or mend the file system") from error
        # A short write is a full disk. The half line stays, and the next record begins on a line of its own.
        self._torn = written < len(octets)
        if self._torn:
            raise IoError(f"cannot write {self.path}: the disk is full", "make room")
        return True

    def check(self) -> None:
        """Find out whether there is room for records.

        Raises:
            IoError: there is little or none.
        """
        self._follow()
        try:
            state = os.fstatvfs(self._file)
        except OSError as error:
            raise IoError(f"cannot write {self.path}: {error.strerror}", "mend the file system") from error
        if state.f_bavail * state.f_frsize < _ROOM_OCTETS:
            raise IoError(f"cannot write {self.path}: the disk is full", "make room")

    def sync(self) -> None:
        """Wait until the disk has what was written.

        Raises:
            IoError: the disk does not take it.
        """
        try:
            os.fdatasync(self._file)
        except OSError as error:
            raise IoError(f"cannot write {self.path}: {error.strerror}", "mend the file system") from error

    def reopen(self) -> None:
        """Go on in a new file if the old one was renamed.

        Raises:
            IoError: the file cannot be opened; the old one is kept.
        """
        old = self._file
        self._file, self._torn = self._open()
        os.close(old)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _follow(self) -> None:
        if not os.fstat(self._file).st_nlink:
            self.reopen()  # somebody has removed the file: what is written to it now would be nowhere

    def _open(self) -> tuple[int, bool]:
        """Return the file, and whether it ends in the middle of a line."""
        flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            file = os.open(self.path, os.O_RDWR | flags, 0o600)
        except OSError as error:
            raise IoError(
                f"cannot open {self.path}: {error.strerror}", "make its folder writable for the service's user"
            ) from error
        state = os.fstat(file)
        if not stat.S_ISREG(state.st_mode):
            os.close(file)
            # A pipe would take records that nobody ever reads.
            raise IoError(f"cannot use {self.path}: it is no regular file", "move it away")
        # What a full disk or a crash has cut short stays as it is; the next record begins on a line of its own.
        return file, state.st_size > 0 and os.pread(file, 1, state.st_size - 1) != b"\n"


def _lines(event: TransactionEnded) -> Iterator[str]:
    time = datetime.fromtimestamp(event.time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    for outcome in event.recipients:
        values = (
            time,
            event.transaction,
            event.direction.value,
            event.client,
            event.reverse_path,
            outcome.forward_path,
            outcome.verdict.value,
            outcome.disposition.value,
            outcome.reason,
            outcome.key_number,
            shorten(event.message_id),
            event.size,
            shorten(outcome.reply),
            event.session,
        )
        yield json.dumps(dict(zip(JOURNAL_FIELDS, values, strict=True)), ensure_ascii=False) + "\n"

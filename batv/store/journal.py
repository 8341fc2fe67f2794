"""The journal: one JSON object a line for every recipient of a judged bounce and of an outbound message.

A discarded message exists nowhere else, so its record is written to the file before the sender hears 250. The records
of a transaction are appended with one write, so that programs may read and rotate the file at any time, and several
processes write to one; after SIGHUP a new file is begun where the old one was renamed.

Each line is a record, or does not parse: half a record where the disk was full, with another process's behind it at
worst, which then stands once more on a line of its own.
"""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from functools import lru_cache
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Final

from batv.errors import IoError
from batv.observe.event import Direction
from batv.tag import shorten

if TYPE_CHECKING:
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

    Each process opens its own: what is behind a descriptor that processes share cannot be told apart.

    Args:
        directory: the folder; it must exist.
        fsync: whether the caller is to wait for the disk after each record.

    Raises:
        IoError: the file cannot be opened.
    """

    def __init__(self, directory: Path, *, fsync: bool = False) -> None:
        self.path = directory / "journal.jsonl"
        self.fsync = fsync
        self._file, self._end, self._torn = self._open()

    def write(self, event: TransactionEnded) -> bool:
        """Write the records of a transaction, and return whether it has any.

        Mail that is neither outbound nor a bounce has none.

        Raises:
            IoError: the records are not, or not wholly, in the file.
        """
        if event.direction is Direction.INBOUND and not event.bounce:
            return False
        if not event.recipients:
            return False
        octets = _records(event).encode("utf-8")
        while not self._append(octets):
            pass
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
        self._file, self._end, self._torn = self._open()
        os.close(old)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def _append(self, octets: bytes) -> bool:
        """Append records, and return whether they stand where they are found, on a line of their own.

        Raises:
            IoError: they are not, or not wholly, in the file.
        """
        if self._torn:
            octets = b"\n" + octets
        try:
            written = os.write(self._file, octets)
            # Looked at any earlier, the file might have been about to be removed, or written to by another process.
            state = os.fstat(self._file)
            if not state.st_nlink:
                self.reopen()  # what was written is nowhere
                return False
            alone = state.st_size == self._end + written
            end = state.st_size if alone else os.lseek(self._file, 0, os.SEEK_CUR)
            own_line = self._torn or alone or self._begins_line(end - written)
        except OSError as error:
            raise IoError(f"cannot write {self.path}: {error.strerror}", "make room or mend the file system") from error
        self._end = end  # of what is ours: behind it another process may have left half a line meanwhile
        # A short write is a full disk. The half line stays, and the next record begins on a line of its own.
        self._torn = written < len(octets)
        if self._torn:
            raise IoError(f"cannot write {self.path}: the disk is full", "make room")
        return own_line

    def _begins_line(self, begin: int) -> bool:
        """Return whether a line begins there, behind what others have written."""
        return not begin or os.pread(self._file, 1, begin - 1) == b"\n"

    def _follow(self) -> None:
        if not os.fstat(self._file).st_nlink:
            self.reopen()  # somebody has removed the file: what is written to it now would be nowhere

    def _open(self) -> tuple[int, int, bool]:
        """Return the file, its size, and whether it ends in the middle of a line."""
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
        return file, state.st_size, state.st_size > 0 and os.pread(file, 1, state.st_size - 1) != b"\n"


_quoted: Final = encode_basestring


def _records(event: TransactionEnded) -> str:
    """Return the lines of a transaction. Written out, it takes a third of what `json.dumps` takes."""
    before = (
        f'{{"time": "{_time(event.time)}", "transaction": {_quoted(event.transaction)},'
        f' "direction": "{event.direction.word}", "client": {_quoted(event.client)},'
        f' "reverse_path": {_quoted(event.reverse_path)}, "forward_path": '
    )
    between = f', "message_id": {_quoted(event.message_id)}, "size": {event.size}, "reply": '
    after = f', "session": {_quoted(event.session)}}}\n'
    lines = [
        f'{before}{_quoted(outcome.forward_path)}, "verdict": "{outcome.verdict.word}",'
        f' "disposition": "{outcome.disposition.word}", "reason": {_quoted(outcome.reason)},'
        f' "key": {"null" if outcome.key_number is None else outcome.key_number}'
        f"{between}{_quoted(outcome.reply)}{after}"
        for outcome in event.recipients
    ]
    # Once for all of it. Texts from peers have no whole tag by now; none is to slip through.
    return shorten("".join(lines))


def _time(seconds: float) -> str:
    """Return a time in milliseconds as RFC 3339 has it."""
    second, microsecond = divmod(round(seconds * 1_000_000), 1_000_000)
    return f"{_second(second)}.{microsecond // 1000:03d}Z"


@lru_cache(maxsize=2)
def _second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")

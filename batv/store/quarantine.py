"""The quarantine: forged bounces kept in a Maildir, for an administrator to look at and to release.

A message is on the disk, name and all, before the sender hears 250. It begins with the envelope it came with
(Return-Path, X-Original-To for each recipient, X-Batv-Verdict); its line ends are LF, as in any Maildir.

Source: the Maildir specification of D. J. Bernstein; RFC 5321 section 4.4 for Return-Path.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

from batv.errors import IoError
from batv.smtp.data import Unstuffer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

__all__ = ["Quarantine", "QuarantinedMessage"]


class Quarantine:
    """A Maildir.

    Args:
        directory: the Maildir; made, mode 0700, when the first message comes.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def begin(self, name: str, header: Iterable[tuple[str, str]]) -> QuarantinedMessage:
        """Return a message to write to.

        Args:
            name: unique name of its file.
            header: fields to put before the message, printable text.

        Raises:
            IoError: the file cannot be made.
        """
        try:
            if not (self.directory / "cur").is_dir():
                self._make()
            return QuarantinedMessage(self.directory, name, header)
        except OSError as error:
            raise _failed(self.directory, error) from error

    def _make(self) -> None:
        for name in ("", "tmp", "new", "cur"):  # one by one: the mode does not hold for parents
            folder = self.directory / name
            folder.mkdir(mode=0o700, exist_ok=True)
            _sync_folder(folder.parent)


class QuarantinedMessage:
    """A message on its way into the quarantine. Kept only once `commit` has returned."""

    def __init__(self, directory: Path, name: str, header: Iterable[tuple[str, str]]) -> None:
        self._directory = directory
        self._temporary = directory / "tmp" / name
        self._final = directory / "new" / name
        self._unstuffer = Unstuffer()
        self._carry = b""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self._temporary, flags, 0o600)
        self._open = True
        self._write("".join(f"{field}: {value}\n" for field, value in header).encode("utf-8"))

    def write(self, octets: bytes) -> None:
        """Add octets of the message as they go over the wire, line ends CRLF and dots stuffed.

        Raises:
            IoError: they are not, or not wholly, in the file.
        """
        try:
            self._write(self._with_lf(self._unstuffer.feed(octets)))
        except OSError as error:
            raise _failed(self._directory, error) from error

    def commit(self) -> None:
        """Put the message on the disk and into `new`. Blocks: call it outside the event loop.

        Raises:
            IoError: the message is not in the quarantine.
        """
        # Whoever abandons the message meanwhile must not close the file under this thread's hands.
        self._open = False
        try:
            try:
                self._write(self._with_lf(self._unstuffer.finish()) + self._carry)
                os.fsync(self._file)
            finally:
                os.close(self._file)
            self._temporary.rename(self._final)
            _sync_folder(self._final.parent)
        except OSError as error:
            self.withdraw()
            raise _failed(self._directory, error) from error

    def abandon(self) -> None:
        """Take the message away unless it is committed. While that is being done elsewhere, it fails there."""
        self._close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)

    def withdraw(self) -> None:
        """Take the message away even if it is committed."""
        self.abandon()
        with suppress(OSError):
            self._final.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._file)

    def _with_lf(self, octets: bytes) -> bytes:
        octets = self._carry + octets
        self._carry = b"\r" if octets.endswith(b"\r") else b""
        return octets[: len(octets) - len(self._carry)].replace(b"\r\n", b"\n")

    def _write(self, octets: bytes) -> None:
        view = memoryview(octets)
        while view:
            view = view[os.write(self._file, view) :]


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _failed(directory: Path, error: OSError) -> IoError:
    return IoError(f"cannot write to the quarantine {directory}: {error.strerror}", "make room, or make it writable")

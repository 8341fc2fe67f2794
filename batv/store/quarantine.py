"""The quarantine: forged bounces kept in a Maildir, for an administrator to look at and to release.

A message is on the disk, name and all, before the sender hears 250. It begins with the envelope it came with
(Return-Path, X-Original-To and X-Batv-Verdict for each recipient, X-Batv-Transaction); its line ends are LF, as in any
Maildir.

Forged bounces come in floods, so the quarantine has a size that it does not grow beyond. What is in it is counted when
the service starts and then kept as a sum. An administrator deletes messages, and other processes add some: so it is
counted anew every few seconds while messages come, in a thread, and never for more than a twentieth of the time. With
several processes the limit is kept but for what the others have added since.

What an administrator lists, releases and deletes is read back by these fields, of which X-Batv-Transaction is the last:
what follows is the message's own, whatever fields that may begin with.

Source: the Maildir specification of D. J. Bernstein; RFC 5321 section 4.4 for Return-Path.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from threading import Lock, Thread
from typing import TYPE_CHECKING, Final

from batv.errors import IoError, QuarantineFullError
from batv.smtp.data import Unstuffer

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from typing import BinaryIO

__all__ = ["KeptMessage", "KeptRecipient", "Quarantine", "QuarantinedMessage"]

_BLOCK_OCTETS: Final = 4096
"""What a file takes on the disk is a multiple of this: a flood of small messages fills it as well as large ones do."""

_COUNTING_SECONDS: Final = 5.0
"""Between two counts, at the least: whoever has made room does not wait for long."""

_COUNTING_SHARE: Final = 20
"""Between two counts at least so many times what the last one took: a million files take seconds."""

_NAME = re.compile(r"(?P<name>(?P<seconds>[0-9]{1,11}\.[0-9]{6})\.[^:]+\.batv)(?::.*)?")
"""The name of a file, and the flags that a mail program has put after it."""

_FIELD = re.compile(rb"(Return-Path|X-Original-To|X-Batv-Verdict|X-Batv-Transaction): ([^\n]*)\n")
_FIELD_OCTETS: Final = 8192
"""Of a line of the envelope: a path or a reason, each of which is cut far below that."""


@dataclass(frozen=True, slots=True)
class KeptRecipient:
    """Whom a message in the quarantine was for.

    Attributes:
        path: the forward path as text, the signature of a tag in it cut out.
        verdict: the word of the verdict.
        reason: why it was given.
    """

    path: str
    verdict: str
    reason: str


@dataclass(frozen=True, slots=True)
class KeptMessage:
    """A message in the quarantine.

    Attributes:
        name: of its file, without the flags of mail programs.
        file: where it is.
        time: when it came, in POSIX seconds.
        octets: of the message as it lies there, with LF.
        sender: the reverse path as text.
        recipients: whom it was for.
        transaction: its name in log and journal.
        begins: octets of the envelope before it.
    """

    name: str
    file: Path
    time: float
    octets: int
    sender: str
    recipients: tuple[KeptRecipient, ...]
    transaction: str
    begins: int

    def content(self, most: int = -1) -> bytes:
        """Return the message as it came: line ends CRLF, dots not stuffed.

        Args:
            most: octets on the disk after which no more is read; -1 for all.

        Raises:
            IoError: it cannot be read.
        """
        try:
            with _opened(self.file) as file:
                file.seek(self.begins)
                return file.read(most).replace(b"\n", b"\r\n")
        except OSError as error:
            raise _unreadable(self.file, error) from error

    def remove(self) -> None:
        """Take the message out of the quarantine; one that is gone is gone.

        Raises:
            IoError: it is still there.
        """
        try:
            self.file.unlink(missing_ok=True)
            _sync_folder(self.file.parent)
        except OSError as error:
            remedy = "make it writable"
            raise IoError(f"cannot remove {self.file}: {(error.strerror or '').lower()}", remedy) from error


class Quarantine:
    """A Maildir.

    Args:
        directory: the Maildir; made, mode 0700, when the first message comes.
        max_octets: what its files may take on the disk; None for no limit. With 0 nothing is kept.
    """

    def __init__(self, directory: Path, max_octets: int | None = None) -> None:
        self.directory = directory
        self.max_octets = max_octets
        self._lock = Lock()
        self._octets = 0
        self._added = 0
        self._counting = False
        self._next_count = 0.0
        if max_octets:
            self._count()

    @property
    def octets(self) -> int:
        """What the files in it take on the disk, as far as it is known."""
        return self._octets

    @property
    def has_room(self) -> bool:
        """Whether there is room for another message, as far as it is known."""
        self._count_now_and_then()
        return self.max_octets is None or self._octets + _BLOCK_OCTETS <= self.max_octets

    def begin(self, name: str, header: Iterable[tuple[str, str]], *, beyond_limit: bool = False) -> QuarantinedMessage:
        """Return a message to write to.

        Args:
            name: unique name of its file.
            header: fields to put before the message, printable text.
            beyond_limit: it may be genuine, and is kept even where it has no room.

        Raises:
            QuarantineFullError: there is no room for another message.
            IoError: the file cannot be made.
        """
        self._count_now_and_then()
        if not beyond_limit:
            self.take(0)
        try:
            if not (self.directory / "cur").is_dir():
                self._make()
            return QuarantinedMessage(self, name, header, beyond_limit=beyond_limit)
        except OSError as error:
            raise _failed(self.directory, error) from error

    def kept(self) -> Iterator[KeptMessage]:
        """Yield the messages in it, in no order; what others have put there is passed over.

        Raises:
            IoError: they cannot be read.
        """
        for folder in (self.directory / "new", self.directory / "cur"):
            try:
                files = list(folder.iterdir())
            except FileNotFoundError:
                continue  # nothing has come yet
            except OSError as error:
                raise _unreadable(folder, error) from error
            for file in files:
                # Whoever moves and deletes messages does so while they are listed.
                with suppress(FileNotFoundError):
                    message = _kept(file)
                    if message is not None:
                        yield message

    def take(self, octets: int, *, beyond_limit: bool = False) -> None:
        """Take room for octets of a message, whether there is any or not if `beyond_limit`; 0 asks whether there is.

        Raises:
            QuarantineFullError: there is not so much.
        """
        with self._lock:
            limit = None if beyond_limit else self.max_octets
            if limit is not None and self._octets + max(octets, _BLOCK_OCTETS) > limit:
                raise QuarantineFullError(
                    f"the quarantine {self.directory} is full",
                    "delete messages there, or raise state.quarantine_max_mib",
                )
            self._octets += octets
            self._added += octets

    def give_back(self, octets: int) -> None:
        """Give back the room of a message that is not kept."""
        with self._lock:
            self._octets = max(self._octets - octets, 0)
            self._added -= octets

    def _count_now_and_then(self) -> None:
        if self.max_octets and not self._counting and time.monotonic() >= self._next_count:
            self._counting = True
            Thread(target=self._count, name="quarantine", daemon=True).start()

    def _count(self) -> None:
        """Count what is there. What is added meanwhile may count twice until the next time, and never not at all."""
        began = time.monotonic()
        with self._lock:
            self._added = 0
        octets = sum(_octets_below(self.directory / name) for name in ("tmp", "new", "cur"))
        took = time.monotonic() - began
        with self._lock:
            self._octets = octets + max(self._added, 0)
        self._next_count = began + took + max(_COUNTING_SECONDS, _COUNTING_SHARE * took)
        self._counting = False

    def _make(self) -> None:
        for name in ("", "tmp", "new", "cur"):  # one by one: the mode does not hold for parents
            folder = self.directory / name
            folder.mkdir(mode=0o700, exist_ok=True)
            _sync_folder(folder.parent)


class QuarantinedMessage:
    """A message on its way into the quarantine. Kept only once `commit` has returned."""

    def __init__(
        self, quarantine: Quarantine, name: str, header: Iterable[tuple[str, str]], *, beyond_limit: bool
    ) -> None:
        self._quarantine = quarantine
        self._beyond_limit = beyond_limit
        self._directory = quarantine.directory
        self._temporary = self._directory / "tmp" / name
        self._final = self._directory / "new" / name
        self._room = 0
        self._written = 0
        self._unstuffer = Unstuffer()
        self._carry = b""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._file = os.open(self._temporary, flags, 0o600)
        self._open = True
        self._kept = False
        try:
            self._write_header(header)
        except BaseException:
            self.abandon()
            raise

    def _write_header(self, header: Iterable[tuple[str, str]]) -> None:
        self._write("".join(f"{field}: {value}\n" for field, value in header).encode("utf-8"))

    def write(self, octets: bytes) -> None:
        """Add octets of the message as they go over the wire, line ends CRLF and dots stuffed.

        Raises:
            QuarantineFullError: there is no room for them; the message is to be abandoned.
            IoError: they are not, or not wholly, in the file.
        """
        try:
            self._write(self._with_lf(self._unstuffer.feed(octets)))
        except OSError as error:
            raise _failed(self._directory, error) from error

    def commit(self) -> None:
        """Put the message on the disk and into `new`. Blocks: call it outside the event loop.

        Raises:
            QuarantineFullError: there was no room for its last octets. The message is not in the quarantine.
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
            self._kept = True
            _sync_folder(self._final.parent)
        except OSError as error:
            self.withdraw()
            raise _failed(self._directory, error) from error
        except QuarantineFullError:
            self.withdraw()
            raise

    def abandon(self) -> None:
        """Take the message away unless it is committed. While that is being done elsewhere, it fails there."""
        self._close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)
        if not self._kept:
            self._give_back()

    def withdraw(self) -> None:
        """Take the message away even if it is committed."""
        self.abandon()
        with suppress(OSError):
            self._final.unlink(missing_ok=True)
        self._give_back()

    def _give_back(self) -> None:
        room, self._room = self._room, 0
        self._quarantine.give_back(room)

    def _close(self) -> None:
        if self._open:
            self._open = False
            os.close(self._file)

    def _with_lf(self, octets: bytes) -> bytes:
        octets = self._carry + octets
        self._carry = b"\r" if octets.endswith(b"\r") else b""
        return octets[: len(octets) - len(self._carry)].replace(b"\r\n", b"\n")

    def _write(self, octets: bytes) -> None:
        self._written += len(octets)
        more = _on_disk(self._written) - self._room
        if more > 0:
            self._quarantine.take(more, beyond_limit=self._beyond_limit)
            self._room += more
        view = memoryview(octets)
        while view:
            view = view[os.write(self._file, view) :]


def _kept(file: Path) -> KeptMessage | None:
    named = _NAME.fullmatch(file.name)
    if named is None:
        return None
    sender, transaction, paths, verdicts = "", "", list[str](), list[str]()
    try:
        with _opened(file) as stream:
            while not transaction:
                field = _FIELD.fullmatch(stream.readline(_FIELD_OCTETS))
                if field is None:
                    return None
                value = field[2].decode("utf-8", "backslashreplace")
                match field[1]:
                    case b"Return-Path":
                        sender = value
                    case b"X-Original-To":
                        paths.append(value)
                    case b"X-Batv-Verdict":
                        verdicts.append(value)
                    case _:
                        transaction = value
            begins, octets = stream.tell(), os.fstat(stream.fileno()).st_size
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(file, error) from error
    if not paths or len(paths) != len(verdicts):
        return None
    recipients = []
    for path, said in zip(paths, verdicts, strict=True):
        verdict, _, reason = said.partition(" (")
        recipients.append(KeptRecipient(path, verdict, reason.removesuffix(")")))
    seconds = float(named["seconds"])
    return KeptMessage(named["name"], file, seconds, octets - begins, sender, tuple(recipients), transaction, begins)


def _opened(file: Path) -> BinaryIO:
    # The folder is its user's, who may be another one than we are: no link is followed, nothing is waited for.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.fdopen(os.open(file, flags), "rb")


def _unreadable(path: Path, error: OSError) -> IoError:
    return IoError(f"cannot read {path}: {(error.strerror or '').lower()}", "run this as a user who may")


def _on_disk(octets: int) -> int:
    return -(-octets // _BLOCK_OCTETS) * _BLOCK_OCTETS


def _octets_below(folder: Path) -> int:
    total = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            # Whoever deletes messages does so while they are counted.
            with suppress(OSError):
                total += _on_disk(entry.stat(follow_symlinks=False).st_size)
    return total


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _failed(directory: Path, error: OSError) -> IoError:
    return IoError(f"cannot write to the quarantine {directory}: {error.strerror}", "make room, or make it writable")

"""The sent ledger: who sent a message with which Message-ID to whom, as keyed hashes.

A genuine reply with a null sender that goes to a plain address (a receipt, a vacation notice) names the message that it
answers. Whether this very recipient sent such a message to that very party is the question that the ledger is there to
answer: for each of a message's own addresses and each of its recipients it has a hash of both and of the Message-ID,
and another one for the recipient's domain.

A hash has 8 octets, BLAKE2b under a key of its day, which is derived from the ledger's secret with HKDF-SHA256. Among
the thirty million hashes of a month, one that was never written is found once in 10^11 times; without the secret
nobody learns from the files who wrote to whom.

Some addresses have mail that leaves unsigned: they are too long for a tag, or the site exempts some of their mail. For
each of these there is a hash of the address alone, on every day on which it sends. How far that record goes back is
told by the files: each has a row that says that it was begun under this secret, by a release which keeps the record.
Another row says that notes of a process may have been lost: then the record begins anew on that day.

Where the site wants to know of a tag that was stolen, the recipients of mail that left with a tag are counted under a
hash of it, without its signature, and so are the bounces that came to it: each on its day, and what counts is the sum.

There is one SQLite file a day, in UTC. An old day is dropped by removing its file, and a damaged one spoils no other
day. A hash is the key of its row and all that there is of it: about 20 octets with what the tree of rows leaves free,
two rows for a message to one recipient.

Rules:

1. Mail waits for nothing here. Entries are written some at a time by a thread; where they come faster than it writes,
   or cannot be written, they are dropped and counted; that mail of somebody left unsigned is written all the same.
2. Several processes may write and read. What one has noted, it finds at once, and the others after a tenth of a second,
   or after a second where hundreds of messages come in each.
3. A ledger that cannot be read is one that knows nothing: the caller is told, and does what it would do without one.
4. What a process has noted and not written yet is lost with it. A power cut may take what the disk did not have. The
   mark that the process leaves behind tells the others, and from its next start on the files do.

Source: RFC 5869 (HKDF); RFC 7693 (BLAKE2); SQLite's documentation of its write-ahead log.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import sqlite3
import time
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from threading import Condition, Event, Lock, Thread
from typing import TYPE_CHECKING, Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from batv.address import fold
from batv.budget import Account
from batv.day import Day
from batv.errors import DayError, IoError, KeyRingDataError
from batv.keyring import Secret
from batv.observe.event import Level, Notice
from batv.store.files import check_private_folder, locked, read_private, sweep, write_atomically
from batv.store.mark import Mark, left_behind
from batv.store.sealing import opened, sealed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

__all__ = ["SECRET_NAME", "Ledger", "LedgerLimits", "open_secret"]

SECRET_NAME: Final = "ledger.secret"  # noqa: S105 -- the name of a file
"""Name of the file of the ledger's secret, in the folder of the key rings."""

_SECRET_OCTETS: Final = 32
_SECRET_FILE_LIMIT: Final = 1024
_HEX_SECRET = re.compile(rb"[0-9a-f]{64}\n")
_HASH_OCTETS: Final = 8
_KEY_OCTETS: Final = 32
_PAGE_OCTETS: Final = 4096
_SUFFIX: Final = ".sqlite3"
_NAME = re.compile(r"(?P<day>[0-9]{4}-[0-9]{2}-[0-9]{2})\.sqlite3(?:\.[0-9a-f]{16}\.tmp)?(?:-wal|-shm|-journal)?")

_GATHER_SECONDS: Final = 0.05
"""For how long entries are gathered before they are written: who is answered at once may have another process."""

_BUSY_SECONDS: Final = 0.5
_BUSY_ROWS: Final = 100
"""For how long, after a batch of at least so many rows: rows lie all over the file, and a page that several of them
share is written once."""

_AGAIN_SECONDS: Final = 1.0
"""After a failure, before it is tried again."""

_WRITE_SECONDS: Final = 5.0
_READ_SECONDS: Final = 1.0
"""For which another process may hold the lock of a file."""

_CLOSE_SECONDS: Final = 10.0
_TICK_SECONDS: Final = 1.0

_WAITING_ROWS: Final = 200_000
"""Rows that may wait to be written: some seconds of the highest rate, and less than 20 MB."""

_BATCH_ROWS: Final = 20_000

_SIZE_ROWS: Final = 200_000
"""Rows after which the size of all files is looked at again: 4 MB."""

_CLAIM_ROWS: Final = 64
"""Hashes that one look is for; a message that names more is looked up by the first."""

_READER_CACHE_KIB: Final = 256
_WRITER_CACHE_KIB: Final = 16_384

_UNSIGNED: Final = b"\0unsigned"
"""Stands for the party in the hash of an address whose mail left unsigned: no party has a NUL."""

_SOMEBODY: Final = b""
"""Stands there for the address where an entry was dropped: it may have been anybody's."""

_KEPT: Final = b"\0kept"
"""Stands for the party in the row with which a file begins: the record is kept in it, under this secret."""

_LOST: Final = b"\0lost"
"""Stands there in the row of a day on which it was found that notes were lost."""

_RECIPIENTS: Final = b"\0recipients"
_BOUNCES: Final = b"\0bounces"
"""Stand there in the hashes of counts."""

_KEEPS_MORE: Final = 1
"""The version of files, as SQLite keeps it, from which on they tell from their first hour what came back to a tag."""

_COUNTED: Final = "CREATE TABLE IF NOT EXISTS counted (hash INTEGER PRIMARY KEY, times INTEGER NOT NULL)"
_TABLES: Final = f"""\
PRAGMA user_version = {_KEEPS_MORE};
{_COUNTED};
CREATE TABLE sent (hash INTEGER PRIMARY KEY);
CREATE TABLE rescued (hash INTEGER PRIMARY KEY, times INTEGER NOT NULL);
"""
_ADD: Final = "INSERT OR IGNORE INTO sent SELECT value FROM json_each(?)"
_COUNT: Final = (
    "INSERT INTO counted SELECT key, value FROM json_each(?) WHERE true"
    " ON CONFLICT (hash) DO UPDATE SET times = times + excluded.times"
)
_COUNTS: Final = "SELECT hash, times FROM counted WHERE hash IN (?, ?)"
_FIND: Final = "SELECT 1 FROM json_each(?) AS claim JOIN sent ON sent.hash = claim.value LIMIT 1"
_TAKE: Final = (
    "INSERT INTO rescued VALUES (?, 1) ON CONFLICT (hash) DO UPDATE SET times = times + 1 WHERE times < ?"
    " RETURNING times"
)
_GIVE_BACK: Final = "UPDATE rescued SET times = times - 1 WHERE hash = ? AND times > 0"


@dataclass(frozen=True, slots=True)
class LedgerLimits:
    """How much the ledger keeps.

    Attributes:
        keep_days: days for which an entry is kept; today is the first.
        max_octets: what its files may take on the disk; beyond that the oldest days go.
        max_rescues: messages a day (UTC) that are let through to one recipient, and to one tag that has too many.
        max_bounces_per_recipient: bounces that a tag may have for each recipient of mail that left with it; 0 for any
            number, and then nobody counts them.
    """

    keep_days: int = 30
    max_octets: int = 2 << 30
    max_rescues: int = 100
    max_bounces_per_recipient: int = 0


@dataclass(slots=True)
class _Rows:
    """Rows for the file of a day.

    Attributes:
        sent: hashes that are to be there.
        counts: what is to be added to counts, by hash.
    """

    sent: set[int] = field(default_factory=set)
    counts: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.sent) + len(self.counts)

    def add(self, other: _Rows) -> None:
        self.sent |= other.sent
        for row, times in other.counts.items():
            self.counts[row] = self.counts.get(row, 0) + times

    def take(self, most: int) -> _Rows:
        """Take out all counts, and hashes up to a number."""
        taken = _Rows(set(islice(self.sent, most)), self.counts)
        self.sent -= taken.sent
        self.counts = {}
        return taken


class Ledger:
    """The sent ledger of this host.

    Args:
        directory: its folder; made, mode 0700, when something is written. On a local file system.
        secret: what the keys of its days are derived from.
        today: returns the day in UTC.
        limits: how much it keeps.
        ours: tells whether a domain is ours: a sender's address elsewhere is not noted, since nothing to it is judged.
    """

    def __init__(
        self,
        directory: Path,
        secret: Secret,
        today: Callable[[], Day],
        limits: LedgerLimits,
        ours: Callable[[bytes], bool],
    ) -> None:
        self.directory = directory
        self.limits = limits
        self._ours = ours
        self._secret = secret
        self._today = today
        self._keys: dict[Day, blake2b] = {}
        self._lock = Lock()
        self._written = Condition(self._lock)
        self._waiting: dict[Day, _Rows] = {}
        self._in_hand: tuple[Day, _Rows] | None = None
        self._dropped = 0
        self._nameless = 0
        self._fault: Exception | None = None
        self._wake = Event()
        self._closing = Event()
        self._writer: Thread | None = None
        self._turn = Lock()
        self._counts = Lock()
        self._reading = Lock()
        self._readers: dict[Day, sqlite3.Connection] = {}
        self._listed: tuple[Day, float] | None = None
        self._marks = False
        self._mark: Mark | None = None
        self._anew = 0
        self._days: tuple[Day, ...] = ()

    def begin(self) -> None:
        """Have a mark while there may be notes that are not written: to be called before mail is noted that leaves.

        Where others have left theirs behind, the record of unsigned mail begins anew. What cannot be done yet is done
        when the disk takes entries again. It waits for the disk.
        """
        self._marks = True
        try:
            self._keep_marks()
        except (sqlite3.Error, OSError) as error:
            self._failed(error)

    # What the proxies call. Nothing here waits for the disk.

    def note(self, message_id: bytes, senders: Iterable[bytes], recipients: Iterable[bytes]) -> None:
        """Note a message that was sent today.

        Args:
            message_id: without its brackets; empty if it has none, which is counted.
            senders: addresses that replies to it may go to.
            recipients: addresses that it was sent to.
        """
        own = {address for address in {fold(each) for each in senders} if self._ours(address.rpartition(b"@")[2])}
        if not own:
            return
        if not message_id:
            self._nameless += 1
            return
        day = self._today()
        parties = {name for each in recipients for name in _names(each)}
        self._add(day, _Rows(set(self._hashes(day, (message_id,), own, parties))))

    def note_unsigned(self, sender: bytes) -> None:
        """Note that mail of an address of ours has left unsigned today; where there is no room, that somebody's has."""
        day = self._today()
        self._add_unsigned(day, _Rows({self._hash_of(day, sender, _UNSIGNED)}))

    def note_signed(self, account: bytes, recipients: int) -> None:
        """Count recipients of mail that left with a tag today."""
        day = self._today()
        self._add(day, _Rows(counts={self._hash_of(day, account, _RECIPIENTS): recipients}))

    def note_bounce(self, account: bytes) -> None:
        """Count a bounce that came to a tag today."""
        day = self._today()
        self._add(day, _Rows(counts={self._hash_of(day, account, _BOUNCES): 1}))

    def take_over(self, other: Ledger) -> None:
        """Let wait here what another one could not write before it was closed; what it has not told is told here."""
        with other._lock:
            waiting, other._waiting = other._waiting, {}
            dropped, fault = other._dropped, other._fault
        with self._lock:
            self._dropped += dropped
            self._fault = self._fault or fault
        self._nameless += other._nameless
        for day, rows in waiting.items():
            self._add_unsigned(day, rows)
        if self._mark is not None:
            other._remove_mark()

    def _add_unsigned(self, day: Day, rows: _Rows) -> None:
        """Let rows wait that may say whose mail left unsigned: where there is no room, it may be anybody's."""
        if not self._add(day, rows):
            self._add(day, _Rows({self._hash_of(day, _SOMEBODY, _UNSIGNED)}), beyond_limit=True)

    def _add(self, day: Day, rows: _Rows, *, beyond_limit: bool = False) -> bool:
        """Let rows wait to be written, and return whether there was room for them."""
        with self._lock:
            full = not beyond_limit and sum(map(len, self._waiting.values())) + len(rows) > _WAITING_ROWS
            if full or self._closing.is_set():
                self._dropped += 1
                return False
            before = self._waiting.get(day)
            if before is None:
                self._waiting[day] = rows
            else:
                before.add(rows)
            if self._writer is None:
                writer = Thread(target=self._write_on, name="ledger", daemon=True)
                try:
                    writer.start()
                except RuntimeError as error:  # as many as the system allows: the next entry tries again
                    self._fault = error
                else:
                    self._writer = writer
        if not self._wake.is_set():
            self._wake.set()
        return True

    def notices(self) -> list[Notice]:
        """Return what an administrator should know and has not been told: what is not in the ledger, and why."""
        found = []
        nameless, self._nameless = self._nameless, 0
        with self._lock:
            dropped, self._dropped = self._dropped, 0
            anew, self._anew = self._anew, 0
            fault, self._fault = self._fault, None
        if nameless:
            found.append(
                Notice(Level.WARNING, "mail without a Message-ID: replies cannot name it", {"count": nameless})
            )
        if dropped:
            found.append(Notice(Level.WARNING, "mail not noted in the ledger", {"count": dropped}))
        if anew:
            what = "notes for the ledger may be lost: the record of unsigned mail begins anew"
            found.append(Notice(Level.WARNING, what, {"processes": anew}))
        if fault is not None:
            fields = {"ledger": self.directory, "cause": fault}
            found.append(Notice(Level.ERROR, "ledger fails: replies count as it finds them", fields))
        return found

    # What blocks: to be called outside the event loop.

    def knows(self, message_ids: Iterable[bytes], sender: bytes, parties: Iterable[bytes]) -> bool:
        """Return whether a message with one of these ids was sent by this sender to one of these parties.

        Args:
            message_ids: without their brackets.
            sender: the address.
            parties: each an address, or `@` and a domain for anybody there.

        Raises:
            IoError: that is not known, since a day's file cannot be read.
        """
        ids, own, names = tuple(message_ids), (fold(sender),), [fold(each) for each in parties]
        if not ids or not names:
            return False
        return self._has(lambda day: list(islice(self._hashes(day, ids, own, names), _CLAIM_ROWS)))

    def may_have_left_unsigned(self, sender: bytes, days: int) -> bool:
        """Return whether mail of an address has left unsigned; True too where that cannot be told.

        Args:
            sender: the address.
            days: for which mail has bounces. A record that does not go back so far cannot tell.
        """
        try:
            if self._has(lambda day: [self._hash_of(day, each, _UNSIGNED) for each in (sender, _SOMEBODY)]):
                return True
            # First the marks: one that is gone meanwhile is in the files.
            if left_behind(self.directory):
                return True
            since = self._keeps_unsigned_since()
        except (IoError, OSError):  # of the former the log is told
            return True
        return since is None or self._today() - since <= days

    def account(self, account: bytes) -> Account:
        """Return what was sent with a tag, and what has come back.

        Raises:
            IoError: that is not known, since a day's file cannot be read.
        """
        with self._counting():
            recipients, bounces = (self._waiting_count(account, what) for what in (_RECIPIENTS, _BOUNCES))
            with self._reading:
                try:
                    for day in self._days_on_disk(self._today()):
                        if self._version(day) < _KEEPS_MORE:
                            continue
                        sent, back = self._hash_of(day, account, _RECIPIENTS), self._hash_of(day, account, _BOUNCES)
                        found = dict(self._reader(day).execute(_COUNTS, (sent, back)))
                        recipients += found.get(sent, 0)
                        bounces += found.get(back, 0)
                except (sqlite3.Error, OSError) as error:
                    self._forget_readers()
                    self._failed(error)
                    raise _unreadable(self.directory, error) from error
        return Account(recipients, bounces)

    def take_rescue(self, sender: bytes) -> bool:
        """Count a message that is to be let through to a sender, or to an account, and return whether it may be.

        Raises:
            IoError: it cannot be counted.
        """
        day = self._today()
        try:
            with closing(self._open(day, _READ_SECONDS)) as connection:
                found = connection.execute(_TAKE, (self._hash_of(day, sender), self.limits.max_rescues)).fetchone()
        except (sqlite3.Error, OSError) as error:
            self._failed(error)
            raise _unreadable(self.directory, error) from error
        return found is not None

    def give_back_rescue(self, sender: bytes) -> None:
        """Count a message no more that was not delivered after all."""
        day = self._today()
        try:
            with closing(self._open(day, _READ_SECONDS)) as connection:
                connection.execute(_GIVE_BACK, (self._hash_of(day, sender),))
        except (sqlite3.Error, OSError) as error:
            self._failed(error)

    def flush(self, seconds: float = _CLOSE_SECONDS) -> bool:
        """Wait until what was noted is written, and return whether it is.

        Args:
            seconds: how long to wait.
        """
        with self._written:
            return self._written.wait_for(lambda: not self._waiting and self._in_hand is None, seconds)

    def close(self) -> None:
        """Write what waits, and close the files."""
        self._closing.set()
        self._wake.set()
        if self._writer is not None:
            self._writer.join(_CLOSE_SECONDS)
        elif self._waiting:  # no thread could be started
            self._write_on()
        with self._reading:
            self._forget_readers()
        if self.flush(0):
            self._remove_mark()
        elif self._mark is not None:
            self._mark.leave()

    # Hashes.

    def _hashes(
        self, day: Day, message_ids: Iterable[bytes], senders: Iterable[bytes], parties: Iterable[bytes]
    ) -> Iterator[int]:
        keyed = self._keyed(day)
        for message_id in message_ids:
            for sender in senders:
                # No address holds a NUL, so that no two triples are the same octets.
                begun = keyed.copy()
                begun.update(b"%b\0%b\0" % (message_id.replace(b"\0", b" "), sender))
                for party in parties:
                    state = begun.copy()
                    state.update(party)
                    yield int.from_bytes(state.digest(), "big", signed=True)

    def _hash_of(self, day: Day, sender: bytes, what: bytes = b"") -> int:
        return next(self._hashes(day, (b"",), (fold(sender),), (what,)))

    def _keyed(self, day: Day) -> blake2b:
        state = self._keys.get(day)
        if state is None:
            info = b"batv sent ledger " + day.iso().encode()
            key = HKDF(SHA256(), _KEY_OCTETS, salt=None, info=info).derive(self._secret.octets)
            if len(self._keys) > 2 * self.limits.keep_days:
                self._keys.clear()
            state = self._keys[day] = blake2b(digest_size=_HASH_OCTETS, key=key)
        return state

    # Looks.

    def _has(self, rows_on: Callable[[Day], Sequence[int]]) -> bool:
        """Return whether any of the rows is there that a day has for something; raises IoError if that is not known."""
        # First what waits: it may come to the disk meanwhile, and nothing goes the other way.
        if any(self._waits(day, rows_on(day)) for day in self._unwritten_days()):
            return True
        fault: Exception | None = None
        today = self._today()
        with self._reading:
            try:
                days = self._days_on_disk(today)
            except OSError as error:
                raise _unreadable(self.directory, error) from error
            for day in days:
                rows = list(rows_on(day))
                try:
                    if self._reader(day).execute(_FIND, (str(rows),)).fetchone() is not None:
                        return True
                except (sqlite3.Error, OSError) as error:
                    self._forget_reader(day)
                    fault = error
        if fault is not None:
            self._failed(fault)
            raise _unreadable(self.directory, fault) from fault
        return False

    def _keeps_unsigned_since(self) -> Day | None:
        """Return since when it is told whose mail left unsigned, without a gap; raises IoError if that is not known."""
        since = None
        with self._reading:
            try:
                for day in self._days_on_disk(self._today()):
                    if not self._has_row(day, _KEPT):
                        break
                    since = day
                    if self._has_row(day, _LOST):
                        break
            except (sqlite3.Error, OSError) as error:
                self._forget_readers()
                self._failed(error)
                raise _unreadable(self.directory, error) from error
        return since

    def _has_row(self, day: Day, what: bytes) -> bool:
        row = self._hash_of(day, _SOMEBODY, what)
        return self._reader(day).execute(_FIND, (str([row]),)).fetchone() is not None

    def _version(self, day: Day) -> int:
        (version,) = self._reader(day).execute("PRAGMA user_version").fetchone()
        return int(version)

    # What is not written yet.

    def _unwritten_days(self) -> set[Day]:
        with self._lock:
            return {*self._waiting, *((self._in_hand[0],) if self._in_hand is not None else ())}

    def _waits(self, day: Day, rows: Iterable[int]) -> bool:
        with self._lock:
            return any(row in each.sent for each in self._unwritten(day) for row in rows)

    @contextmanager
    def _counting(self) -> Iterator[None]:
        """Let nobody else look at counts, or write them; who waits is next, however soon others come again."""
        with self._turn:
            self._counts.acquire()
        try:
            yield
        finally:
            self._counts.release()

    def _waiting_count(self, account: bytes, what: bytes) -> int:
        found = 0
        for day in self._unwritten_days():
            row = self._hash_of(day, account, what)
            with self._lock:
                found += sum(each.counts.get(row, 0) for each in self._unwritten(day))
        return found

    def _unwritten(self, day: Day) -> Iterator[_Rows]:
        if day in self._waiting:
            yield self._waiting[day]
        if self._in_hand is not None and self._in_hand[0] == day:
            yield self._in_hand[1]

    # The thread that writes.

    def _write_on(self) -> None:
        connection: sqlite3.Connection | None = None
        open_day: Day | None = None
        rows_since = _SIZE_ROWS
        written = 0
        while True:
            self._wake.wait()
            self._closing.wait(_GATHER_SECONDS if written < _BUSY_ROWS else _BUSY_SECONDS)
            self._wake.clear()
            written = 0
            failed = False
            while not failed and (batch := self._batch()) is not None:
                day, rows = batch
                try:
                    if open_day != day or connection is None or rows_since >= _SIZE_ROWS:
                        self._drop_old()
                        self._keep_marks()
                        rows_since = 0
                    if open_day != day or connection is None:
                        if connection is not None:
                            connection.close()
                        connection, open_day = None, day
                        connection = self._open(day, _WRITE_SECONDS)
                        connection.execute(f"PRAGMA cache_size = -{_WRITER_CACHE_KIB}")
                    connection.execute(_ADD, (str(sorted(rows.sent)),))  # neighbours lie on the same page
                    if rows.counts:
                        # Last, since what fails is done again; and nobody looks before it counts in one place alone.
                        with self._counting():
                            connection.execute(_COUNT, (json.dumps(rows.counts),))
                            rows.counts = {}
                    rows_since += len(rows)
                    written += len(rows)
                except (sqlite3.Error, OSError) as error:
                    if connection is not None:
                        with suppress(sqlite3.Error):
                            connection.close()
                    connection = None
                    self._put_back(day, rows)
                    self._failed(error)
                    failed = True
            if self._closing.is_set() and (failed or not self._waiting):
                break
            if failed and not self._closing.wait(_AGAIN_SECONDS):
                self._wake.set()
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _batch(self) -> tuple[Day, _Rows] | None:
        with self._lock:
            self._in_hand = None
            day = next(iter(self._waiting), None)
            if day is None:
                self._written.notify_all()
                return None
            waiting = self._waiting[day]
            rows = waiting.take(_BATCH_ROWS)
            if not waiting:
                del self._waiting[day]
            self._in_hand = day, rows
            return self._in_hand

    def _put_back(self, day: Day, rows: _Rows) -> None:
        with self._lock:
            self._waiting.setdefault(day, _Rows()).add(rows)
            self._in_hand = None

    def _failed(self, error: Exception) -> None:
        with self._lock:
            self._fault = error

    # Marks.

    def _keep_marks(self) -> None:
        """Make the mark that is wanted, and let the files tell what those say that others have left behind.

        Raises:
            sqlite3.Error, OSError: it is not done.
        """
        if not self._marks:
            return
        if self._mark is None:
            self._make_folder()
            self._mark = Mark.make(self.directory)
        left = left_behind(self.directory)
        if not left:
            return
        day = self._today()
        with closing(self._open(day, _READ_SECONDS)) as connection:
            connection.execute(_ADD, (str([self._hash_of(day, _SOMEBODY, _LOST)]),))
        for path in left:
            path.unlink(missing_ok=True)
        with self._lock:
            self._anew += len(left)

    def _remove_mark(self) -> None:
        if self._mark is not None:
            with suppress(OSError):  # then the record begins anew for nothing
                self._mark.remove()

    # Files.

    def _make_folder(self) -> None:
        self.directory.mkdir(mode=0o700, exist_ok=True)

    def _path(self, day: Day) -> Path:
        return self.directory / f"{day.iso()}{_SUFFIX}"

    def _open(self, day: Day, seconds: float) -> sqlite3.Connection:
        """Open the file of a day to write to, and make it if there is none."""
        path = self._path(day)
        if not path.exists():
            self._make(day, path)
        connection = _connected(path, seconds)
        try:
            # A commit does not wait for the disk; the log of a crashed process is whole all the same.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(_COUNTED)  # which a file has not that was made before there were counts
        except BaseException:
            connection.close()
            raise
        return connection

    def _make(self, day: Day, path: Path) -> None:
        """Make the file of a day, which has its tables and its first row from the moment it has its name."""
        self._make_folder()
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
        # SQLite gives its other files the mode of this one.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        try:
            with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
                connection.execute(f"PRAGMA page_size = {_PAGE_OCTETS}")
                connection.executescript(_TABLES)
                connection.execute(_ADD, (str([self._hash_of(day, _SOMEBODY, _KEPT)]),))
                connection.execute("PRAGMA journal_mode = WAL")
            with suppress(FileExistsError):  # another process was faster
                os.link(temporary, path, follow_symlinks=False)
        finally:
            for name in self.directory.glob(f"{temporary.name}*"):
                name.unlink(missing_ok=True)

    def _reader(self, day: Day) -> sqlite3.Connection:
        connection = self._readers.get(day)
        if connection is None:
            connection = _connected(self._path(day), _READ_SECONDS)
            self._readers[day] = connection
            connection.execute(f"PRAGMA cache_size = -{_READER_CACHE_KIB}")
        return connection

    def _forget_reader(self, day: Day) -> None:
        connection = self._readers.pop(day, None)
        if connection is not None:
            with suppress(sqlite3.Error):
                connection.close()

    def _forget_readers(self) -> None:
        for day in list(self._readers):
            self._forget_reader(day)

    def _days_on_disk(self, today: Day) -> Sequence[Day]:
        """Return the days that count and have a file, the last one first; close what is open of others."""
        try:
            changed = self.directory.stat().st_mtime
        except FileNotFoundError:
            return ()
        # Names that come within one tick of the clock leave the same time: what has just changed is read once more.
        if (today, changed) != self._listed or time.time() - changed < _TICK_SECONDS:
            days = {
                day
                for day, entry in self._files()
                if -1 <= today - day < self.limits.keep_days and entry.name.endswith(_SUFFIX)
            }
            for day in self._readers.keys() - days:
                self._forget_reader(day)
            self._listed, self._days = (today, changed), tuple(sorted(days, reverse=True))
        return self._days

    def _files(self) -> Iterator[tuple[Day, os.DirEntry[str]]]:
        try:
            entries = os.scandir(self.directory)
        except FileNotFoundError:
            return
        with entries:
            for entry in entries:
                match = _NAME.fullmatch(entry.name)
                with suppress(DayError):  # the name of no day is none of ours
                    if match is not None:
                        yield Day.from_iso(match["day"]), entry

    def _drop_old(self) -> None:
        """Remove the days that are over, and the oldest of those that take too much.

        Raises:
            OSError: what is left takes more than there may be.
        """
        today = self._today()
        sizes: dict[Day, int] = {}
        files: dict[Day, list[str]] = {}
        for day, entry in self._files():
            with suppress(OSError):
                sizes[day] = sizes.get(day, 0) + entry.stat(follow_symlinks=False).st_size
                files.setdefault(day, []).append(entry.path)
        total = sum(sizes.values())
        for day in sorted(files):
            if day >= today or (today - day < self.limits.keep_days and total <= self.limits.max_octets):
                break
            total -= sizes[day]
            for name in sorted(files[day]):
                with suppress(OSError):
                    Path(name).unlink()
        if total > self.limits.max_octets:
            raise OSError("one day takes more than ledger.max_mib allows: raise it")


def _connected(path: Path, seconds: float) -> sqlite3.Connection:
    # Not made where it is not there, nor opened for reading only: its log may have to be recovered.
    uri = f"{path.absolute().as_uri()}?mode=rw"
    return sqlite3.connect(uri, timeout=seconds, isolation_level=None, check_same_thread=False, uri=True)


def open_secret(directory: Path, master_key: Secret | None) -> Secret:
    """Return the ledger's secret, which is made where there is none.

    It lies with the key rings, not with the ledger: a copy of the ledger alone tells nothing. A secret that is lost
    takes the ledger with it, and nothing else.

    Args:
        directory: folder of the key rings.
        master_key: 32 octets under which it is sealed; None where rings are plain. A plain one is read too.

    Raises:
        KeyRingDataError: the file is damaged, or was sealed under another master key.
        CannotCreateError, IoError, TryAgainError, UnsafeFileError: it cannot be read or made.
    """
    path = directory / SECRET_NAME
    plain = _read_secret(path, master_key)
    if plain is not None:
        return plain
    owner = check_private_folder(directory) if os.geteuid() == 0 else None
    with locked(directory, owner=owner):
        sweep(directory, SECRET_NAME)
        plain = _read_secret(path, master_key)
        if plain is None:
            plain = Secret(secrets.token_bytes(_SECRET_OCTETS))
            octets = plain.octets.hex().encode() + b"\n"
            if master_key is not None:
                octets = sealed(octets, SECRET_NAME, master_key)
            write_atomically(path, octets, owner=owner)
    return plain


def _read_secret(path: Path, master_key: Secret | None) -> Secret | None:
    try:
        octets = read_private(path, _SECRET_FILE_LIMIT)
    except FileNotFoundError:
        return None
    remedy = "restore it from a copy, or remove it and begin a new ledger"
    if octets.startswith(b"{"):
        if master_key is None:
            raise KeyRingDataError(f"{path} is sealed, and the settings name no master key", "name it, or " + remedy)
        try:
            fields = json.loads(octets)
        except ValueError as error:
            raise KeyRingDataError(f"{path} is damaged", remedy) from error
        octets = opened(fields, SECRET_NAME, path, master_key)
    if not _HEX_SECRET.fullmatch(octets):
        raise KeyRingDataError(f"{path} is damaged", remedy)
    return Secret(bytes.fromhex(octets.decode()))


def _names(recipient: bytes) -> tuple[bytes, bytes]:
    """Return what a party may be known by: its address, and its domain."""
    address = fold(recipient)
    return address, b"@" + address.rpartition(b"@")[2]


def _unreadable(directory: Path, error: Exception) -> IoError:
    return IoError(f"cannot use the ledger {directory}: {error}", "mend it, or remove the file of that day")

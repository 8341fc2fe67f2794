"""The disk under journal and quarantine is full, read-only, broken or slow: no forged bounce is taken and forgotten.

What cannot be recorded is put off, and all mail that needs no record goes on meanwhile.
"""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final, Self

import pytest

from tests.faults.table import Flow
from tests.support.disk import SmallDisk, may_mount
from tests.support.faulty_hop import FaultyHop
from tests.support.keeping_client import Attempt, Letter, attempt
from tests.support.service import SERVE, ServiceProcess, full_disk
from tests.support.smtp_client import SmtpClient
from tests.support.tracing import TRACEABLE, injected

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_DISK_OCTETS: Final = 1 << 20
_MANY: Final = 200
_SLOW_SECONDS: Final = 2.0

_numbers: Final = itertools.count(1)

_FORGED: Final = b"eve@example.com"
_GENUINE: Final = b"ann@example.com"


class Post:
    """A service whose journal and quarantine are on a disk of their own, and its next hop.

    Args:
        folder: for both.
        on_forged: what forged bounces get.
        state: where journal and quarantine are.
        fsync: whether the journal is synced.
        before: what the service runs first.
    """

    def __init__(self, folder: Path, on_forged: str, state: Path, *, fsync: bool = False, before: str = "") -> None:
        self.hop: Final = FaultyHop(folder / "record")
        self.state: Final = state
        self._on_forged: Final = on_forged
        self._stack: Final = ExitStack()
        self._stack.enter_context(self.hop)
        settings = f'[state]\ndirectory = "{state}"\n[journal]\nfsync = {str(fsync).lower()}\n'
        self.service: Final = ServiceProcess(
            folder, self.hop.address, settings, on_forged=on_forged, code=f"{TRACEABLE}\n{before}\n{SERVE}"
        )
        self._stack.enter_context(self.service)

    def __enter__(self) -> Self:
        """Return it."""
        return self

    def __exit__(self, *_: object) -> None:
        """End both."""
        self._stack.close()

    def forged(self, client: SmtpClient, octets: int = 300, *, mixed: bool = False) -> tuple[Letter, Attempt]:
        """Send a forged bounce, to a genuine recipient too if it is mixed; return it, and what became of it."""
        letter = Letter(f"forged-{next(_numbers)}", octets)
        paths = {_FORGED: _FORGED, **({_GENUINE: self.service.tagged(_GENUINE)} if mixed else {})}
        return letter, attempt(client, letter, b"", paths)

    def on_record(self, letter: Letter) -> bool:
        """Whether the bounce is where it has to be before the sender hears 250."""
        identity = f"<{letter.identity}@client.example>"
        lines = (self.state / "journal.jsonl").read_text(encoding="utf-8").splitlines()
        journalled = any(identity in line and line.endswith("}") and '"reply": "250' in line for line in lines)
        if self._on_forged == "discard":
            return journalled
        kept = (self.state / "quarantine/new").glob("*")
        return journalled and any(identity in path.read_text(encoding="utf-8", errors="replace") for path in kept)

    def ordinary_mail_goes_on(self) -> None:
        """Send mail of each kind that needs no record."""
        for flow, sender in ((Flow.OUTBOUND, b"joe@example.com"), (Flow.GENUINE, b"ann@peer.example")):
            self._accepted(flow, sender, _GENUINE)
        self._accepted(Flow.GENUINE, b"", self.service.tagged(_GENUINE))

    def _accepted(self, flow: Flow, sender: bytes, path: bytes) -> None:
        letter = Letter(f"ordinary-{next(_numbers)}")
        with SmtpClient(self.service.address(flow.proxy)) as client:
            made = attempt(client, letter, sender, {_GENUINE: path})
        assert made.accepted, made.heard
        assert letter.digest in {taken.digest for taken in self.hop.taken}


def check_put_off(post: Post, letter: Letter, made: Attempt) -> None:
    """Hold a forged bounce against the law: taken and on record, or put off."""
    if made.accepted:
        assert post.on_record(letter), "250 only for what is on record"
    else:
        assert 451 in made.codes, made.heard
        assert set(made.codes) <= {250, 354, 451, 503}, made.heard


# Full.


@pytest.fixture(params=["discard", "quarantine"])
def on_forged(request: pytest.FixtureRequest) -> str:
    """What forged bounces get."""
    return str(request.param)


class FullDisk:
    """A disk that is filled and emptied: a small one where this process may mount it, else a limit for each file.

    Args:
        folder: where it is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder: Final = folder
        self._disk: Final = SmallDisk(folder, _DISK_OCTETS) if may_mount() else None
        self._limit: Final = ExitStack()

    def __enter__(self) -> Self:
        """Mount it."""
        if self._disk is not None:
            self._disk.__enter__()
        else:
            self.folder.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        """Take it away."""
        self._limit.close()
        if self._disk is not None:
            self._disk.__exit__()

    def fill(self, pid: int) -> None:
        """Leave no room for a process."""
        if self._disk is not None:
            self._disk.fill()
        else:
            journal = self.folder / "journal.jsonl"
            self._limit.enter_context(full_disk(journal.stat().st_size if journal.exists() else 0, pid))

    def empty(self) -> None:
        """Make room again."""
        if self._disk is not None:
            self._disk.empty()
        self._limit.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[FullDisk]:
    """A disk for journal and quarantine."""
    with FullDisk(tmp_path / "state") as there:
        yield there


def test_a_full_disk_forgets_no_forged_bounce(tmp_path: Path, disk: FullDisk, on_forged: str) -> None:
    """It is taken for as long as there is room for its record, then put off, then taken again."""
    with Post(tmp_path, on_forged, disk.folder) as post, SmtpClient(post.service.inbound) as client:
        letter, made = post.forged(client)
        assert made.accepted
        assert post.on_record(letter)
        disk.fill(post.service.pid)
        for _ in range(_MANY):
            letter, made = post.forged(client)
            check_put_off(post, letter, made)
            if not made.accepted:
                break
        assert not made.accepted, "a full disk takes no more"
        post.ordinary_mail_goes_on()
        disk.empty()
        letter, made = post.forged(client)
        assert made.accepted, made.heard
        assert post.on_record(letter)


def test_a_disk_that_fills_up_forgets_no_forged_bounce(tmp_path: Path, disk: FullDisk, on_forged: str) -> None:
    """Wherever in a message, or in a record, the last octet of room is."""
    with Post(tmp_path, on_forged, disk.folder) as post, SmtpClient(post.service.inbound) as client:
        if may_mount():
            outcomes = set()
            for number in range(_MANY):
                letter, made = post.forged(client, 20_000 + 997 * number)
                check_put_off(post, letter, made)
                outcomes.add(bool(made.accepted))
                if on_forged == "discard" and number == 10:
                    disk.fill(post.service.pid)
                if not made.accepted and number > 60:
                    break
            assert outcomes == {True, False}
        else:
            for octets in range(0, 3000, 250):
                with full_disk(octets, post.service.pid):
                    check_put_off(post, *post.forged(client))
        post.ordinary_mail_goes_on()


def test_a_bounce_with_genuine_recipients_too_is_not_sent_on_where_the_forged_one_cannot_be_recorded(
    tmp_path: Path, disk: FullDisk, on_forged: str
) -> None:
    """Else the client would send it to the genuine ones again and again."""
    with Post(tmp_path, on_forged, disk.folder) as post, SmtpClient(post.service.inbound) as client:
        _, made = post.forged(client, mixed=True)
        assert len(made.accepted) == 2
        disk.fill(post.service.pid)
        post.hop.forget()
        for _ in range(3):
            letter, made = post.forged(client, mixed=True)
            delivered = any(taken.identity == letter.identity for taken in post.hop.taken)
            # Where only a limit for each file says that it is full, there is room to be seen, and the log has it.
            assert delivered is bool(made.accepted), made.heard
            if may_mount():
                assert not made.accepted, made.heard
        disk.empty()


# Read-only or broken.


_BREAKS: Final = [
    ("discard", "write", "journal.jsonl"),
    ("discard", "fdatasync", "journal.jsonl"),
    ("quarantine", "write", "journal.jsonl"),
    ("quarantine", "fdatasync", "journal.jsonl"),
    ("quarantine", "fsync", "quarantine/new"),
    # Each message is a file of its own, with a name that nobody knows before.
    ("quarantine", "openat", ""),
    ("quarantine", "fsync", ""),
    ("quarantine", "rename", ""),
]


@pytest.fixture(scope="module")
def posts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Post]]:
    """A service for each thing that forged bounces get, which syncs its journal."""
    with ExitStack() as stack:
        there = {}
        for name in ("discard", "quarantine"):
            folder = tmp_path_factory.mktemp(name)
            there[name] = stack.enter_context(Post(folder, name, folder / "state", fsync=True))
            with SmtpClient(there[name].service.inbound) as client:
                assert there[name].forged(client)[1].accepted
        yield there


@pytest.mark.strace
@pytest.mark.parametrize("error", ["EROFS", "EIO", "ENOSPC", "EDQUOT"])
@pytest.mark.parametrize(("what", "call", "name"), _BREAKS, ids=["-".join(each).strip("-") for each in _BREAKS])
def test_a_disk_that_fails_forgets_no_forged_bounce(
    posts: dict[str, Post], what: str, call: str, name: str, error: str
) -> None:
    """A file system that has become read-only, as Linux makes it after errors, or that gives errors itself."""
    post = posts[what]
    with SmtpClient(post.service.inbound) as client:
        with injected(post.service.pid, call, f"error={error}", post.state / name if name else None):
            letter, made = post.forged(client)
            check_put_off(post, letter, made)
            assert not made.accepted
            assert not (post.state / "quarantine/new").is_dir() or not post.on_record(letter)
            post.ordinary_mail_goes_on()
        letter, made = post.forged(client)
        assert made.accepted, made.heard
        assert post.on_record(letter)


# Slow.


@pytest.mark.strace
@pytest.mark.parametrize(
    ("what", "call", "name"),
    [("discard", "fdatasync", "journal.jsonl"), ("quarantine", "fsync", "quarantine/new")],
    ids=["journal", "quarantine"],
)
def test_a_slow_disk_keeps_nobody_waiting_but_those_who_need_it(
    posts: dict[str, Post], what: str, call: str, name: str
) -> None:
    """A forged bounce waits for its record; mail that needs none is not behind it."""
    post = posts[what]
    letter = Letter(f"slow-{what}")
    fault = f"delay_enter={int(_SLOW_SECONDS * 1_000_000)}"
    with (
        injected(post.service.pid, call, fault, post.state / name),
        ThreadPoolExecutor(1) as thread,
        SmtpClient(post.service.inbound) as slow,
        SmtpClient(post.service.inbound) as quick,
    ):
        began = time.monotonic()
        waiting = thread.submit(attempt, slow, letter, b"", {_FORGED: _FORGED})
        for number in range(5):
            ordinary = Letter(f"quick-{what}-{number}")
            assert attempt(quick, ordinary, b"bob@peer.example", {_GENUINE: _GENUINE}).accepted
        assert not waiting.done(), "five messages go through meanwhile"
        made = waiting.result(60)
        took = time.monotonic() - began
    assert made.accepted, made.heard
    assert took >= _SLOW_SECONDS
    assert post.on_record(letter)


@pytest.mark.strace
@pytest.mark.parametrize("what", ["discard", "quarantine"])
def test_a_disk_on_which_all_is_slow_costs_no_mail(posts: dict[str, Post], what: str) -> None:
    """Each write takes its time, and all comes to its end."""
    post = posts[what]
    with (
        injected(post.service.pid, "write,fsync,fdatasync", "delay_enter=50000", post.state / "journal.jsonl"),
        SmtpClient(post.service.inbound) as client,
    ):
        for _ in range(3):
            letter, made = post.forged(client)
            assert made.accepted, made.heard
            assert post.on_record(letter)
        post.ordinary_mail_goes_on()


# A service that is broken on purpose.


_RECORD_SWALLOWED: Final = """
from batv.store.journal import Journal
from batv.errors import IoError
write = Journal.write
def swallow(self, event):
    try:
        return write(self, event)
    except IoError:
        return False
Journal.write = swallow
"""
_COPY_SWALLOWED: Final = """
from batv.store.quarantine import QuarantinedMessage
from batv.errors import IoError
commit = QuarantinedMessage.commit
def swallow(self):
    try:
        commit(self)
    except IoError:
        pass
QuarantinedMessage.commit = swallow
"""


@pytest.mark.strace
@pytest.mark.parametrize(
    ("broken", "what", "call", "name"),
    [
        pytest.param(_RECORD_SWALLOWED, "discard", "write", "journal.jsonl", id="discard-unrecorded"),
        pytest.param(_COPY_SWALLOWED, "quarantine", "rename", "", id="message-not-kept"),
    ],
)
def test_a_service_that_swallows_errors_of_the_disk_does_not_pass(
    tmp_path: Path, broken: str, what: str, call: str, name: str
) -> None:
    """The checks above must see a bounce that is taken and nowhere."""
    with Post(tmp_path, what, tmp_path / "state", before=broken) as post, SmtpClient(post.service.inbound) as client:
        assert post.forged(client)[1].accepted
        with injected(post.service.pid, call, "error=EIO", post.state / name if name else None):
            letter, made = post.forged(client)
        with pytest.raises(AssertionError, match="250 only for what is on record"):
            check_put_off(post, letter, made)

"""The key ring in trouble: a damaged file, a disk that fails, a writer that is killed, a crowd of writers.

What holds through all of it: a ring is read whole and right or not at all; a change is made or not made, and who asked
for it is told which; and whoever runs goes on with the keys that it has.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import tracemalloc
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from batv.day import Day
from batv.errors import BatvError, KeyRingDataError
from batv.keyring import Key, KeyRing, Secret
from batv.store.rings import RingStore
from tests.support.command import Command, child_environment
from tests.support.next_hop import RecordingNextHop
from tests.support.service import ServiceProcess
from tests.support.smtp_client import SmtpClient
from tests.support.system_calls import TracedCommands

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Sample
    from tests.support.system_calls import Call, Traced

TODAY: Final = Day.from_iso("2026-11-23")
MASTER_KEY: Final = Secret(b"a master key for tests, 32 octet")
RING: Final = KeyRing(
    TODAY,
    (Key(0, Secret(bytes(range(32))), TODAY, 7, TODAY, TODAY + 9), Key(1, Secret(b"z" * 32), TODAY, 30, TODAY + 9)),
)
NOBODY: Final = 65534


# The file as it is found.


@pytest.fixture(params=["plain", "sealed"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> RingStore:
    """A store with a ring."""
    found = RingStore(tmp_path / "keys", MASTER_KEY if request.param == "sealed" else None)
    found.change(None, lambda _: RING)
    return found


def found_with(store: RingStore, octets: bytes) -> KeyRing | None:
    """Return the ring that the store finds in these octets, or None if it refuses them as damaged."""
    store.path(None).write_bytes(octets)
    try:
        return store.read(None)
    except KeyRingDataError:
        return None


def test_a_ring_cut_short_at_any_octet_is_refused(store: RingStore) -> None:
    """A copy that broke off, or a disk that was full."""
    octets = store.path(None).read_bytes()
    assert [length for length in range(len(octets)) if found_with(store, octets[:length]) is not None] == []
    assert found_with(store, octets) == RING


@pytest.mark.timeout(600)
def test_no_wrong_octet_makes_another_ring(store: RingStore, sample: Sample) -> None:
    """A wrong secret would make every genuine bounce look forged; a ring that is read is the one that was written."""
    octets = store.path(None).read_bytes()
    flips = [1 << bit for bit in range(8)]
    others = sample([flip for flip in range(1, 256) if flip not in flips], 64)
    for at in range(len(octets)):
        for flip in (*flips, *others):
            found = found_with(store, octets[:at] + bytes((octets[at] ^ flip,)) + octets[at + 1 :])
            if found is not None:
                # JSON does not tell one white space from another, nor -0 from 0.
                assert found == RING, (at, flip)
                assert octets[at : at + 1].isspace(), (at, flip)
                assert bytes((octets[at] ^ flip,)) in {b" ", b"\t", b"\r", b"\n", b"-"}, (at, flip)


def test_a_ring_whose_end_became_nul_is_refused(store: RingStore) -> None:
    """What some file systems show after a power cut: the length is right, and the content is not there."""
    octets = store.path(None).read_bytes()
    for at in range(len(octets)):
        assert found_with(store, octets[:at].ljust(len(octets), b"\0")) is None, at
    for tail in (1, 512, 4096 - len(octets)):
        assert found_with(store, octets + b"\0" * tail) is None, tail


@dataclass(frozen=True, slots=True)
class Trouble:
    """Something in the place of a ring, or around it.

    Attributes:
        name: what it is.
        make: makes it of the ring's path, where a good ring is.
        said: what is said about it.
        status: exit status of the commands that meet it.
    """

    name: str
    make: Callable[[Path], object]
    said: str
    status: int

    def __str__(self) -> str:
        """Return what it is."""
        return self.name


def _instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    def made(path: Path) -> None:
        path.unlink()
        make(path)

    return made


def _linked(path: Path) -> None:
    path.symlink_to(path.rename(path.with_name("elsewhere")))


def _huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 30)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        # The path may be longer than the name of a socket.
        server.bind(f"/proc/self/fd/{(folder := os.open(path.parent, os.O_PATH))}/{path.name}")
        os.close(folder)


def _octets(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def _opened_to(mode: int) -> Callable[[Path], object]:
    return lambda path: path.chmod(mode)


def _folder_opened_to(mode: int) -> Callable[[Path], object]:
    return lambda path: path.parent.chmod(mode)


TROUBLES: Final = (
    Trouble("empty", _octets(lambda _: b""), r"is empty", 65),
    Trouble("half", _octets(lambda octets: octets[: len(octets) // 2]), r"is damaged or cut short", 65),
    Trouble("NUL at its end", _octets(lambda octets: octets[:200].ljust(len(octets), b"\0")), r"damaged or cut", 65),
    Trouble("byte order mark", _octets(lambda octets: b"\xef\xbb\xbf" + octets), r"byte order mark", 65),
    Trouble("UTF-16", _octets(lambda octets: octets.decode().encode("utf-16")), r"is damaged", 65),
    Trouble("twice", _octets(lambda octets: octets * 2), r"is damaged", 65),
    Trouble("another digit", _octets(lambda octets: octets.replace(b"7", b"8", 1)), r"its checksum does not fit", 65),
    Trouble("another format", _octets(lambda octets: octets.replace(b"ring-1", b"ring-2")), r"has format", 65),
    Trouble("huge", _huge, r"is longer than 65536 octets", 77),
    Trouble("folder", _instead(lambda path: path.mkdir()), r"is no regular file", 77),
    Trouble("FIFO", _instead(os.mkfifo), r"is no regular file", 77),
    Trouble("socket", _instead(_socket), r"is no regular file", 77),
    Trouble("link", _linked, r"is a symbolic link", 77),
    Trouble("dangling link", _instead(lambda path: path.symlink_to("nowhere")), r"is a symbolic link", 77),
    *(
        Trouble(f"mode {mode:04o}", _opened_to(mode), rf"mode {mode:04o}, open to other users", 77)
        for mode in (0o644, 0o640, 0o604, 0o660, 0o666, 0o620, 0o602)
    ),
    *(
        Trouble(f"folder of mode {mode:04o}", _folder_opened_to(mode), rf"mode {mode:04o}, writable by other users", 77)
        for mode in (0o770, 0o707, 0o777, 0o1777, 0o720)
    ),
)
"""All but a foreign owner, which takes root, and CRLF, which is no trouble."""


@pytest.fixture
def batv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """`batv` on a site that has a ring."""
    command = Command(tmp_path, capsys)
    RingStore(command.keys).change(None, lambda _: RING)
    return command


def _state(folder: Path) -> list[object]:
    """Return what is in a folder of rings, but for its lock."""
    states = [(path, path.lstat()) for path in sorted(folder.iterdir()) if path.name != ".lock"]
    return [(path.name, state.st_mode, state.st_size, state.st_ino, state.st_mtime_ns) for path, state in states]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("trouble", TROUBLES, ids=str)
def test_a_ring_in_trouble_is_refused_and_left_as_it_is(trouble: Trouble, batv: Command) -> None:
    """Each command says what is wrong and what to do, at once; what may yet be rescued is not written over."""
    ring = batv.keys / "default.ring"
    trouble.make(ring)
    before = _state(batv.keys)
    for arguments in (
        ("key", "list"),
        ("key", "rotate"),
        ("key", "rotate", "--dry-run"),
        ("key", "new"),
        ("key", "revoke", "0", "--force"),
        ("key", "export", "0", "--out", str(batv.folder / "out")),
        ("sign", "joe@example.com"),
        ("verify", "prvs=0000123456=joe@example.com"),
    ):
        answer = batv(*arguments)
        assert (answer.status, answer.out) == (trouble.status, ""), arguments
        assert re.fullmatch(rf"batv: .*{trouble.said}.*: .+\n", answer.err), arguments
        assert bytes(range(32)).hex()[:16] not in answer.err
    assert _state(batv.keys) == before


def test_a_huge_ring_costs_no_memory(store: RingStore) -> None:
    """A sparse file of 1 GiB takes no room on the disk; read whole it would end the service."""
    _huge(store.path(None))
    tracemalloc.start()
    try:
        with pytest.raises(BatvError, match="longer than"):
            store.read(None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.root
def test_a_ring_of_another_user_is_refused(batv: Command) -> None:
    """Who owns it has chosen the keys. Root takes what belongs to the owner of the folder."""
    os.chown(batv.keys / "default.ring", NOBODY, NOBODY)
    assert "belongs to user 65534: look who made it" in batv("key", "list").err
    os.chown(batv.keys, NOBODY, NOBODY)
    assert batv("key", "list").status == 0


def test_a_ring_with_crlf_is_read_and_written_with_lf(batv: Command) -> None:
    """It came through a Windows host: nothing of it is lost, and the next change mends it."""
    ring = batv.keys / "default.ring"
    ring.write_bytes(ring.read_bytes().replace(b"\n", b"\r\n"))
    assert batv.ring() == RING
    assert batv("key", "rotate").status == 0
    assert b"\r" not in ring.read_bytes()


@pytest.mark.timeout(300)
def test_a_running_service_keeps_the_last_good_ring_and_says_how_old_it_is(tmp_path: Path, sample: Sample) -> None:
    """Mail goes on to be signed and verified with the keys in memory, and an ERROR line tells the administrator."""
    with RecordingNextHop() as next_hop, ServiceProcess(tmp_path, next_hop.address) as service:
        ring = tmp_path / "keys/default.ring"
        good = ring.read_bytes()
        for trouble in sample(TROUBLES, 4):
            at = len(service.log)
            _put_back(ring, good)
            trouble.make(ring)
            found = service.wait_for_log(
                rf"^batv/ERROR: key rings not read, the old ones stay: age_seconds=(\d+), cause=.*{trouble.said}",
                after=at,
            )
            assert int(found[1]) < 300
            _signs_and_verifies(service, next_hop)
            assert service.log[at:].count("key rings not read") == 1
        at = len(service.log)
        _put_back(ring, good)
        service.wait_for_log(r"^batv/INFO: key rings read: ", after=at)
        _signs_and_verifies(service, next_hop)
        service.stop()
        assert service.wait() == 0


def _put_back(ring: Path, octets: bytes) -> None:
    """Restore a ring as the messages say: nothing else in its place, its mode and its folder's."""
    ring.parent.chmod(0o700)
    if ring.is_dir():
        ring.rmdir()
    ring.unlink(missing_ok=True)
    ring.touch(0o600)
    ring.write_bytes(octets)


def _signs_and_verifies(service: ServiceProcess, next_hop: RecordingNextHop) -> None:
    tagged = service.tagged(b"joe@example.com")
    with SmtpClient(service.outbound) as client:
        assert client.mail(b"joe@example.com", [b"ann@peer.example"], b"x\r\n").code == 250
    assert next_hop.messages[-1].mail == b"<" + tagged + b">"
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [tagged], b"x\r\n").code == 250
    assert next_hop.messages[-1].recipients == (b"<joe@example.com>",)


# A change that does not come to its end.

ERRORS: Final = ("ENOSPC", "EDQUOT", "EROFS", "EIO", "EACCES", "EINTR")
_HARMLESS: Final = re.compile(r"mmap|munmap|mremap|brk|futex|getrandom|gete?[ug]id|rt_sig|exit")
"""Calls that no disk can fail."""


@dataclass(frozen=True, slots=True)
class Site:
    """A site on which one command changes a ring, again and again.

    Attributes:
        folder: the folder of its rings.
        octets: the ring before the change.
        store: its rings.
        commands: runs commands.
        change: the command.
    """

    folder: Path
    octets: bytes
    store: RingStore
    commands: TracedCommands
    change: tuple[str, ...]

    def run(self, inject: str = "") -> Traced:
        """Run the command on the ring as it was before."""
        for path in self.folder.iterdir():
            path.unlink()
        if self.octets:
            ring = self.folder / "default.ring"
            ring.touch(0o600)
            ring.write_bytes(self.octets)
        (self.folder / ".lock").touch(0o600)
        return self.commands(*self.change, inject=inject)

    def numbers(self) -> list[int]:
        """Return the numbers of the keys that are on the disk. Nothing but a whole ring, or none, is there."""
        ring = self.store.find(None)
        return [] if ring is None else [key.number for key in ring.keys]

    def left(self) -> set[str]:
        """Return the names of what is in the folder."""
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture(params=["rotate", "rotate a sealed ring", "first key"])
def site(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Site]:
    """A site for each kind of change."""
    settings = '[domains."example.com"]\n'
    master_key = None
    if "sealed" in request.param:
        master_key = MASTER_KEY
        key_file = tmp_path / "master.key"
        key_file.touch(0o600)
        key_file.write_bytes(MASTER_KEY.octets)
        settings += '[keys]\nmaster_key_file = "master.key"\n'
    config = tmp_path / "batv.toml"
    config.write_text(settings)
    store = RingStore(tmp_path / "keys", master_key)
    change = ("key", "new") if request.param == "first key" else ("key", "rotate")
    with TracedCommands(config, tmp_path, ("key", "new"), ("key", "rotate")) as commands:
        # Answers once the commands that warm it up are through.
        assert commands("key", "list").status == 0
        store.path(None).unlink()
        octets = b""
        if change == ("key", "rotate"):
            store.change(None, lambda _: RING)
            octets = store.path(None).read_bytes()
        yield Site(tmp_path / "keys", octets, store, commands, change)


def _until_renamed(calls: tuple[Call, ...]) -> int:
    """Return the place of the call that gives the new ring its name."""
    return next(place for place, call in enumerate(calls) if call.name.startswith("rename"))


@pytest.mark.strace
@pytest.mark.timeout(600)
def test_a_change_killed_at_any_system_call_is_made_or_not_made(site: Site, sample: Sample) -> None:
    """Power and patience end at any moment. What is on disk is the old ring or the new one, and nothing is locked."""
    whole = site.run()
    assert whole.status == 0, whole.err
    old, new = site.numbers()[:-1], site.numbers()
    renamed = _until_renamed(whole.calls)
    places = range(len(whole.calls))
    # From the new file to the lock's end each call; of those before and after, some.
    for place in sorted({*sample(places, 4), *range(renamed - 9, renamed + 4)}):
        call = whole.calls[place]
        done = site.run(f"{call.name}:signal=KILL:when={call.count}")
        assert (done.status, done.injected) == (-9, True), call
        assert site.numbers() == (old if place <= renamed else new), call
        again = site.commands(*site.change)
        assert again.status == 0, (call, again.err)
        assert len(site.numbers()) == len(old) + (1 if place <= renamed else 2), call
        assert site.left() == {".lock", "default.ring"}, call


@pytest.mark.strace
@pytest.mark.timeout(1200)
def test_a_change_whose_disk_fails_at_any_system_call_is_made_or_not_made_and_says_which(
    site: Site, sample: Sample
) -> None:
    """An error before the new ring has its name leaves the old one; after that, nobody is told to try again."""
    whole = site.run()
    old, new = site.numbers()[:-1], site.numbers()
    renamed = _until_renamed(whole.calls)
    calls = [(place, call) for place, call in enumerate(whole.calls) if not _HARMLESS.match(call.name)]
    # Rights are asked for where a file is opened, not where it is written.
    cells = [(at, call, error) for at, call in calls for error in ERRORS if (call.name, error) != ("write", "EACCES")]
    failed = 0
    for place, call, error in sample(cells, 7):  # no divisor of the number of errors: each call gets another one
        done = site.run(f"{call.name}:error={error}:when={call.count}")
        assert done.injected, (call, error)
        assert done.status in {0, 73, 74, 77}, (call, error, done.err)
        assert "internal fault" not in done.err, (call, error, done.err)
        assert "Traceback" not in done.err, (call, error, done.err)
        if done.status:
            failed += 1
            assert site.numbers() == (old if place <= renamed else new), (call, error, done.err)
            told = re.search("do not repeat the change|look what the command has done", done.err)
            assert bool(told) == (place > renamed or not done.err), (call, error, done.err)
        else:
            assert site.numbers() == new, (call, error)
        assert site.left() <= {".lock", "default.ring"}, (call, error)
        assert bytes(range(32)).hex()[:16] not in done.out + done.err
        assert site.commands(*site.change).status == 0, (call, error)
    assert failed > 10


@pytest.mark.strace
def test_a_new_ring_is_on_the_disk_before_it_has_its_name_and_its_name_before_the_lock_is_free(site: Site) -> None:
    """What a killed process leaves in memory a power cut takes: only the order of these calls keeps it whole then."""
    whole = site.run()
    steps = [call.name.removesuffix("at") for call in whole.calls]
    renamed = _until_renamed(whole.calls)
    assert [step for step in steps[renamed - 4 : renamed + 4] if step != "fchmod"][-7:] == [
        "write",
        "fsync",
        "close",
        "rename",
        "fsync",
        "close",
        "close",
    ]
    assert steps.index("flock") < renamed


# A crowd.

_CROWD: Final = """
import json, os, sys
from batv.day import Day
from batv.errors import BatvError
from batv.keyring import Key, Secret
from batv.store.rings import RingStore

store = RingStore(sys.argv[1])
wait, go = os.pipe()

def rotate(mark):
    taken = []
    def change(ring):
        # Days so far apart that every number is free again: each rotation must go through, and count.
        day = max(key.created for key in ring.keys) + 500
        number = ring.free_number(day)
        taken[:] = [number, day.iso()]
        key = Key(number, Secret(b"secret of %3d" % mark + b"." * 20), day)
        return ring.with_key(key, day).activated(number, day, day)
    store.change(None, change)
    print(json.dumps([mark, *taken]), flush=True)

children = []
for mark in range(100):
    child = os.fork()
    if not child:
        os.close(go)
        os.read(wait, 1)
        try:
            rotate(mark)
        except BatvError as error:
            print(json.dumps([mark, str(error)]), flush=True)
        os._exit(0)
    children.append(child)
os.close(go)
for child in children:
    os.waitpid(child, 0)
"""


def test_of_a_hundred_rotations_at_once_none_is_lost(tmp_path: Path) -> None:
    """Each process gets a number and a day of its own, and the ring has the last ten keys with their own secrets."""
    store = RingStore(tmp_path)
    store.change(None, lambda _: KeyRing(TODAY, (Key(0, Secret(b"s" * 32), TODAY, 7, TODAY),)))
    done = subprocess.run(
        [sys.executable, "-c", _CROWD, str(tmp_path)],
        env=child_environment(),
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert sorted(mark for mark, *_ in said) == list(range(100))
    assert [entry for entry in said if len(entry) != 3] == []
    by_day = {day: (number, mark) for mark, number, day in said}
    assert sorted(by_day) == [(TODAY + 500 * step).iso() for step in range(1, 101)]
    assert [by_day[day][0] for day in sorted(by_day)] == [step % 10 for step in range(1, 101)]
    last = {number: b"secret of %3d" % mark for number, mark in (by_day[day] for day in sorted(by_day)[-10:])}
    assert {key.number: key.secret.octets[:13] for key in store.read(None).keys} == last
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "default.ring"}

"""Rings on disk come back as they were, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batv.day import Day
from batv.errors import (
    BatvError,
    CannotCreateError,
    IoError,
    KeyRingDataError,
    KeyRingRuleError,
    UnsafeFileError,
)
from batv.keyring import Key, KeyRing, Role, Secret
from batv.store.rings import MAX_RING_OCTETS, RingStore, parse_ring, ring_octets
from tests.support.command import child_environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TODAY: Final = Day.from_iso("2026-11-23")
PATH: Final = Path("keys/default.ring")
RING: Final = KeyRing(
    TODAY,
    (
        Key(0, Secret(bytes(range(32))), TODAY, 7, TODAY, TODAY + 9),
        Key(3, Secret(b"shared with Exim"), TODAY + 2, 30, TODAY + 9),
        Key(9, Secret(b"lost!"), TODAY, 7, None, None, TODAY + 1),
    ),
)
OCTETS: Final = ring_octets(RING)


def changed(change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return the ring with another content, under a checksum that fits."""
    fields = json.loads(OCTETS)
    change(fields)
    rest = {name: value for name, value in fields.items() if name != "checksum"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    import hashlib  # noqa: PLC0415 -- the one place that makes checksums by hand

    if "checksum" in fields:
        fields["checksum"] = "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
    return json.dumps(fields, indent=1).encode() + b"\n"


def test_a_ring_comes_back_as_it_was() -> None:
    """Every field of every key must survive a restart."""
    assert parse_ring(OCTETS, PATH) == RING
    assert parse_ring(ring_octets(KeyRing(TODAY)), PATH) == KeyRing(TODAY)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("nraxvp"), st.integers(0, 9), st.integers(0, 30)), max_size=30))
def test_whatever_commands_do_keeps_a_ring_that_can_be_read(steps: list[tuple[str, int, int]]) -> None:
    """A change that writes a ring which is refused at the next start would stop the mail."""
    ring, day = KeyRing(TODAY), TODAY
    for step, number, days in steps:
        try:
            match step:
                case "n":
                    ring = ring.with_newcomer(Key(ring.free_number(day), Secret(b"s" * 16), day, days + 1), day)
                case "r":
                    free = ring.free_number(day)
                    ring = ring.with_key(Key(free, Secret(b"s" * 16), day), day).activated(free, day, day + days)
                case "a":
                    ring = ring.activated(number, day, day + days)
                case "x":
                    ring = ring.with_retired(number, day)
                case "v":
                    ring = ring.with_revoked(number, day)
                case _:
                    day = day + days
        except KeyRingRuleError:
            continue
        assert parse_ring(ring_octets(ring), PATH) == ring


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ra"), st.integers(0, 9), st.integers(0, 9)), max_size=30))
def test_rotating_and_activating_never_leaves_a_day_without_a_key(steps: list[tuple[str, int, int]]) -> None:
    """Mail would be deferred on that day, and nobody would know why."""
    day = TODAY
    ring = KeyRing(TODAY).with_newcomer(Key(0, Secret(b"s" * 16), TODAY), TODAY)
    for step, number, days in steps:
        day = day + number % 3
        try:
            if step == "r":
                number = ring.free_number(day)  # noqa: PLW2901 -- a new key's number is not ours to choose
                ring = ring.with_key(Key(number, Secret(b"s" * 16), day), day)
            ring = ring.activated(number, day, day + days)
        except KeyRingRuleError:
            continue
        assert ring.unsigned_from(day) is None


def test_a_key_that_was_to_sign_for_a_while_signs_without_end_once_it_is_activated_anew() -> None:
    """Else nobody would sign after the day on which it was to stop, and mail would be deferred."""
    ring = KeyRing(TODAY, tuple(Key(number, Secret(b"s" * 16), TODAY) for number in range(3)))
    ring = ring.activated(0, TODAY, TODAY).activated(1, TODAY, TODAY + 2).activated(2, TODAY, TODAY + 4)
    ring = ring.activated(1, TODAY, TODAY + 6)
    assert [ring.signing_key(TODAY + days).number for days in (0, 2, 3, 4, 5, 6, 20)] == [0, 0, 0, 2, 2, 1, 1]
    assert ring.unsigned_from(TODAY) is None


@pytest.mark.parametrize("plan", ["later", "retired", "revoked"])
def test_a_planned_change_of_keys_that_is_put_off_or_dropped_leaves_no_day_without_a_key(plan: str) -> None:
    """The old key was to stop when the new one begins: it must go on when that does not come."""
    ring = KeyRing(TODAY, tuple(Key(number, Secret(b"s" * 16), TODAY) for number in range(2)))
    ring = ring.activated(0, TODAY, TODAY).activated(1, TODAY, TODAY + 2)
    match plan:
        case "later":
            ring = ring.activated(1, TODAY + 1, TODAY + 6)
        case "retired":
            ring = ring.with_retired(1, TODAY + 1)
        case _:
            ring = ring.with_revoked(1, TODAY + 1)
    assert [ring.signing_key(TODAY + days).number for days in (0, 2, 5)] == [0, 0, 0]
    assert ring.unsigned_from(TODAY + 1) is None


def test_a_ring_cut_short_anywhere_is_refused() -> None:
    """A crash or a broken copy leaves the beginning of a file."""
    for length in range(len(OCTETS)):
        with pytest.raises(KeyRingDataError, match=r"^keys/default\.ring .*: restore it from a copy"):
            parse_ring(OCTETS[:length], PATH)


def test_a_ring_with_one_flipped_bit_anywhere_is_refused() -> None:
    """One wrong bit in a secret would make every genuine bounce look forged."""
    for place in range(len(OCTETS)):
        for bit in range(8):
            damaged = bytearray(OCTETS)
            damaged[place] ^= 1 << bit
            with pytest.raises(KeyRingDataError):
                parse_ring(bytes(damaged), PATH)


def test_a_ring_whose_line_ends_became_crlf_is_read() -> None:
    """A copy by way of another system does that, and the checksum proves that nothing else happened."""
    assert parse_ring(OCTETS.replace(b"\n", b"\r\n"), PATH) == RING


@pytest.mark.parametrize(
    ("octets", "what"),
    [
        (b"", "is empty"),
        (b"\xef\xbb\xbf" + OCTETS, "byte order mark"),
        (OCTETS + b"\n", "damaged or cut short"),
        (OCTETS + b"x", "damaged or cut short"),
        (OCTETS + b"\0" * 64, "damaged or cut short"),
        (OCTETS[:300] + b"\0" * (len(OCTETS) - 300), "damaged or cut short"),
        (OCTETS + OCTETS, "damaged or cut short"),
        (b"\0" * 512, "damaged or cut short"),
        (b"[" * 50_000 + b"}\n", "damaged or cut short"),
        (b'{"a": 1, "a": 1}\n', "damaged or cut short"),
        (b'{"format": NaN}\n', "damaged or cut short"),
        (b"[{}\n", "damaged or cut short"),
        (changed(lambda ring: ring.update(format="batv-keyring-2")), "has format 'batv-keyring-2'"),
        (changed(lambda ring: ring.update(format=1)), "has format unknown"),
        (changed(lambda ring: ring.pop("format")), "has format unknown"),
        (changed(lambda ring: ring.pop("created")), "lacks the field 'created'"),
        (changed(lambda ring: ring.pop("checksum")), "lacks the field 'checksum'"),
        (changed(lambda ring: ring.update(note="x")), "unknown field 'note'"),
        (changed(lambda ring: ring.update(keys={})), "wrong value in the field 'keys'"),
        (changed(lambda ring: ring.update(keys=[1])), "wrong value in the field 'keys'"),
        (changed(lambda ring: ring.update(created="2026-02-30")), "wrong value in the field 'created'"),
        (changed(lambda ring: ring["keys"][0].pop("retired")), "lacks the field 'retired'"),
        (changed(lambda ring: ring["keys"][0].update(note=1)), "unknown field 'note'"),
        (changed(lambda ring: ring["keys"][0].update(number="0")), "wrong value in the field 'number'"),
        (changed(lambda ring: ring["keys"][0].update(number=True)), "wrong value in the field 'number'"),
        (changed(lambda ring: ring["keys"][0].update(number=10)), "key number 10 is not 0 to 9"),
        (changed(lambda ring: ring["keys"][0].update(number=3)), "stands in the ring twice"),
        (changed(lambda ring: ring["keys"][0].update(lifetime=0)), "lifetime of 0 days"),
        (changed(lambda ring: ring["keys"][0].update(lifetime=7.0)), "damaged or cut short"),
        (changed(lambda ring: ring["keys"][0].update(secret="")), "wrong value in the field 'secret'"),
        (changed(lambda ring: ring["keys"][0].update(secret="AB")), "wrong value in the field 'secret'"),
        (changed(lambda ring: ring["keys"][0].update(secret="abc")), "wrong value in the field 'secret'"),
        (changed(lambda ring: ring["keys"][0].update(secret="ab cd")), "wrong value in the field 'secret'"),
        (changed(lambda ring: ring["keys"][0].update(secret=None)), "wrong value in the field 'secret'"),
        (changed(lambda ring: ring["keys"][0].update(retired=None)), "two keys would sign on"),
        (changed(lambda ring: ring["keys"][0].update(signs_from=7)), "wrong value in the field 'signs_from'"),
    ],
)
def test_what_is_not_exactly_a_ring_is_refused(octets: bytes, what: str) -> None:
    """The file is named, what is wrong with it, and what to do."""
    with pytest.raises(KeyRingDataError) as caught:
        parse_ring(octets, PATH)
    assert what in caught.value.what
    assert str(PATH) in caught.value.what
    assert caught.value.remedy
    assert caught.value.exit_status == 65


def test_no_error_about_a_ring_shows_a_secret() -> None:
    """Error lines go to logs and tickets."""
    secret = bytes(range(32)).hex()
    for place in range(len(OCTETS)):
        damaged = OCTETS[:place] + b"#" + OCTETS[place + 1 :]
        with pytest.raises(KeyRingDataError) as caught:
            parse_ring(damaged, PATH)
        assert secret[8:24] not in f"{caught.value!r}{caught.value.__cause__!r}{caught.value.__context__!s}"
    assert "shared" not in repr(RING)


def test_the_store_keeps_default_and_own_rings_apart(tmp_path: Path) -> None:
    """A domain with a ring of its own must not sign with the default ring, nor the other way round."""
    store = RingStore(tmp_path / "keys")
    own = replace(RING, keys=RING.keys[:1])
    assert store.find(None) is None
    assert store.fingerprint() == ()
    store.change(None, lambda _: RING)
    store.change(b"Example.COM", lambda _: own)
    assert store.read(None) == RING
    assert store.read(b"example.com") == own
    assert store.domains() == (b"example.com",)
    rings = store.read_all([b"example.com", b"b.example"])
    assert (rings.default, dict(rings.own)) == (RING, {b"example.com": own})
    assert {path.name for path in store.directory.iterdir()} == {".lock", "default.ring", "example.com.ring"}
    assert store.directory.stat().st_mode & 0o777 == 0o700


def test_a_domain_called_default_has_a_ring_of_its_own(tmp_path: Path) -> None:
    """Such a name must not get at the ring of all other domains."""
    store = RingStore(tmp_path)
    store.change(None, lambda _: RING)
    assert store.find(b"default") is None
    store.change(b"DEFAULT", lambda _: KeyRing(TODAY))
    assert store.read(None) == RING
    assert store.domains() == (b"default",)
    assert store.read(b"default") == KeyRing(TODAY)


def test_both_spellings_of_a_domain_have_the_same_ring(tmp_path: Path) -> None:
    """Mail to an internationalised domain comes under either of its names."""
    store = RingStore(tmp_path)
    store.change("müller.example".encode(), lambda _: RING)
    assert store.domains() == (b"xn--mller-kva.example",)
    both = ["müller.example".encode(), b"xn--mller-kva.example"]
    assert dict(store.read_all(both).own) == {both[0]: RING, both[1]: RING}


def test_a_stray_file_is_nobodys_ring(tmp_path: Path) -> None:
    """A copy that somebody left beside the rings must not stop `batv key list`."""
    store = RingStore(tmp_path)
    store.change(b"example.com", lambda _: RING)
    for name in ("example.com copy.ring", "Example.com.ring", ".ring", "a..ring", "example.com.ring~"):
        (tmp_path / name).touch(0o600)
    assert store.domains() == (b"example.com",)


@pytest.mark.parametrize(
    "domain",
    [b"../x", b"a/b", b"..", b".", b"", b".hidden", b"a\0b", b"[a/b]", b"a b", b"\xff", b"a" * 251],
    ids=repr,
)
def test_no_domain_leads_out_of_the_folder(tmp_path: Path, domain: bytes) -> None:
    """A name from the outside must not choose which file is written."""
    store = RingStore(tmp_path / "keys")
    with pytest.raises(KeyRingRuleError):
        store.change(domain, lambda _: RING)
    assert list(tmp_path.iterdir()) == []
    assert store.read_all([domain]).own == {}


def test_the_fingerprint_differs_after_each_change(tmp_path: Path) -> None:
    """The service looks at it to see whether rings must be read again."""
    store = RingStore(tmp_path)
    seen = [store.fingerprint()]
    for domain in (None, None, b"example.com", b"example.com"):
        store.change(domain, lambda _: RING)
        seen.append(store.fingerprint())
    (tmp_path / "example.com.ring").unlink()
    seen.append(store.fingerprint())
    assert all(before != after for before, after in pairwise(seen))
    (tmp_path / "other").write_bytes(b"")
    assert store.fingerprint() == seen[-1]


def test_a_change_that_fails_leaves_the_ring(tmp_path: Path) -> None:
    """A refused command must change nothing and leave no litter."""
    store = RingStore(tmp_path)
    store.change(None, lambda _: RING)
    before = (tmp_path / "default.ring").read_bytes()

    def refuse(ring: KeyRing | None) -> KeyRing:
        assert ring == RING
        raise KeyRingRuleError("no")

    with pytest.raises(KeyRingRuleError):
        store.change(None, refuse)
    assert store.change(None, lambda _: KeyRing(TODAY), dry_run=True) == KeyRing(TODAY)
    assert (tmp_path / "default.ring").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "default.ring"}


def test_a_change_clears_away_what_a_killed_writer_left(tmp_path: Path) -> None:
    """Leftovers hold secrets, and nobody else knows what they are."""
    left = tmp_path / ".default.ring.0123456789abcdef.tmp"
    left.write_bytes(b"")
    RingStore(tmp_path).change(None, lambda _: RING)
    assert not left.exists()


def test_a_damaged_ring_is_never_replaced_by_a_change(tmp_path: Path) -> None:
    """What can perhaps be mended must not be overwritten by a new ring."""
    path = tmp_path / "default.ring"
    path.write_bytes(OCTETS[:-20])
    path.chmod(0o600)
    with pytest.raises(KeyRingDataError):
        RingStore(tmp_path).change(None, lambda ring: ring or RING)
    assert path.read_bytes() == OCTETS[:-20]


def test_a_huge_ring_is_not_read(tmp_path: Path) -> None:
    """The bound holds whatever the file system has under the name."""
    path = tmp_path / "default.ring"
    path.touch(0o600)
    os.truncate(path, 1 << 30)
    with pytest.raises(UnsafeFileError, match=f"longer than {MAX_RING_OCTETS} octets"):
        RingStore(tmp_path).find(None)


def test_a_missing_ring_says_how_to_make_one(tmp_path: Path) -> None:
    """The line must hold the command to type."""
    with pytest.raises(IoError, match=r"batv key new --domain example\.com"):
        RingStore(tmp_path).read(b"example.com")
    with pytest.raises(CannotCreateError, match="make the folder first"):
        RingStore(tmp_path / "no" / "keys").change(None, lambda _: RING)


def test_a_folder_that_others_write_gets_no_ring(tmp_path: Path) -> None:
    """A secret must not be put where it would be refused afterwards."""
    tmp_path.chmod(0o777)
    with pytest.raises(UnsafeFileError, match="chmod 700"):
        RingStore(tmp_path).change(None, lambda _: RING)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def folder_of_another() -> Iterator[Path]:
    """Make a folder that belongs to the service's user."""
    folder = Path(tempfile.mkdtemp())
    os.chown(folder, 65534, 65534)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.root
def test_what_root_writes_the_service_can_read_and_change(folder_of_another: Path) -> None:
    """An administrator rotates as root, and the service runs as its own user."""
    store = RingStore(folder_of_another)
    store.change(None, lambda _: RING)
    for name in (".lock", "default.ring"):
        found = (folder_of_another / name).stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (65534, 65534, 0o600)
    os.seteuid(65534)
    try:
        assert store.read(None) == RING
        store.change(None, lambda _: KeyRing(TODAY))
    finally:
        os.seteuid(0)
    assert store.read(None) == KeyRing(TODAY)


ROTATE = """
import sys
from batv.day import Day
from batv.errors import BatvError
from batv.keyring import Key, KeyRing, Secret
from batv.store.rings import RingStore

def rotated(ring):
    # Days so far apart that every number is free again: each rotation must go through, and count.
    day = max(key.created for key in ring.keys) + 500
    number = ring.free_number(day)
    return ring.with_key(Key(number, Secret(b"s" * 32), day), day).activated(number, day, day)

store = RingStore(sys.argv[1])
sys.stdin.read()
for _ in range(int(sys.argv[2])):
    store.change(None, rotated)
"""

CROWD = """
import sys
from batv.cli import main
sys.stdin.read()
main()
"""


def test_rotations_of_several_processes_are_all_kept(tmp_path: Path) -> None:
    """Two administrators, or a cron job and one of them, rotate at the same moment."""
    store = RingStore(tmp_path)
    store.change(None, lambda _: KeyRing(TODAY, (Key(0, Secret(b"s" * 32), TODAY, 7, TODAY),)))
    assert all(status == 0 for status, _ in _crowd(5, ROTATE, str(tmp_path), "20"))
    ring = store.read(None)
    assert max(key.created for key in ring.keys) == TODAY + 100 * 500
    assert [key.number for key in ring.keys] == list(range(10))


def test_of_a_crowd_that_rotates_at_once_as_many_get_through_as_there_are_numbers(tmp_path: Path) -> None:
    """The rest must be told that all ten numbers are in use, and the nine new keys must all be there."""
    store = RingStore(tmp_path / "keys")
    store.change(None, lambda _: KeyRing(TODAY, (Key(0, Secret(b"s" * 32), TODAY, 7, TODAY),)))
    (tmp_path / "batv.toml").write_text('[domains."example.com"]\n')
    said = _crowd(15, CROWD, "--config", str(tmp_path / "batv.toml"), "key", "rotate")
    assert sorted(status for status, _ in said) == [0] * 9 + [1] * 6
    assert all("all ten key numbers are in use" in err for status, err in said if status)
    ring = store.read(None)
    assert [key.number for key in ring.keys] == list(range(10))
    assert len({key.secret for key in ring.keys}) == 10
    assert all(key.role(TODAY) is not Role.REVOKED for key in ring.keys)


def _crowd(count: int, script: str, *arguments: str) -> list[tuple[int, str]]:
    """Run a script in several processes that all start when every one is ready."""
    read, write = os.pipe()
    crowd = [
        subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env=child_environment(),
            stdin=read,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    os.close(read)
    os.close(write)
    said = []
    for process in crowd:
        _, err = process.communicate(timeout=60)
        said.append((process.returncode, err))
    return said


def test_every_error_of_the_store_is_one_of_ours(tmp_path: Path) -> None:
    """What is not ours would end as a traceback."""
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "keys", Path("/proc/batv")):
        with pytest.raises(BatvError):
            RingStore(directory).change(None, lambda _: RING)

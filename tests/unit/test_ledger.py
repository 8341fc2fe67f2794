"""The sent ledger: it knows who sent what to whom, and mail never waits for it."""

from __future__ import annotations

import sqlite3
import stat
from contextlib import closing
from threading import Event, Thread
from typing import TYPE_CHECKING, Final

import pytest

from batv.budget import Account
from batv.day import Day
from batv.errors import IoError, KeyRingDataError, UnsafeFileError
from batv.keyring import Secret
from batv.observe.event import Level
from batv.store.ledger import SECRET_NAME, Ledger, LedgerLimits, open_secret
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_SECRET: Final = Secret(bytes(range(32)))
_TODAY: Final = Day.from_iso("2026-11-23")
_JOE: Final = b"joe@example.com"
_BOB: Final = b"bob@peer.example"


class _Site:
    """A folder for a ledger, and a day that can be set."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.day = _TODAY
        self.opened: list[Ledger] = []

    def ledger(self, limits: LedgerLimits | None = None, secret: Secret = _SECRET) -> Ledger:
        """Return one more ledger in the same folder, as another process has it."""
        ledger = Ledger(
            self.folder, secret, lambda: self.day, limits or LedgerLimits(), {b"example.com", b"b.example"}.__contains__
        )
        self.opened.append(ledger)
        return ledger

    def noted(self, number: int = 0, limits: LedgerLimits | None = None) -> None:
        """Note a message of today, and wait until it is written."""
        ledger = self.ledger(limits)
        ledger.note(b"%d@x" % number, (_JOE,), (_BOB,))
        ledger.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[_Site]:
    """A folder."""
    site = _Site(tmp_path / "ledger")
    yield site
    for ledger in site.opened:
        ledger.close()


def test_it_knows_who_sent_a_message_to_whom(site: _Site) -> None:
    """All three must fit: ids are public in archives, and so is who writes to a list."""
    ledger = site.ledger()
    ledger.note(b"1@x", (_JOE, b"Office@B.example"), (_BOB, b"Eve@Far.example"))
    ledger.note(b"2@x", (b"ann@example.com",), (b"carol@peer.example",))
    ledger.close()
    ledger = site.ledger()
    for own in (_JOE, b"JOE@example.COM", b"office@b.example"):
        for party in (_BOB, b"BOB@peer.EXAMPLE", b"eve@far.example", b"@peer.example", b"@FAR.example"):
            assert ledger.knows((b"no@x", b"1@x"), own, (b"nobody@else.example", party))
    assert not ledger.knows((b"2@x",), _JOE, (_BOB,))
    assert not ledger.knows((b"1@x",), _JOE, (b"carol@peer.example", b"@peer", b"peer.example", b""))
    assert not ledger.knows((b"1@X", b"1@x ", b""), _JOE, (_BOB,))
    assert not ledger.knows((b"1@x",), b"ann@example.com", (_BOB,))
    assert not ledger.knows((), _JOE, (_BOB,))
    assert not ledger.knows((b"1@x",), _JOE, ())


def test_what_one_process_notes_another_one_finds_soon(site: _Site) -> None:
    """Workers share a ledger; a vacation program answers within a second."""
    writer, reader = site.ledger(), site.ledger()
    assert not reader.knows((b"1@x",), _JOE, (_BOB,))
    writer.note(b"1@x", (_JOE,), (_BOB,))
    until(lambda: reader.knows((b"1@x",), _JOE, (_BOB,)), "the entry")


def test_several_processes_write_at_once(site: _Site) -> None:
    """None loses what another one writes, from the first file on."""
    ledgers = [site.ledger() for _ in range(4)]

    def work(number: int) -> None:
        for count in range(500):
            ledgers[number].note(b"%d.%d@x" % (number, count), (_JOE,), (_BOB,))
        ledgers[number].close()

    threads = [Thread(target=work, args=(number,)) for number in range(len(ledgers))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reader = site.ledger()
    for number in range(len(ledgers)):
        for count in range(0, 500, 50):
            assert reader.knows((b"%d.%d@x" % (number, count),), _JOE, (_BOB,))


@pytest.mark.parametrize("written", [False, True], ids=["waiting", "written"])
def test_it_knows_whose_mail_left_unsigned(site: _Site, *, written: bool) -> None:
    """By the address alone, in any case of its letters; who sent a message is another matter."""
    site.noted()
    site.day = _TODAY + 8
    ledger = site.ledger()
    ledger.note_unsigned(_JOE)
    if written:
        ledger.close()
        ledger = site.ledger()
    assert ledger.may_have_left_unsigned(b"Joe@Example.com", 7)
    assert not ledger.may_have_left_unsigned(b"ann@example.com", 7)
    assert not ledger.may_have_left_unsigned(_BOB, 7)
    assert not ledger.knows((b"",), _JOE, (b"",))


def test_whose_mail_left_unsigned_is_remembered_for_the_days_of_the_ledger(site: _Site) -> None:
    """And counts from anew whenever the address sends."""
    limits = LedgerLimits(keep_days=10)
    ledger = site.ledger(limits)
    for number, address in ((0, b"ann@example.com"), (0, _JOE), (5, _JOE)):
        site.day = _TODAY + number
        ledger.note_unsigned(address)
    ledger.close()
    site.day = _TODAY + 12
    site.noted(1, limits)
    ledger = site.ledger(limits)
    assert ledger.may_have_left_unsigned(_JOE, 6)
    assert not ledger.may_have_left_unsigned(b"ann@example.com", 6)


def test_a_record_that_is_younger_than_the_mail_may_be_tells_of_nobody(site: _Site) -> None:
    """What left before it began has bounces too."""
    assert site.ledger().may_have_left_unsigned(_JOE, 0)
    site.noted()
    for later, told in ((0, False), (7, False), (8, True), (29, True), (30, False)):
        site.day = _TODAY + later
        assert site.ledger().may_have_left_unsigned(_JOE, 7) is not told


def test_files_of_a_release_that_kept_no_such_record_do_not_count_for_it(site: _Site) -> None:
    """On the day of an upgrade no genuine bounce is lost."""
    ledger = site.ledger()
    ledger.note_bounce(b"1")
    ledger.close()
    (path,) = site.folder.iterdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.execute("DELETE FROM sent")  # what a file begins with
    site.noted()
    site.day = _TODAY + 1
    site.noted(1)
    for later, told in ((7, False), (8, False), (9, True)):
        site.day = _TODAY + later
        ledger = site.ledger()
        assert ledger.may_have_left_unsigned(_JOE, 7) is not told
        assert ledger.knows((b"0@x",), _JOE, (_BOB,))


def test_files_under_another_secret_do_not_count_for_the_record(site: _Site) -> None:
    """Nothing in them can be found: not even on the day on which the secret was made anew."""
    site.noted()
    anew = Secret(bytes(32))
    for later, told in ((9, False), (10, False), (17, False), (18, True)):
        site.day = _TODAY + later
        assert site.ledger(secret=anew).may_have_left_unsigned(_JOE, 7) is not told
        if later in {9, 10}:
            ledger = site.ledger(secret=_SECRET if later == 9 else anew)
            ledger.note_bounce(b"1")
            ledger.close()


def test_a_process_that_could_not_write_everything_leaves_nobody_on_no_record(site: _Site) -> None:
    """A stop while the disk takes nothing: others hear of it at once, and the record begins anew when one starts."""
    site.noted()
    site.day = _TODAY + 9
    ledger, other = site.ledger(), site.ledger()
    ledger.begin()
    other.begin()
    assert not other.may_have_left_unsigned(_JOE, 7)
    in_the_way = site.folder / f"{site.day.iso()}.sqlite3"
    in_the_way.mkdir()
    ledger.note_unsigned(_JOE)
    ledger.close()
    other.close()
    in_the_way.rmdir()
    assert len(list(site.folder.glob("*.mark"))) == 1
    assert site.ledger().may_have_left_unsigned(_JOE, 7)
    ledger = site.ledger()
    ledger.begin()
    assert [(notice.level, notice.fields) for notice in ledger.notices()] == [(Level.WARNING, {"processes": 1})]
    ledger.close()
    assert not list(site.folder.glob("*.mark"))
    for later, told in ((9, False), (16, False), (17, True)):
        site.day = _TODAY + later
        assert site.ledger().may_have_left_unsigned(_JOE, 7) is not told


def test_an_entry_waits_where_no_thread_can_be_started(site: _Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mail that was taken is not refused for that; it is written at the end, or with the next entry."""

    def no_more(_: Thread) -> None:
        raise RuntimeError("can't start new thread")

    ledger = site.ledger()
    with monkeypatch.context() as patch:
        patch.setattr(Thread, "start", no_more)
        ledger.note(b"1@x", (_JOE,), (_BOB,))
        (notice,) = ledger.notices()
        assert str(notice.fields["cause"]) == "can't start new thread"
        assert ledger.knows((b"1@x",), _JOE, (_BOB,))
        ledger.close()
    assert site.ledger().knows((b"1@x",), _JOE, (_BOB,))


def test_nobody_is_told_apart_by_a_record_that_cannot_be_read(site: _Site) -> None:
    """The log says so, and bounces pass."""
    site.noted()
    site.day = _TODAY + 9
    (path,) = site.folder.iterdir()
    path.write_bytes(b"no database" * 1000)
    ledger = site.ledger()
    assert ledger.may_have_left_unsigned(_JOE, 7)
    (notice,) = ledger.notices()
    assert notice.what == "ledger fails: replies count as it finds them"


def test_what_left_with_a_tag_and_what_came_back_is_counted(site: _Site) -> None:
    """Over all days and processes; what waits to be written counts, and what is written counts once."""
    first, second = site.ledger(), site.ledger()
    assert first.account(b"3007 joe@example.com") == Account(0, 0)
    first.note_signed(b"3007 joe@example.com", 20_000)
    first.note_signed(b"3007 joe@example.com", 1)
    first.note_signed(b"3008 joe@example.com", 5)
    for _ in range(3):
        first.note_bounce(b"3007 joe@example.com")
    assert first.account(b"3007 joe@example.com") == Account(20_001, 3)
    assert first.flush()
    assert first.account(b"3007 joe@example.com") == Account(20_001, 3)
    assert second.account(b"3007 joe@example.com") == Account(20_001, 3)
    site.day = _TODAY + 2
    second.note_bounce(b"3007 joe@example.com")
    second.close()
    assert site.ledger().account(b"3007 joe@example.com") == Account(20_001, 4)
    assert site.ledger().account(b"3008 joe@example.com") == Account(5, 0)


def test_counts_of_several_processes_add_up(site: _Site) -> None:
    """None overwrites what another one has counted, and a file that was locked is counted in once."""
    ledgers = [site.ledger() for _ in range(4)]

    def work(ledger: Ledger) -> None:
        for _ in range(500):
            ledger.note_bounce(b"3007 joe@example.com")
            ledger.note_signed(b"3007 joe@example.com", 2)
        ledger.close()

    threads = [Thread(target=work, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert site.ledger().account(b"3007 joe@example.com") == Account(4000, 2000)


def test_a_count_is_never_seen_with_too_many_bounces(site: _Site) -> None:
    """Whatever is just being written: a genuine bounce must not meet a budget that is not spent."""
    ledger = site.ledger()
    done = Event()
    signed, bounced = [0], [0]
    seen: list[tuple[int, Account, int]] = []

    def look() -> None:
        while not done.is_set():
            before = signed[0]
            seen.append((before, ledger.account(b"1"), bounced[0]))

    thread = Thread(target=look)
    thread.start()
    for _ in range(20):
        ledger.note_signed(b"1", 1)
        signed[0] += 1
        bounced[0] += 1
        ledger.note_bounce(b"1")
        ledger.flush()
    done.set()
    thread.join()
    assert seen
    for before, account, after in seen:
        assert account.recipients >= before
        assert account.bounces <= after


def test_a_file_of_a_release_that_kept_no_counts_can_be_counted_in_and_tells_of_none(site: _Site) -> None:
    """On the day of an upgrade it has a part of what was sent, and nothing must come of that."""
    site.noted()
    (path,) = site.folder.iterdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        old.execute("PRAGMA user_version = 0")
        old.execute("DROP TABLE counted")
    assert site.ledger().account(b"1") == Account(0, 0)
    ledger = site.ledger()
    ledger.note_signed(b"1", 1)
    ledger.close()
    assert ledger.notices() == []
    assert site.ledger().account(b"1") == Account(0, 0)
    site.day = _TODAY + 1
    ledger = site.ledger()
    ledger.note_bounce(b"1")
    ledger.close()
    assert site.ledger().account(b"1") == Account(0, 1)


def test_an_account_that_cannot_be_read_is_an_error(site: _Site) -> None:
    """The caller does as if there were no budget."""
    site.noted()
    (path,) = site.folder.iterdir()
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(IoError, match="cannot use the ledger"):
        site.ledger().account(b"1")


def test_a_file_that_was_put_right_is_read_again(site: _Site) -> None:
    """Without a restart, though another file stands under its name."""
    ledger = site.ledger()
    ledger.note_signed(b"1", 3)
    ledger.close()
    (path,) = site.folder.iterdir()
    good, bad = path.read_bytes(), site.folder / "bad"
    ledger = site.ledger()
    for octets in (b"no database" * 1000, good):
        bad.write_bytes(octets)
        bad.replace(path)
        if octets is good:
            assert ledger.account(b"1") == Account(3, 0)
        else:
            with pytest.raises(IoError, match="cannot use the ledger"):
                ledger.account(b"1")


def test_an_address_of_another_domain_is_not_noted(site: _Site) -> None:
    """Nothing that goes there is judged here."""
    ledger = site.ledger()
    ledger.note(b"1@x", (b"joe@elsewhere.example", b"joe", b""), (_BOB,))
    ledger.close()
    assert not site.folder.exists()


def test_entries_are_kept_for_their_days_and_no_longer(site: _Site) -> None:
    """The day of an entry is the first; its file goes with it."""
    limits = LedgerLimits(keep_days=3)
    site.noted(1, limits)
    for later, kept in ((1, True), (2, True), (3, False)):
        site.day = _TODAY + later
        assert site.ledger(limits).knows((b"1@x",), _JOE, (_BOB,)) is kept
    site.noted(2, limits)
    assert {path.name[:10] for path in site.folder.iterdir()} == {"2026-11-26"}


def test_a_day_that_begins_while_it_runs_gets_its_own_file(site: _Site) -> None:
    """Both days are found."""
    ledger = site.ledger()
    ledger.note(b"1@x", (_JOE,), (_BOB,))
    site.day = _TODAY + 1
    ledger.note(b"2@x", (_JOE,), (_BOB,))
    ledger.close()
    assert {path.name[:10] for path in site.folder.iterdir()} == {"2026-11-23", "2026-11-24"}
    for number in (b"1@x", b"2@x"):
        assert site.ledger().knows((number,), _JOE, (_BOB,))


def test_the_oldest_days_go_where_all_take_too_much(site: _Site) -> None:
    """The disk is not filled; the last days matter most."""
    for number in range(4):
        site.day = _TODAY + number
        site.noted(number)
    octets = sum(path.stat().st_size for path in site.folder.iterdir())
    limits = LedgerLimits(max_octets=octets * 3 // 4)
    site.noted(9, limits)
    assert sorted(path.name[:10] for path in site.folder.iterdir()) == ["2026-11-24", "2026-11-25", "2026-11-26"]


def test_a_day_that_takes_too_much_by_itself_is_no_longer_written(site: _Site) -> None:
    """And the log says which option to raise."""
    ledger = site.ledger(LedgerLimits(max_octets=0))
    site.noted()
    ledger.note(b"2@x", (_JOE,), (_BOB,))
    ledger.close()
    assert not site.ledger().knows((b"2@x",), _JOE, (_BOB,))
    assert [str(notice.fields.get("cause")) for notice in ledger.notices()] == [
        "one day takes more than ledger.max_mib allows: raise it"
    ]


def test_a_file_is_for_its_user_only_and_tells_nothing(site: _Site) -> None:
    """Neither an address nor an id stands in it, and without the secret nothing can be looked up."""
    site.noted()
    (path,) = site.folder.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(site.folder.stat().st_mode) == 0o700
    octets = path.read_bytes()
    assert not any(word in octets for word in (b"0@x", b"joe", b"peer"))
    assert not site.ledger(secret=Secret(bytes(32))).knows((b"0@x",), _JOE, (_BOB,))


def test_two_days_have_no_hash_in_common(site: _Site) -> None:
    """Whoever has the files cannot follow a conversation through the days."""
    site.noted()
    site.day = _TODAY + 1
    site.noted()
    found = []
    for path in sorted(site.folder.iterdir()):
        with closing(sqlite3.connect(path)) as connection:
            found.append({row[0] for row in connection.execute("SELECT hash FROM sent")})
    assert len(found) == 2
    assert len(found[0]) == len(found[1]) == 3  # one says that the record is kept
    assert not found[0] & found[1]


def test_a_damaged_day_is_told_of_and_spoils_no_other(site: _Site) -> None:
    """What another day knows is found; else nobody says that it is not there."""
    site.noted(1)
    (path,) = site.folder.iterdir()
    path.write_bytes(b"this is no database " * 400)
    site.day = _TODAY + 1
    site.noted(2)
    ledger = site.ledger()
    assert ledger.knows((b"2@x",), _JOE, (_BOB,))
    with pytest.raises(IoError, match="cannot use the ledger"):
        ledger.knows((b"1@x",), _JOE, (_BOB,))
    (notice,) = ledger.notices()
    assert notice.level is Level.ERROR
    assert ledger.notices() == []


def test_entries_wait_for_a_locked_file(site: _Site) -> None:
    """And are in it once it is free; meanwhile it can be read."""
    site.noted(1)
    (path,) = site.folder.iterdir()
    ledger, reader = site.ledger(), site.ledger()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        ledger.note(b"2@x", (_JOE,), (_BOB,))
        assert reader.knows((b"1@x",), _JOE, (_BOB,))
        assert not reader.knows((b"2@x",), _JOE, (_BOB,))
        other.execute("ROLLBACK")
    until(lambda: reader.knows((b"2@x",), _JOE, (_BOB,)), "the entry")


def test_what_a_process_has_noted_it_knows_at_once(site: _Site) -> None:
    """A vacation program may answer before the disk has anything; on the way to the disk nothing is out of sight."""
    site.noted(1)
    (path,) = site.folder.iterdir()
    ledger = site.ledger()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(2, 300):
            ledger.note(b"%d@x" % number, (_JOE,), (_BOB,))
            assert ledger.knows((b"%d@x" % number,), _JOE, (_BOB,))
            assert not ledger.knows((b"%d@x" % number,), _JOE, (b"carol@peer.example",))
        other.execute("ROLLBACK")
    while not ledger.flush(0):
        assert ledger.knows((b"2@x",), _JOE, (_BOB,))
    assert site.ledger().knows((b"299@x",), _JOE, (_BOB,))


def test_what_waits_for_a_disk_that_takes_nothing_is_known(site: _Site) -> None:
    """It was sent, whatever the disk says."""
    site.folder.write_bytes(b"")
    ledger = site.ledger()
    ledger.note(b"1@x", (_JOE,), (_BOB,))
    until(lambda: bool(ledger.notices()), "the complaint")
    assert ledger.knows((b"1@x",), _JOE, (_BOB,))


def test_what_cannot_be_written_is_dropped_and_counted(site: _Site) -> None:
    """The queue has a bound; a file stands where the folder should be."""
    site.folder.write_bytes(b"")
    ledger = site.ledger()
    recipients = [b"user%d@peer.example" % number for number in range(1000)]
    for number in range(300):
        ledger.note(b"%d@x" % number, (_JOE,), recipients)
    ledger.close()
    ledger.note(b"late@x", (_JOE,), (_BOB,))
    told = {notice.what: notice.fields for notice in ledger.notices()}
    assert told["mail not noted in the ledger"]["count"] == 300 - 200_000 // 1001 + 1
    assert "Not a directory" in str(told["ledger fails: replies count as it finds them"]["cause"])


def test_what_waits_goes_from_ledger_to_ledger(site: _Site) -> None:
    """A reload while the disk takes nothing loses nobody's bounce, and its complaint is told."""
    site.noted()
    site.day = _TODAY + 9
    aside = site.folder.rename(site.folder.with_name("aside"))
    site.folder.write_bytes(b"")
    before = site.ledger()
    before.note_unsigned(_JOE)
    before.note(b"", (_JOE,), (_BOB,))
    before.note_bounce(b"1")
    before.close()
    ledger = site.ledger()
    ledger.take_over(before)
    assert {notice.what for notice in ledger.notices()} == {
        "mail without a Message-ID: replies cannot name it",
        "ledger fails: replies count as it finds them",
    }
    site.folder.unlink()
    aside.rename(site.folder)
    assert ledger.flush()
    other = site.ledger()
    assert other.may_have_left_unsigned(_JOE, 7)
    assert not other.may_have_left_unsigned(b"ann@example.com", 7)
    assert other.account(b"1") == Account(0, 1)


def test_who_was_dropped_may_be_anybody(site: _Site) -> None:
    """An address that is on no record for want of room loses no bounce; other processes hear of it."""
    site.noted()
    site.day = _TODAY + 9
    aside = site.folder.rename(site.folder.with_name("aside"))
    site.folder.write_bytes(b"")
    ledger = site.ledger()
    recipients = [b"user%d@peer.example" % number for number in range(1000)]
    for number in range(200):
        ledger.note(b"%d@x" % number, (_JOE,), recipients)
    for number in range(1000):
        ledger.note_unsigned(b"user%d@example.com" % number)
    site.folder.unlink()
    aside.rename(site.folder)
    assert ledger.flush()
    other = site.ledger()
    assert other.may_have_left_unsigned(b"user0@example.com", 7)
    assert other.may_have_left_unsigned(b"user999@example.com", 7)


def test_mail_without_a_message_id_is_counted(site: _Site) -> None:
    """Replies cannot name it, so the administrator should hear of it."""
    ledger = site.ledger()
    ledger.note(b"", (_JOE,), (_BOB,))
    ledger.note(b"", (_JOE,), (_BOB,))
    (notice,) = ledger.notices()
    assert (notice.what, notice.fields) == ("mail without a Message-ID: replies cannot name it", {"count": 2})
    assert ledger.notices() == []


def test_rescues_are_counted_by_recipient_and_day(site: _Site) -> None:
    """For all processes; what was not delivered counts no more."""
    limits = LedgerLimits(max_rescues=2)
    first, second = site.ledger(limits), site.ledger(limits)
    assert first.take_rescue(_JOE)
    assert second.take_rescue(b"Joe@Example.com")
    assert not first.take_rescue(_JOE)
    assert first.take_rescue(b"ann@example.com")
    second.give_back_rescue(_JOE)
    assert first.take_rescue(_JOE)
    assert not first.take_rescue(_JOE)
    site.day = _TODAY + 1
    assert first.take_rescue(_JOE)


def test_a_rescue_that_cannot_be_counted_is_an_error(site: _Site) -> None:
    """Uncounted ones would have no limit."""
    site.folder.write_bytes(b"")
    ledger = site.ledger()
    with pytest.raises(IoError, match="cannot use the ledger"):
        ledger.take_rescue(_JOE)
    ledger.give_back_rescue(_JOE)


@pytest.mark.parametrize("master_key", [None, Secret(b"m" * 32)], ids=["plain", "sealed"])
def test_the_secret_is_made_once_and_found_again(tmp_path: Path, master_key: Secret | None) -> None:
    """For its user only; sealed where the rings are."""
    tmp_path.chmod(0o700)
    secret = open_secret(tmp_path, master_key)
    assert len(secret.octets) == 32
    assert open_secret(tmp_path, master_key) == secret
    path = tmp_path / SECRET_NAME
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (secret.octets.hex().encode() in path.read_bytes()) is (master_key is None)


def test_a_secret_that_is_not_right_is_not_replaced(tmp_path: Path) -> None:
    """With a new one all that was noted would be lost without a word."""
    tmp_path.chmod(0o700)
    open_secret(tmp_path, Secret(b"m" * 32))
    for master_key in (None, Secret(b"n" * 32)):
        with pytest.raises(KeyRingDataError):
            open_secret(tmp_path, master_key)
    path = tmp_path / SECRET_NAME
    for octets in (b"", b"{", b"00\n"):
        path.write_bytes(octets)
        with pytest.raises(KeyRingDataError, match="damaged"):
            open_secret(tmp_path, Secret(b"m" * 32))
    path.chmod(0o640)
    with pytest.raises(UnsafeFileError):
        open_secret(tmp_path, None)
    assert {each.name for each in tmp_path.iterdir()} == {SECRET_NAME, ".lock"}

"""The quarantine: a forged bounce is kept whole, with its envelope, before its sender hears 250."""

from __future__ import annotations

import mailbox
import stat
from threading import Thread
from typing import TYPE_CHECKING, Final

import pytest

from batv.errors import IoError, QuarantineFullError
from batv.store.quarantine import Quarantine
from tests.support.next_hop import RecordingNextHop
from tests.support.service import ServiceProcess, full_disk
from tests.support.smtp_client import SmtpClient
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_HEADER: Final = (("Return-Path", "<>"), ("X-Original-To", "<joe@example.com>"))
_AS_SENT: Final = b"Subject: x\r\n\r\n..one dot\r\n...two\r\n\r\nlast line\r\n"
_AS_KEPT: Final = b"Return-Path: <>\nX-Original-To: <joe@example.com>\nSubject: x\n\n.one dot\n..two\n\nlast line\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_a_message_is_kept_as_its_author_wrote_it(tmp_path: Path, size: int) -> None:
    """Dots unstuffed, line ends LF, wherever the pieces end in which it comes."""
    message = Quarantine(tmp_path / "q").begin("name", _HEADER)
    for at in range(0, len(_AS_SENT), size):
        message.write(_AS_SENT[at : at + size])
    message.commit()
    assert (tmp_path / "q/new/name").read_bytes() == _AS_KEPT


def test_a_message_is_not_there_before_it_is_whole(tmp_path: Path) -> None:
    """Whoever looks into `new` finds whole messages only."""
    message = Quarantine(tmp_path / "q").begin("name", _HEADER)
    message.write(_AS_SENT)
    assert list((tmp_path / "q/new").iterdir()) == []
    message.commit()
    message.abandon()
    assert [path.name for path in (tmp_path / "q/new").iterdir()] == ["name"]
    assert list((tmp_path / "q/tmp").iterdir()) == []


def test_an_abandoned_message_leaves_nothing(tmp_path: Path) -> None:
    """The client keeps it, and sends it once more."""
    message = Quarantine(tmp_path / "q").begin("name", _HEADER)
    message.write(_AS_SENT)
    message.abandon()
    assert [path for path in (tmp_path / "q").rglob("*") if path.is_file()] == []


def test_it_is_a_maildir_for_its_user_only(tmp_path: Path) -> None:
    """Any mail program can show it, to the administrator."""
    quarantine = Quarantine(tmp_path / "q")
    message = quarantine.begin("name", _HEADER)
    message.write(_AS_SENT)
    message.commit()
    found = mailbox.Maildir(tmp_path / "q", create=False)
    assert [each["Subject"] for each in found] == ["x"]
    for path in (tmp_path / "q", *(tmp_path / "q").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_no_message_is_written_over_another(tmp_path: Path) -> None:
    """Names are unique; were two alike, the second message would be refused, not the first one lost."""
    quarantine = Quarantine(tmp_path / "q")
    first = quarantine.begin("name", _HEADER)
    with pytest.raises(IoError, match="cannot write to the quarantine"):
        quarantine.begin("name", _HEADER)
    first.abandon()


def test_a_quarantine_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    """It says which folder."""
    (tmp_path / "q").touch()
    with pytest.raises(IoError, match=r"cannot write to the quarantine .*/q: "):
        Quarantine(tmp_path / "q").begin("name", _HEADER)


# Its size.

_KIB: Final = 1024


def keep(quarantine: Quarantine, name: str, octets: int = 100) -> None:
    """Put a message of so many octets into the quarantine."""
    message = quarantine.begin(name, ())
    try:
        message.write(b"x" * octets)
        message.commit()
    finally:
        message.abandon()


def taken_until_full(quarantine: Quarantine, name: str) -> int:
    """Put messages into the quarantine until it is full; return how many it took."""
    for number in range(1000):
        try:
            keep(quarantine, f"{name}{number}")
        except QuarantineFullError:
            return number
    raise AssertionError("the quarantine is never full")


def test_a_quarantine_does_not_grow_beyond_its_size(tmp_path: Path) -> None:
    """A flood of forged bounces must not fill the disk on which the journal is. Each file counts with its blocks."""
    quarantine = Quarantine(tmp_path / "q", 64 * _KIB)
    assert taken_until_full(quarantine, "a") == 16
    assert quarantine.octets == 64 * _KIB
    with pytest.raises(QuarantineFullError, match=r"the quarantine .*/q is full: delete messages there, or raise"):
        quarantine.begin("more", ())
    assert len(list((tmp_path / "q/new").iterdir())) == 16
    assert list((tmp_path / "q/tmp").iterdir()) == []


def test_a_message_that_is_larger_than_what_is_left_leaves_nothing(tmp_path: Path) -> None:
    """How large a message is shows only when it comes."""
    quarantine = Quarantine(tmp_path / "q", 64 * _KIB)
    message = quarantine.begin("large", _HEADER)
    message.write(b"x" * 60_000)
    with pytest.raises(QuarantineFullError):
        message.write(b"x" * 10_000)
    message.abandon()
    assert [path for path in (tmp_path / "q").rglob("*") if path.is_file()] == []
    assert quarantine.octets == 0
    assert taken_until_full(quarantine, "a") == 16


def test_a_message_whose_last_octets_have_no_room_is_not_kept(tmp_path: Path) -> None:
    """The last ones are written when the dot has come."""
    quarantine = Quarantine(tmp_path / "q", 8 * _KIB)
    message = quarantine.begin("large", ())
    message.write(b"x" * 8 * _KIB + b"\r")
    with pytest.raises(QuarantineFullError):
        message.commit()
    assert [path for path in (tmp_path / "q").rglob("*") if path.is_file()] == []
    assert quarantine.octets == 0


def test_what_is_taken_away_again_makes_room(tmp_path: Path) -> None:
    """A message that the next hop refuses, or whose client has gone, is not in the quarantine."""
    quarantine = Quarantine(tmp_path / "q", 4 * _KIB)
    for number in range(3):
        message = quarantine.begin(f"abandoned{number}", ())
        with pytest.raises(QuarantineFullError):
            message.write(b"x" * 5 * _KIB)
        message.abandon()
        message = quarantine.begin(f"withdrawn{number}", ())
        message.write(b"x")
        message.commit()
        message.abandon()
        with pytest.raises(QuarantineFullError):
            quarantine.begin("more", ())
        message.withdraw()
        message.withdraw()
        assert quarantine.octets == 0


def test_a_quarantine_of_size_0_keeps_nothing(tmp_path: Path) -> None:
    """And makes no folder; without a size there is no limit."""
    with pytest.raises(QuarantineFullError):
        Quarantine(tmp_path / "q", 0).begin("name", ())
    assert not (tmp_path / "q").exists()
    keep(Quarantine(tmp_path / "q"), "large", 1 << 20)


def test_what_was_there_before_the_start_counts(tmp_path: Path) -> None:
    """Read messages and what a killed process has left take room too."""
    before = Quarantine(tmp_path / "q")
    keep(before, "new", 10_000)
    keep(before, "read", 10_000)
    (tmp_path / "q/new/read").rename(tmp_path / "q/cur/read:2,S")
    (tmp_path / "q/tmp/left").write_bytes(b"x" * 10_000)
    assert Quarantine(tmp_path / "q", 64 * _KIB).octets == 36 * _KIB


def test_messages_that_were_deleted_make_room_within_seconds(tmp_path: Path) -> None:
    """Without a restart: the quarantine is counted anew while messages come."""
    quarantine = Quarantine(tmp_path / "q", 64 * _KIB)
    assert taken_until_full(quarantine, "a") == 16
    for path in (tmp_path / "q/new").iterdir():
        path.unlink()

    def takes() -> bool:
        try:
            keep(quarantine, "again")
        except QuarantineFullError:
            return False
        return True

    until(takes, "room in the quarantine", seconds=15)


def test_several_processes_share_the_room(tmp_path: Path) -> None:
    """Each counts what the others have added, though not at once."""
    first, second = Quarantine(tmp_path / "q", 64 * _KIB), Quarantine(tmp_path / "q", 64 * _KIB)
    assert taken_until_full(first, "a") == 16

    def is_full() -> bool:
        try:
            second.begin("b", ()).abandon()
        except QuarantineFullError:
            return True
        return False

    until(is_full, "news of what the other has added", seconds=15)


def test_messages_that_come_at_once_take_no_more_than_there_is(tmp_path: Path) -> None:
    """Their last octets are written by threads."""
    quarantine = Quarantine(tmp_path / "q", 64 * _KIB)
    counts: list[int] = []
    threads = [Thread(target=lambda name: counts.append(taken_until_full(quarantine, name)), args=[n]) for n in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == len(list((tmp_path / "q/new").iterdir())) <= 16
    assert quarantine.octets == 4 * _KIB * sum(counts)


# The service and its quarantine.


@pytest.fixture
def next_hop() -> Iterator[RecordingNextHop]:
    """A next hop."""
    with RecordingNextHop(rejects=frozenset({b"nobody"})) as hop:
        yield hop


@pytest.fixture
def service(next_hop: RecordingNextHop, tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service that puts forged bounces into quarantine."""
    with ServiceProcess(tmp_path, next_hop.address, on_forged="quarantine") as running:
        yield running


def kept(service: ServiceProcess) -> list[bytes]:
    """Return the messages in the quarantine."""
    return [path.read_bytes() for path in sorted((service.folder / "var/quarantine/new").iterdir())]


def test_a_forged_bounce_is_kept_with_its_envelope(service: ServiceProcess, next_hop: RecordingNextHop) -> None:
    """One copy for all its recipients that are held; those with good tags get it."""
    good = service.tagged(b"joe@example.com")
    forged = good.replace(b"=joe@", b"=jim@")
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [b"joe@example.com", good, forged], _AS_SENT).text == b"250 2.0.0 Ok\r\n"
    (message,) = kept(service)
    head, _, rest = message.partition(b"Subject: x\n")
    assert b"Subject: x\n" + rest == _AS_KEPT.partition(b"\nX-Original-To: <joe@example.com>\n")[2]
    assert head.startswith(b"Return-Path: <>\nX-Original-To: <joe@example.com>\nX-Batv-Verdict: untagged (")
    assert head.count(b"X-Original-To: ") == 2
    assert b"****=jim@example.com>\n" in head, "the tag is shortened: it is a credential"
    assert b"X-Batv-Verdict: bad-signature (" in head
    assert [taken.content for taken in next_hop.messages] == [_AS_SENT]
    assert next_hop.messages[0].recipients == (b"<joe@example.com>",)
    assert sorted(record["disposition"] for record in service.journal()) == ["quarantine", "quarantine", "rewrite"]


def test_who_is_not_to_get_it_is_not_named_in_the_copy(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """What is released would reach him too."""
    keep = '[domains."keep.example"]\non_forged = "quarantine"\n'
    with ServiceProcess(tmp_path, next_hop.address, keep, on_forged="discard") as service:
        with SmtpClient(service.inbound) as client:
            assert client.mail(b"", [b"joe@example.com", b"ann@keep.example"], _AS_SENT).code == 250
        (message,) = kept(service)
    assert b"X-Original-To: <ann@keep.example>\n" in message
    assert b"joe@example.com" not in message
    assert [each["disposition"] for each in service.journal()] == ["discard", "quarantine"]


def test_bare_newlines_are_kept_as_lines(service: ServiceProcess) -> None:
    """What is kept is what would have gone on: harmless."""
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [b"joe@example.com"], b"a\n.b\rc\r\n").code == 250
    assert kept(service)[0].endswith(b"\na\n.b c\n")


def test_an_unknown_user_is_refused_and_nothing_kept(service: ServiceProcess) -> None:
    """A quarantine is no catch-all."""
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [b"nobody@example.com"], _AS_SENT).code == 550
    assert not (service.folder / "var/quarantine").exists()


def test_a_full_disk_puts_the_message_off(service: ServiceProcess) -> None:
    """The client hears 451 and keeps the message; what was half written goes."""
    with SmtpClient(service.inbound) as client, full_disk(65_536, service.pid):
        heard = client.mail(b"", [b"joe@example.com"], (b"z" * 998 + b"\r\n") * 200)
        assert heard.text.startswith(b"451 4.3.0 ")
        assert [path for path in (service.folder / "var/quarantine").rglob("*") if path.is_file()] == []
        # The session goes on, and so does mail that needs no room.
        assert client.mail(b"ann@peer.example", [b"joe@example.com"], b"x\r\n").code == 250
        assert client.mail(b"", [service.tagged(b"joe@example.com")], b"x\r\n").code == 250
        service.wait_for_log(r"cause=<cannot write to the quarantine .*>")
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [b"joe@example.com"], (b"z" * 998 + b"\r\n") * 200).code == 250
    assert len(kept(service)) == 1


def test_a_quarantine_that_takes_nothing_puts_the_message_off(service: ServiceProcess) -> None:
    """Also where the disk is read-only, or somebody else's."""
    (service.folder / "var/quarantine").touch()
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [b"joe@example.com"], b"x\r\n").text.startswith(b"451 4.3.0 ")
        assert client.mail(b"", [service.tagged(b"joe@example.com")], b"x\r\n").code == 250


def test_a_message_that_is_kept_but_not_recorded_is_put_off(service: ServiceProcess) -> None:
    """The sender tries again; the administrator finds two copies rather than a message that nobody knows of."""
    with SmtpClient(service.inbound) as client:
        assert client.mail(b"", [b"joe@example.com"], b"x\r\n").code == 250
        with full_disk(service.journal_path.stat().st_size + 10, service.pid):
            assert client.mail(b"", [b"joe@example.com"], b"x\r\n").text.startswith(b"451 4.3.0 ")


def test_a_client_that_leaves_in_the_middle_leaves_nothing_in_quarantine(service: ServiceProcess) -> None:
    """Half a message is no message."""
    with SmtpClient(service.inbound) as client:
        assert client.say(b"MAIL FROM:<>").code == 250
        assert client.say(b"RCPT TO:<joe@example.com>").code == 250
        assert client.say(b"DATA").code == 354
        client.send(b"half")
    service.wait_for_log(r"cause=<client gone>")
    assert [path for path in (service.folder / "var/quarantine").rglob("*") if path.is_file()] == []


def test_the_disk_has_the_message_before_the_sender_hears_so(next_hop: RecordingNextHop, tmp_path: Path) -> None:
    """The file is synced before it gets its name, and the folder before the reply goes out."""
    trace = tmp_path / "trace"
    note = f"""
import os, socket
calls = open({str(trace)!r}, "w", buffering=1)
def noted(name):
    real = getattr(os, name)
    def call(*arguments, **options):
        result = real(*arguments, **options)
        print(name, file=calls)
        return result
    setattr(os, name, call)
for name in ("fsync", "rename"):
    noted(name)
import asyncio.selector_events as events
write = events._SelectorSocketTransport.write
def noted_write(self, data):
    print("reply" if data.startswith(b"250 2.0.0 Ok") else "octets", file=calls)
    return write(self, data)
events._SelectorSocketTransport.write = noted_write
import sys
sys.modules["uvloop"] = None
"""
    with (
        ServiceProcess(
            tmp_path, next_hop.address, on_forged="quarantine", code=note + "from batv.cli import main; main()"
        ) as service,
        SmtpClient(service.inbound) as client,
    ):
        assert client.mail(b"", [b"joe@example.com"], _AS_SENT).code == 250
    calls = [call for call in trace.read_text().split() if call != "octets"]
    assert calls[-4:] == ["fsync", "rename", "fsync", "reply"]
